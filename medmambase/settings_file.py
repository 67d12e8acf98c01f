"""Settings as text: the flag of one, the TOML file of all, and the file of a run that is resumed.

A file holds one setting a line, named as its flag is: ``batch_size = 32`` is ``--batch-size 32``.
There are no tables: nobody should need to know in which of them a setting stands.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from medmambase.config import ConfigError
from medmambase.packaged import NONE
from medmambase.privacy import names_folders
from medmambase.run_folder import CONFIG, CROSSVAL, Writer, read_private, writer_of
from medmambase.validation import check, nearest

EARLIER = {"weights": "start"}  # a setting's name of before -> today's; files, flags and calls may go on using it
_UNTEXT = re.compile("[\ud800-\udfff]")  # how Python shows the bytes of a path that are no UTF-8


def todays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that they have today. Raises ConfigError for one that is
    given under both."""
    for before, today in EARLIER.items():
        if before in values and today in values:
            raise ConfigError(f"{before} is the earlier name of {today}, and both are given; leave out {before}")
    return {EARLIER.get(name, name): value for name, value in values.items()}


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def read(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read a TOML file of settings, each of the type that is ``wanted`` of it; of a run's
    ``config.toml`` also those that it keeps apart. Raises ConfigError naming the file."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors put a byte order mark in front
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file; give a TOML file of settings, or leave out --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        if path.is_dir():  # which systems tell in different words
            raise ConfigError(
                f"{path}: is a folder; give a TOML file of settings, such as config.toml in it"
            ) from error
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, and of too many brackets
        line = re.search(r"line (\d+)", str(error))
        backslash = line is not None and "\\" in text.splitlines()[int(line[1]) - 1]
        advice = (
            r"; put a path with backslashes in single quotes: data = 'C:\images'"
            if backslash
            else "; wanted lines such as batch_size = 32"
        )
        raise ConfigError(f"{path}: is not TOML ({error}){advice}") from error
    private = todays(read_private(path.parent) or {} if path.name in (CONFIG, CROSSVAL) else {})
    values = {name: value for name, value in private.items() if name in wanted} | todays(values)
    if path.name in (CONFIG, CROSSVAL) and "demo" in values:  # of a training; before there was a word for it
        values.setdefault("start", NONE)
    for name, value in values.items():
        if name not in wanted:
            if isinstance(value, dict):
                raise ConfigError(
                    f"{path}: [{name}] is a table; write settings outside tables, one a line, named like their "
                    f"flags are: batch_size = 32"
                )
            raise ConfigError(f"{path}: there is no setting {name!r}; the nearest is {nearest(name, wanted)!r}")
    return {name: check(f"{path}: {name}", value, wanted[name], ConfigError) for name, value in values.items()}


def checked(flags: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given by flag under today's names, as the values that their annotations in
    ``wanted`` take: a list becomes a tuple. Raises ConfigError naming the flag."""
    return {name: check(flag(name), value, wanted[name], ConfigError) for name, value in todays(flags).items()}


def private_of(paths: Mapping[str, str | None]) -> dict[str, str]:
    """Return those of the settings that are ``paths`` that tell of folders or people."""
    return {name: path for name, path in paths.items() if path and names_folders(path) and not _UNTEXT.search(path)}


def toml_of(settings: Mapping[str, Any], about: str) -> str:
    """Return the text of a TOML file of ``settings``, which begins with a comment ``about`` it."""
    import tomli_w

    # TOML is Unicode: of the path of a folder whose name is none only its owner knows how to write
    # it.
    told = {
        n: list(v) if isinstance(v, tuple) else v
        for n, v in settings.items()
        if v is not None and not _UNTEXT.search(str(v))
    }
    return f"# {about}\n\n{tomli_w.dumps(told)}"


def config_of(run: Path, wanted: Writer = "training") -> Path:
    """Return the file of the settings of a run that is resumed. Raises ConfigError for a folder
    that has none, and for one that another command than the ``wanted`` one wrote."""
    path = run / CONFIG
    if not path.is_file():
        what = "not a run folder: config.toml is missing" if run.is_dir() else "there is no such folder"
        raise ConfigError(f"--resume {run}: {what}; give the folder of a run, such as runs/data-001")
    if (writer := writer_of(run)) not in (wanted, None):
        command = {"training": "medmambase-train", "pretraining": "medmambase-pretrain"}[writer]
        raise ConfigError(f"--resume {run}: a {writer} wrote it; continue it with {command}")
    return path


def refuse_changes(run: Path, flags: Mapping[str, Any], was: Callable[[str], Any], may_change: Collection[str]) -> None:
    """Raise ConfigError where ``flags`` differ from the settings that ``run`` ``was`` started
    with in more than ``may_change``."""
    changed = [name for name, value in flags.items() if name not in may_change and value != was(name)]
    differences = [
        f"{flag(name)} is {flags[name]!r} and was {was(name)!r}".replace("was None", "was not set") for name in changed
    ]
    if changed:
        raise ConfigError(
            f"{run} was started with other settings: {'; '.join(differences)}; leave them out, or start a new "
            f"run without --resume"
        )
