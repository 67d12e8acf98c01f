"""Cross-validate: each fold in a process of its own, then what all of them have found together."""
