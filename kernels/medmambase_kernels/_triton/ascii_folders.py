"""Give Triton's compilers folders with ASCII names on Windows, where an account may have another
name.

TinyCC and ptxas read their input from the folder of temporary files, and Triton's own library reads
TRITON_CACHE_DIR, each in the code page of the system:
``C:\\Users\\用户\\AppData\\Local\\Temp`` does not exist for them on a Windows of another
language. The short name of the same folder does (``C:\\Users\\1F2A~1\\...``).
"""

import atexit
import ctypes
import functools
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TEMPORARY = ("TMPDIR", "TEMP", "TMP")  # in the order in which Python asks for them
_CACHE = "TRITON_CACHE_DIR"


@dataclass(frozen=True)
class Names:
    """Environment variables to set, the folders they replace, and whether one of those is a folder
    for this process only."""

    variables: dict[str, str]
    replaced: tuple[str, ...]
    spare: bool


@functools.cache  # asked for at every call of an operator
def use_ascii_folders() -> None:
    """On Windows, for this process and those it starts: temporary files and Triton's cache by names
    in ASCII. Says once what it did, if anything."""
    if sys.platform != "win32":
        return
    cache = Path(os.environ.get(_CACHE) or Path.home() / ".triton" / "cache")
    names = ascii_names(Path(tempfile.gettempdir()), cache, os.environ, _short_name, _spare_folder)
    if not names.variables:
        return
    os.environ.update(names.variables)
    tempfile.tempdir = None  # asked for anew
    once = (
        f"; what is compiled is forgotten at the end: set {_CACHE} to a folder of yours with a name in ASCII"
        if names.spare
        else ""
    )
    told = ", ".join(f"{name}={folder}" for name, folder in names.variables.items())
    warnings.warn(
        f"Triton's compilers cannot read {' and '.join(names.replaced)}; in this process they get {told}{once}",
        RuntimeWarning,
        stacklevel=2,
    )


def ascii_names(
    temporary: Path, cache: Path, environment: Mapping[str, str], short: Callable[[Path], str], spare: Callable[[], str]
) -> Names:
    """What to set. ``short``: another name of a folder that exists, "" where there is none;
    ``spare``: makes a folder."""
    variables: dict[str, str] = {}
    replaced, spares = [], False
    for folder, every in (
        (temporary, ("TEMP", "TMP", *(name for name in _TEMPORARY[:1] if name in environment))),
        (cache, (_CACHE,)),
    ):
        if str(folder).isascii():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        name = short(folder)
        if not name or not name.isascii():
            name, spares = spare(), True
        replaced.append(str(folder))
        variables |= dict.fromkeys(every, name)
    return Names(variables, tuple(replaced), spares)


def _short_name(folder: Path) -> str:
    """The 8.3 name that Windows keeps beside a long one, unless its volume is told not to."""
    if sys.platform != "win32":
        return ""
    room = ctypes.create_unicode_buffer(1024)
    length = ctypes.windll.kernel32.GetShortPathNameW(str(folder), room, len(room))
    return room.value if 0 < length < len(room) else ""


def _spare_folder() -> str:
    """A folder of a name that nobody can foresee, since what is compiled there is then loaded; this
    user's alone, and gone with this process."""
    made = tempfile.mkdtemp(prefix="medmambase-", dir=os.environ.get("PROGRAMDATA", "C:\\ProgramData"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
