"""Evaluate predictions: metrics, intervals, calibration, comparison, explanations and the
report."""
