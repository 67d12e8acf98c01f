"""Write text into the cells of a CSV file so that no spreadsheet takes it for a formula, and read
it back exactly.

A spreadsheet runs a cell that begins with = + - @ or a tab. An apostrophe in front makes it text:
one is written in front of such a cell, also where apostrophes precede already, and one is taken
away again.
"""

import re
from collections.abc import Iterable
from itertools import chain

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_QUOTED = re.compile('[",\r\n]')  # Python's own writer leaves out \r, at which it splits lines when it reads


def as_cell(text: str) -> str:
    """Return what to write into a cell for ``text``."""
    return f"'{text}" if _FORMULA.match(text) else text


def of_cell(cell: str) -> str:
    """Return the text for which a cell was written: the inverse of ``as_cell``."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def line(cells: Iterable[object]) -> str:
    """Return a row as the text of a CSV file, with its LF; None becomes an empty cell."""
    return f"{','.join(map(_written, cells))}\n"


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return the text of a CSV file, one ``line`` after the other."""
    return "".join(map(line, chain([header], rows)))


def _written(value: object) -> str:
    cell = "" if value is None else as_cell(value) if isinstance(value, str) else str(value)
    return '"{}"'.format(cell.replace('"', '""')) if _QUOTED.search(cell) else cell
