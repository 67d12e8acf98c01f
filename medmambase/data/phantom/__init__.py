"""Draw ultrasound-like pictures: a set of six classes to try with, and endless scenes to learn
from."""

from medmambase.data.phantom.demo import CLASSES, write_phantom

__all__ = ["CLASSES", "write_phantom"]
