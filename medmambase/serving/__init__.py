"""A local page on which images are dropped and predicted. Needs the extra ``serve``."""
