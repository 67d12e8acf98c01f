"""What the label of an image is: the number of its class or, where it may have several classes, a 0
or 1 for each of them."""

from collections.abc import Sequence

Label = int | tuple[int, ...]
NONE_OF_THEM = "none of the classes"


def classes_in(label: Label) -> tuple[int, ...]:
    """Return the numbers of the classes that an image has."""
    if isinstance(label, int):
        return (label,)
    return tuple(number for number, there in enumerate(label) if there)


def in_words(classes: Sequence[str], label: Label) -> str:
    """Return the names of the classes that an image has."""
    return "; ".join(classes[number] for number in classes_in(label)) or NONE_OF_THEM
