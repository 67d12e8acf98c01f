"""Take out of text what names a person or a machine: the account, and the folders above the data.

Standard library only: the doctor runs where PyTorch does not load.
"""

import getpass
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

PATH, USER = "<path>", "<user>"
# A path that begins at a root, a drive or a server, up to its last separator and the name behind.
_ABSOLUTE = re.compile(r"""(?<![\w/])(?<!\.\.)(?:[A-Za-z]:[\\/]|\\\\|/(?=\w))[^\n"':;,]*[\\/][^\s"':;,]*""")


def without_paths(text: str) -> str:
    """Return the text with every path that begins at a root as "<path>", and the account as
    "<user>" where it is the name of a folder."""
    for private in sorted(_folders(), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", PATH, text)
    text = re.sub(f"(?:{PATH})+", PATH, _ABSOLUTE.sub(PATH, text))
    user = re.escape(account())
    return re.sub(rf"(?i)(?<![^\\/]){user}(?=[\\/])|(?<=[\\/]){user}(?!\w)", USER, text) if user else text


def without_names(value: Any) -> Any:
    """Return JSON-ready values without paths and, wherever it stands, without the account."""
    if isinstance(value, dict):
        return {key: without_names(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_names(each) for each in value]
    if not isinstance(value, str):
        return value
    text, user = without_paths(value), account()
    return re.sub(rf"(?i)(?<!\w){re.escape(user)}(?!\w)", USER, text) if len(user) > 2 else text


def without_folders(word: str) -> str:
    """Return an argument of a command, of a path the last name alone."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = names_folders(value) or (re.search(r"[\\/]", value) and os.path.lexists(value))
    return f"{flag}{equals}{last_name(value)}" if is_path else word


def names_folders(text: str) -> bool:
    """Return whether text is a path that tells of folders which lie above all data: it begins at a
    root or goes upwards, or the account is one of its folders."""
    return ".." in re.split(r"[\\/]", text) or Path(text).is_absolute() or without_paths(text) != text


def last_name(path: str) -> str:
    """Return the last name in a path of any system."""
    return PureWindowsPath(path).name or PATH


def command(program: str, words: Sequence[str]) -> str:
    """Return a command as it may be kept in a run's folder: of each path the last name."""
    return f"{program} {shlex.join(map(without_folders, words))}"


def account() -> str:
    """Return the name of the account, "" where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user whom the system has no name for
        return os.environ.get("USERNAME", "")


def _folders() -> set[str]:
    try:
        home = str(Path.home())
    except RuntimeError:  # the system knows no home
        home = sys.prefix
    return {home, home.replace("\\", "/"), str(Path.cwd()), sys.prefix} - {os.sep}
