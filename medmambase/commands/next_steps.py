"""Say at the end of a command what can be done next, each as a line to paste."""

import os
import shlex
import subprocess
from pathlib import Path

from medmambase.commands import console

WINDOWS = os.name == "nt"


def pasted(program: str, *words: str | Path | int) -> str:
    """Return a command as the shell of this system takes it: quoted where a blank or the like
    stands in a path."""
    line = [program, *map(str, words)]
    return subprocess.list2cmdline(line) if WINDOWS else shlex.join(line)


def say_next(*steps: tuple[str, str]) -> None:
    """Print what can be done next: for each step what it does, and below it the line that does
    it, if there is one."""
    told = [f"next: {what}:\n  {command}" if command else f"next: {what}" for what, command in steps]
    console.say("\n" + "\n".join(told))
