"""Timings of the operators: what is measured, beside what, and how fast a device could be at
most."""
