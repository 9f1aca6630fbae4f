"""Layers a model is built of."""
