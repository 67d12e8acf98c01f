"""What comes from a file or a flag is taken as it is meant, or refused in one line that a person
understands."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, StrictFloat, StrictInt, with_config

from medmambase.validation import OBJECT, check, nearest


class RefusedError(Exception):
    """What the caller wants to be raised."""


@with_config(OBJECT)
@dataclass(frozen=True)
class Point:
    name: str
    at: StrictFloat | None
    count: StrictInt = 0
    below: "tuple[Point, ...]" = ()


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        (True, int, "x is True; it must be a whole number"),
        ("3", int, "x is '3'; it must be a whole number"),
        (3.0, int, "x is 3.0; it must be a whole number"),
        (True, float, "x is True; it must be a number"),
        (float("nan"), float, "x is nan; it must be a finite number"),
        (10**400, float, "it must be a number"),
        (1, bool, "x is 1; it must be true or false"),
        (1, str, "x is 1; it must be text"),
        (0.5, Annotated[float, Field(ge=1)], "x is 0.5; it must be at least 1"),
        (0.5, Annotated[float, Field(gt=0.75)], "x is 0.5; it must be above 0.75"),
        (2**63, Annotated[int, Field(lt=2**63)], "it must be below 9223372036854775808"),
        ("c", Literal["a", "b"] | None, "x is 'c'; it must be one of 'a' or 'b'"),
        ((1, [2]), tuple[int, ...], "x[1] is [2]; it must be a whole number"),
        ("ab", tuple[str, ...], "x is 'ab'; it must be a list"),
        ({"a": "b"}, dict[str, int], "x.a is 'b'; it must be a whole number"),
        ([], dict[str, int], "x is []; it must be named values"),
        ([], Point, "x is []; it must be named values"),
        ({"name": "a"}, Point, "x.at is missing"),
        ({"name": "a", "at": "1"}, Point, "x.at is '1'; it must be a number"),
        ({"name": "a", "at": True}, Point, "x.at is True; it must be a number"),
        ({"name": "a", "at": float("inf")}, Point, "x.at is inf; it must be a finite number"),
        ({"name": "a", "at": 1, "count": 2.0}, Point, "x.count is 2.0; it must be a whole number"),
        ({"name": "a", "at": 1, "count": True}, Point, "x.count is True; it must be a whole number"),
        ({"name": "a", "at": 1, "below": "b"}, Point, "x.below is 'b'; it must be a list"),
        ({"name": "a", "at": 1, "of": 2}, Point, "x.of is not known here; leave it out"),
        ({"name": "a", "at": 1, "below": [{"name": 3, "at": 1}]}, Point, "x.below[0].name is 3; it must be text"),
        ("a" * 5000, int, "x is '" + "a" * 79 + "; it must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_in_one_line(value: object, wanted: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=f"{re.escape(message)}$") as caught:
        check("x", value, wanted, RefusedError)
    assert "\n" not in str(caught.value)


def test_a_whole_number_is_a_float_too_and_a_list_a_tuple() -> None:
    assert check("x", {"name": "a", "at": 1, "below": [{"name": "b", "at": None}]}, Point, RefusedError) == Point(
        "a", 1.0, 0, (Point("b", None),)
    )
    assert type(check("x", 1, float, RefusedError)) is float


@pytest.mark.parametrize(("text", "wanted", "value"), [("3", int, 3), ("1e-3", float, 1e-3), ("3", str, "3")])
def test_what_a_person_types_is_read_as_what_is_wanted(text: str, wanted: type, value: object) -> None:
    assert check("x", text, wanted, RefusedError, typed=True) == value


@pytest.mark.parametrize(
    ("text", "wanted", "words"),
    [("1e3", int, "a whole number"), ("", float, "a number"), ("nan", float, "a finite number")],
)
def test_what_a_person_types_otherwise_is_refused(text: str, wanted: type, words: str) -> None:
    with pytest.raises(RefusedError, match=f"^x is {text!r}; it must be {words}$"):
        check("x", text, wanted, RefusedError, typed=True)


def test_the_nearest_name_is_found_however_far_it_is() -> None:
    assert nearest("batchsize", ["batch_size", "epochs"]) == "batch_size" and nearest("??", ["a"]) == "a"
