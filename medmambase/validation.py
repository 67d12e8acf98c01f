"""Check values from files, flags and callers with pydantic, and say what is wrong in one line.

Nothing is converted but what cannot be misread: a whole number is also a float. "3" is no number,
true is no 1, and NaN is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

OBJECT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""For a dataclass that is read from a JSON object, by ``pydantic.with_config``: its whole numbers
are ``StrictInt``, its other numbers ``StrictFloat``, and a list becomes its tuple. The dataclasses
inside of it follow."""

PART = ConfigDict(allow_inf_nan=False)
"""The same for a dataclass of which the JSON object may hold more than it names."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_MOST = 80  # characters of a value that are shown
_WANTED = {
    "int": "a whole number", "float": "a number", "finite_number": "a finite number", "bool": "true or false",
    "string": "text", "tuple": "a list", "list": "a list", "dict": "named values", "dataclass": "named values",
    "greater_than_equal": "at least {ge}", "greater_than": "above {gt}", "less_than_equal": "at most {le}",
    "less_than": "below {lt}", "literal_error": "one of {expected}", "value_error": "{error}",
    "callable": "a function", "too_short": "a list of at least {min_length}",
}  # fmt: skip  # a table: pydantic's name of an error, and what is wanted instead


def check(name: str, value: object, wanted: Any, error: type[Exception], typed: bool = False) -> Any:
    """Validate ``value`` against the annotation ``wanted``, and return it. Raises ``error`` with
    one line: what ``name`` or a part of it is, and what it must be.

    ``typed``: the value is what a person typed, so "3" is a whole number.
    """
    adapter = _adapter(wanted)
    try:
        return adapter.validate_strings(value) if typed else adapter.validate_python(value)
    except ValidationError as found:
        raise error(_in_words(name, found.errors(include_url=False)[0])) from found


def check_path(name: str, value: object) -> Path:
    """Return a path that a caller gave. Raises TypeError for what is neither text nor a path."""
    if not isinstance(value, str | PathLike):
        raise TypeError(f"{name} is {value!r:.{_MOST}}; it must be a path, as text or as a pathlib.Path")
    return Path(value)


def check_functions(functions: Mapping[str, object], error: type[Exception]) -> None:
    """Check that each can be called, or is None. Raises ``error``."""
    for name, function in functions.items():
        check(name, function, Callable[..., object] | None, error)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the name in ``known`` that the user most likely meant."""
    return get_close_matches(name, sorted(known), n=1, cutoff=0)[0]


@cache
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    return TypeAdapter(wanted) if is_dataclass(wanted) else TypeAdapter(wanted, config=_STRICT)


def _in_words(name: str, error: ErrorDetails) -> str:
    """Describe one of pydantic's errors for the user."""
    place = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{place} is not known here; leave it out"
    limits = {key: f"{value:.0f}" if value == int(value) else value for key, value in _numbers(error).items()}
    kind = error["type"] if error["type"] in _WANTED else error["type"].rpartition("_")[0]
    words = _WANTED.get(kind, error["msg"]).format(**error.get("ctx", {}) | limits)
    return f"{place} is {error['input']!r:.{_MOST}}; it must be {words}"


def _numbers(error: ErrorDetails) -> dict[str, float]:
    return {key: value for key, value in error.get("ctx", {}).items() if isinstance(value, int | float)}
