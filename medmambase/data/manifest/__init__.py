"""From what a person points at to a list of images with class, patient and split."""
