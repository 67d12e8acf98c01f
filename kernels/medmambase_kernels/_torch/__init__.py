"""The operators in plain PyTorch operations, for any device, one file an operator."""
