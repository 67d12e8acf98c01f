"""Predict images with a trained network: one at a time, as a stream, or a whole split."""
