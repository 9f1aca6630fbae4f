//! Decode kernels for CPU. Empty on purpose: the model runs through PyTorch until they exist.
