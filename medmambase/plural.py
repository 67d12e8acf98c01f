"""Count things in a sentence: "1 image", "2 images"."""


def count_of(number: int, one: str, many: str | None = None) -> str:
    """Return a number with the noun that belongs to it; ``many`` is the plural, where it takes more
    than an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
