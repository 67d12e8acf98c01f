"""Explain predictions: maps of what the network looks at, tests of whether they can be believed,
and the files that show them."""
