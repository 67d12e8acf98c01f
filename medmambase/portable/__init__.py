"""Trained networks as files for other programs, which need nothing of ours."""
