"""Inference: what a trained network says of images, one at a time, as a stream, or of a whole
split."""
