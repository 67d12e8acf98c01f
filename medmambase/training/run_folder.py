"""The folder of one run: its name, and the small files that the training writes into it.

Every file is written beside its place and moved there, or appended a line at a time, so that a kill never spoils what is there.
"""

import csv
import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


class RunFolderError(Exception):
    """The folder of a run cannot be made or written; the message names it."""


def create(runs: Path, name: str) -> Path:
    """Make ``runs/<name>-001``, or the first number that is free. Raises RunFolderError if it cannot be made."""
    plain = legal_name(name)
    if len(f"{plain}-001".encode("utf-8", "surrogatepass")) > 255:  # what the file systems of all three systems take
        raise RunFolderError(f"the name {plain[:40]}... has {len(plain)} letters, too many for a folder; choose a shorter one with --name")
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = runs / f"{plain}-{number:03d}"
            try:
                folder.mkdir()  # fails if it exists, also when another run makes it at this very moment
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        advice = "choose a shorter --name or --runs" if error.errno == errno.ENAMETOOLONG else "choose another place with --runs"
        if error.errno == errno.ENOSPC:
            advice = f"free some space there, or {advice}"
        raise RunFolderError(f"{runs}: cannot make a folder there ({error.strerror or error}); {advice}") from error
    raise RunFolderError(f"{runs}: holds {plain}-001 to {plain}-999 already; choose another --name")


def legal_name(name: str) -> str:
    """``name`` as a file name that Windows, macOS and Linux all take; never empty."""
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "-", name).strip(" .-")
    return f"{plain}-run" if plain.casefold() in _RESERVED else plain or "run"


def write_text(path: Path, text: str) -> None:
    """UTF-8 with plain line ends, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    # A file name that is no valid Unicode is written with escapes: it must not cost the run.
    beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(beside, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Readable JSON in one step; NaN is refused, since it is no JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file in one step."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(beside, path)


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add a line to a CSV file, which begins with the column names; None becomes an empty cell."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
