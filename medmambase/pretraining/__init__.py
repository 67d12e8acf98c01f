"""Learn weights to start from: from drawn pictures, or from images that nobody has labelled. The
folder of a run, checkpoints, interrupts and the optimiser are those of ``training/``."""
