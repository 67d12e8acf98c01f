"""Add a flag for each setting to a parser, in groups with titles, and read them; the same for every
command that writes a run."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from medmambase.commands.flags import Parser
from medmambase.settings_file import flag

Auto = Literal["auto"]
AUTO: Auto = "auto"  # in the place of a folder: that of the last run of the same command


def add_config_and_resume(parser: Parser) -> None:
    """Add ``--config`` and ``--resume``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read settings from a TOML file; the config.toml of a run repeats that run",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="continue an interrupted run exactly where it stopped; auto: continue the last run of this same command, "
        "or start the first one, as a cluster does when it starts a job again (a folder of that name: ./auto)",
    )


def parse_settings(
    reader: Parser, words: Sequence[str], from_text: Callable[[str, str], Any]
) -> tuple[dict[str, Any], Path | None, Path | Auto | None]:
    """Return the settings given as flags, the file of ``--config`` and the folder of ``--resume``,
    or AUTO. ``from_text`` converts the text of a setting, given by its name.

    Raises ConfigError for an invalid value, and SystemExit, with code 2 and one line, for an
    unknown flag.
    """
    given = read(reader, words)
    config, resume = given.pop("config", None), given.pop("resume", None)
    if config and resume not in (None, AUTO):
        reader.error(f"--resume takes its settings from {resume}; leave out --config {config}")
    return converted(given, from_text), config, resume if resume in (None, AUTO) else Path(resume)


def read(reader: Parser, words: Sequence[str]) -> dict[str, Any]:
    """Return what was given of the flags of ``reader``, by their names. Raises SystemExit for an
    unknown flag and for a second DATA."""
    reader.refuse_unknown(words)
    options, rest = reader.parse_known_args(words)
    if rest:
        short = rest[0].startswith("-")
        reader.error(f"there is no flag {rest[0]}" if short else f"give one DATA only; {rest[0]!r} is a second one")
    return {name: value for name, value in vars(options).items() if value is not None}


def converted(given: Mapping[str, Any], from_text: Callable[[str, str], Any]) -> dict[str, Any]:
    """Return settings that were typed as flags, each of its type. Raises ConfigError."""
    return {name: from_text(name, value) if isinstance(value, str) else value for name, value in given.items()}


def add_settings(
    parser: Parser,
    groups: Mapping[str, Mapping[str, str]],
    types: Mapping[str, Any],
    default: Callable[[str], Any],
    choices: Mapping[str, Sequence[str]] | None = None,
    earlier: Mapping[str, str] | None = None,
    other: Mapping[str, str | None] | None = None,
) -> None:
    """Add the flags of ``groups``: their titles, the settings of each, and the help of each
    setting. They convert nothing, so that every message comes from the settings themselves.

    ``types``: of each setting; ``default``: its value by its name; ``choices``: what may be chosen,
    where the type does not tell; ``earlier``: an earlier name -> the setting; ``other``: settings
    that the command has another help for, and those (None) that it does not have.
    """
    for title, settings in groups.items():
        group = parser.add_argument_group(title)
        for name, usual in settings.items():
            words = (other or {}).get(name, usual)
            if words is None:
                continue
            if types[name] is bool:
                group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=words)
                continue
            before = [flag(other) for other, today in (earlier or {}).items() if today == name]
            group.add_argument(
                flag(name),
                *before,
                dest=name,
                metavar=_metavar(types[name], (choices or {}).get(name, ())),
                help=f"{words}{'' if name in (other or {}) else _default(default(name))}".strip(),
            )


def _metavar(wanted: Any, choices: Sequence[str]) -> str:
    if NoneType in get_args(wanted):
        wanted = next((part for part in get_args(wanted) if part is not NoneType), wanted)
    if get_origin(wanted) is tuple:
        return "A,B,..."
    offered = choices or (get_args(wanted) if get_origin(wanted) is Literal else ())
    return "|".join(offered) or {int: "N", float: "X"}.get(wanted, "TEXT")


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f" ({','.join(map(str, value))})"
    return f" ({value:g})" if isinstance(value, float) else f" ({value})"
