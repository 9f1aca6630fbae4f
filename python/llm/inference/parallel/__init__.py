"""Tensor parallelism: one model whose weights and cache are split over several processes of a machine."""
