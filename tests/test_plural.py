"""A number and its noun."""

from medmambase.plural import count_of


def test_one_is_singular_and_all_else_plural() -> None:
    assert [count_of(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [count_of(number, "it is", "they are") for number in (1, 3)] == ["1 it is", "3 they are"]
