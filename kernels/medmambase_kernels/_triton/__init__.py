"""Triton kernels for an NVIDIA GPU, one file an operator. ``import triton`` stands in this folder
alone."""
