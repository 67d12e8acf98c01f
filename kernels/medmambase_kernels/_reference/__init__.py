"""The definitions as a backend: a slow loop in float64, for checking."""
