"""Turn a folder, a CSV or a published file into a list of images with class, patient and split."""
