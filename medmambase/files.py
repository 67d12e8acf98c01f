"""Write files atomically: beside their place, then moved there, so that a kill at any byte spoils
nothing. Open only regular files for reading."""

import errno
import json
import os
import stat
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any


def check_regular(path: Path) -> None:
    """Raise OSError for what is no regular file: devices have no end, pipes may never begin."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "a folder, a device or a pipe, not a regular file", str(path))


def no_folder(path: Path) -> str:
    """Say in one clause why ``path``, which is no folder, is none."""
    return "it is a file, not a folder" if path.is_file() else "there is no such folder"


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading bytes. Raises OSError, for anything else too."""
    check_regular(path)
    return path.open("rb")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or nothing. Raises OSError; the previous file is then unchanged."""
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        move(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)  # a part of a file only fills a full disk further
        raise


def as_utf8(text: str) -> bytes:
    """Return the bytes of a text. A file name that is no valid Unicode gets escapes: it must not
    cost a run."""
    return text.encode("utf-8", errors="backslashreplace")


def as_written(text: str) -> str:
    """Return a text as a file has it that ``write_text`` has written."""
    return as_utf8(text).decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with LF line ends, as ``write_bytes`` does."""
    write_bytes(path, as_utf8(text))


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, and ValueError for whatever it holds that is no JSON."""
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("brackets inside of brackets without end") from error


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON, as ``write_bytes`` does; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def move(beside: Path, path: Path) -> None:
    """Replace a file, and retry for a while: on Windows a virus scanner or an indexer may have the
    old file open for a moment. Raises OSError."""
    for pause in (0.05, 0.2, 1.0):
        try:
            return os.replace(beside, path)
        except PermissionError:
            time.sleep(pause)
    os.replace(beside, path)
