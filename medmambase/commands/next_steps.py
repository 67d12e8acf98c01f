"""Say at the end of a command what can be done next, each as a line to paste.

Standard library only: the doctor runs where PyTorch does not load.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

WINDOWS = os.name == "nt"


def pasted(program: str, *words: str | Path | int) -> str:
    """Return a command as the shell of this system takes it: quoted where a blank or the like
    stands in a path."""
    line = [program, *map(str, words)]
    return " ".join(map(_for_windows, line)) if WINDOWS else shlex.join(line)


def _for_windows(word: str) -> str:
    """In double quotes, which cmd and PowerShell have in common, where a character may mean
    something to either; backslashes before the last quote are doubled."""
    if re.fullmatch(r"[\w\\/:.,=+~-]+", word):
        return word
    quoted = subprocess.list2cmdline([word])
    behind = "\\" * (len(word) - len(word.rstrip("\\")))
    return quoted if quoted.startswith('"') else f'"{quoted}{behind}"'


def say_next(*steps: tuple[str, str]) -> None:
    """Print what can be done next: for each step what it does, and below it the line that does
    it, if there is one."""
    told = [f"next: {what}:\n  {command}" if command else f"next: {what}" for what, command in steps]
    print("\n" + "\n".join(told))
