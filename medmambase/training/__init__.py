"""Train networks: ``loop`` is the training loop, and ``run`` surrounds it from settings to
report."""
