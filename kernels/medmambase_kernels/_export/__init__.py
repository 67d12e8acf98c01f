"""The operators in what a file for other programs may hold: PyTorch's or ONNX's own operators."""
