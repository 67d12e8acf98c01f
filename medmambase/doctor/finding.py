"""One line of the doctor's report: what was looked at, what was found, and how to fix it."""

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much a finding matters; the largest decides the last line of the report."""

    OK = 0
    NOTE = 1  # good to know; nothing is slower for it
    SLOWER = 2
    BROKEN = 3


@dataclass(frozen=True)
class Finding:
    """A line of the report. ``title``: what was looked at. ``text``: what was found. ``fix``: the
    command that fixes it, or what to do. ``why``: in few words, why it matters; the last line
    repeats it."""

    title: str
    text: str
    level: Level = Level.OK
    fix: str = ""
    why: str = ""
