"""Resolve a run's settings: flags win over a TOML file, the file over the recipe.

A file holds one setting a line, named as its flag is: ``batch_size = 32`` is ``--batch-size 32``.
There are no tables: nobody should need to know in which of them a setting stands.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from medmambase.config import CHANGE_NO_RESULT, PRESETS, RECIPES, ConfigError, Count, ModelConfig, TrainConfig
from medmambase.privacy import names_folders
from medmambase.run_folder import CONFIG, CROSSVAL, read_private
from medmambase.validation import check, nearest

Preset = Literal["nano", "micro", "tiny", "small", "base"]
OnBad = Literal["skip", "error"]
Channels = Literal["auto", "1", "3"]
Engine = Literal["triton", "cpu", "torch", "reference"]

# What --demo does differently, so that it ends in minutes without a GPU; whatever is set by hand
# still wins.
DEMO = {"image_size": 48, "epochs": 6, "in_chans": "1"}
DEMO_RECIPE = {"lr": 3e-3, "augmentation": "none"}  # not where a recipe is asked for: it is then shown as it is
DEMO_DEPTHS = {"depths": (1, 1, 2, 1)}  # not where the network is
FOLDS = 5  # of a cross-validation, where nobody says how many
MAY_CHANGE = ("data", "device", *CHANGE_NO_RESULT)  # of a run that is resumed; its data may lie elsewhere now
_ABOUT = {
    CONFIG: "Every setting of a run. medmambase-train --config with this file repeats it, --resume with its folder "
    "continues it.",
    CROSSVAL: "Every setting of a cross-validation. medmambase-crossval --config with this file continues it.",
}
_UNTEXT = re.compile("[\ud800-\udfff]")  # how Python shows the bytes of a path that are no UTF-8
_EITHER = (("data", "demo"), ("weights", "model"))  # to give one of a pair by flag takes back the other of the file


@dataclass(frozen=True)
class Settings:
    """All settings of a run, as the user gave them: paths are strings, and None means automatic.

    ``data``: whatever ``data/manifest/`` reads; ``demo`` draws images instead. ``group_regex``
    finds the patient in an image's path, ``group_column`` in a CSV. ``class_names`` gives classes
    other names: "0=malignant,1=benign". ``folds``: cross-validation, of which this run is ``fold``,
    counted from 0 (folds 0: none). ``split_seed`` is that of splits and folds (None: the seed of
    everything else); ``splits`` a table that divides the images. ``keep_duplicates_together``: no
    split that is drawn separates duplicates, or their patients. ``allow_leak``: go on with
    patients in two splits. ``plain_patients``: the run's files name patients as the data does, not
    by pseudonyms.
    """

    data: str | None = None
    demo: bool = False
    group_regex: str | None = None
    group_column: str | None = None
    class_names: str | None = None
    folds: Count = 0
    fold: Count = 0
    split_seed: Count | None = None
    splits: str | None = None
    keep_duplicates_together: bool = False
    allow_leak: bool = False
    plain_patients: bool = False
    on_bad: OnBad = "skip"
    in_chans: Channels = "auto"
    model: Preset | None = None
    weights: str | None = None
    device: str | None = None
    backend: Engine | None = None
    runs: str = "runs"
    name: str | None = None
    training: TrainConfig = field(default_factory=TrainConfig)

    def network(self) -> ModelConfig:
        """Return the network to train without ``weights``; classes and channels are set later."""
        return self.training.model(PRESETS[self.model or "tiny"])

    def value(self, name: str) -> Any:
        """Return one setting, this class's own or its recipe's."""
        return getattr(self if name in _OWN else self.training, name)

    def changed(self, name: str, value: Any) -> "Settings":
        """Return these settings with one changed. Raises ConfigError."""
        change = {name: value}
        return replace(self, **change) if name in _OWN else replace(self, training=replace(self.training, **change))

    @property
    def seed_of_splits(self) -> int:
        """Return the seed by which missing splits are drawn."""
        return self.training.seed if self.split_seed is None else self.split_seed

    def private(self) -> dict[str, str]:
        """Return the settings that tell of folders or people: a run keeps them in a file of its own
        that is not passed on."""
        paths = {name: getattr(self, name) for name in ("data", "splits", "weights", "runs")}
        return {name: path for name, path in paths.items() if path and names_folders(path) and not _UNTEXT.search(path)}

    def to_toml(self, leave_out: Collection[str] = (), file: str = CONFIG) -> str:
        """Return the text of the ``file`` of a run, or of a cross-validation, with all of
        these settings but for those named in ``leave_out``."""
        import tomli_w

        lines = {name: self.value(name) for name in TYPES if name not in leave_out}
        # TOML is Unicode: of the path of a folder whose name is none only its owner knows how to
        # write it.
        told = {
            n: list(v) if isinstance(v, tuple) else v
            for n, v in lines.items()
            if v is not None and not _UNTEXT.search(str(v))
        }
        return f"# {_ABOUT[file]}\n\n{tomli_w.dumps(told)}"


_OWN = tuple(f.name for f in fields(Settings) if f.name != "training")


def _annotations(limits: bool) -> dict[str, Any]:
    own = get_type_hints(Settings, include_extras=limits)
    return {name: own[name] for name in _OWN} | get_type_hints(TrainConfig, include_extras=limits)


# Every setting and its type, in the order in which they are written.
TYPES: dict[str, Any] = _annotations(limits=False)
_WANTED = _annotations(limits=True)  # the same, with the limits that a value keeps to


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def from_text(name: str, text: str) -> Any:
    """Convert what a person typed after a flag to the type of its setting. Raises ConfigError
    naming the flag."""
    return check(flag(name), text, _WANTED[name], ConfigError, typed=True)


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Combine ``flags``, which win, with ``file``, which wins over the recipe. Raises ConfigError
    naming the flag, or the file and its key, what was got and what is wanted."""
    written = read(file) if file else {}
    for pair in _EITHER:
        _one_of_two(flags, pair, flag)
        _one_of_two(written, pair, lambda name: f"{file}: {name}")
        if any(_given(flags, name) for name in pair):
            written = {name: value for name, value in written.items() if name not in pair}
    if "recipe" in written and flags.get("recipe", written["recipe"]) != written["recipe"]:
        raise ConfigError(
            f"--recipe is {flags['recipe']!r}, and {file} has recipe {written['recipe']!r}, whose other settings "
            f"would override it; "
            "leave out --recipe, or remove it and its settings from the file"
        )
    given = {**written, **flags}
    own: dict[str, Any] = {}
    if given.get("demo"):
        own = (
            DEMO
            | ({} if "recipe" in given else DEMO_RECIPE)
            | ({} if given.keys() & {"recipe", "model", "weights"} else DEMO_DEPTHS)
        )
        own |= {} if given.get("weights") else {"model": "nano"}
    recipe = given.get("recipe", "ultrasound")
    if recipe not in RECIPES:
        raise ConfigError(
            f"{flag('recipe') if 'recipe' in flags else f'{file}: recipe'} is {recipe!r}; it must be one of "
            f"{', '.join(map(repr, RECIPES))}"
        )
    settings = Settings(training=RECIPES[recipe])
    for values, shown in ((own, flag), (written, lambda name: f"{file}: {name}"), (flags, flag)):
        for name, value in values.items():
            settings = _set(settings, name, value, shown(name))
    settings = settings if settings.model or settings.weights else replace(settings, model="tiny")
    _check(settings, lambda name: f"{file}: {name}" if name in written and name not in flags else flag(name))
    return settings


def of_crossval(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Resolve the settings of a cross-validation: as ``resolve`` does, with FOLDS folds where
    nobody says how many. Raises ConfigError, also where its images or its fold are given."""
    if flags.get("fold") is not None:
        raise ConfigError(
            f"{flag('fold')} is {flags['fold']!r}, and a cross-validation trains every fold; leave it out, or train "
            f"one with medmambase-train"
        )
    written = read(file) if file else {}
    if _given(flags, "demo") or (_given(written, "demo") and not _given(flags, "data")):
        raise ConfigError(
            "--demo makes its own images, with a test split of their own; give a cross-validation images to divide"
        )
    if flags.get("folds") in (0, 1):
        raise ConfigError(f"{flag('folds')} is {flags['folds']}; a cross-validation has at least 2")
    return resolve({"folds": written.get("folds") or FOLDS, **flags, "fold": 0}, file)


def of_run(run: Path, flags: Mapping[str, Any]) -> Settings:
    """Read the settings of a run that is resumed. Raises ConfigError where ``flags`` differ from
    them in more than MAY_CHANGE."""
    path = run / CONFIG
    if not path.is_file():
        what = "not a run folder: config.toml is missing" if run.is_dir() else "there is no such folder"
        raise ConfigError(f"--resume {run}: {what}; give the folder of a run, such as runs/data-001")
    settings = resolve({}, path)
    changed = [name for name, value in flags.items() if name not in MAY_CHANGE and value != settings.value(name)]
    differences = [
        f"{flag(name)} is {flags[name]!r} and was {settings.value(name)!r}".replace("was None", "was not set")
        for name in changed
    ]
    if changed:
        raise ConfigError(
            f"{run} was started with other settings: {'; '.join(differences)}; leave them out, or start a new "
            f"run without --resume"
        )
    for name, value in flags.items():
        settings = _set(settings, name, value, flag(name))
    return settings


def is_run_of(run: Path, settings: Settings, written: str = CONFIG) -> bool:
    """Return whether ``run`` was started with these settings, apart from those that may change when
    it is resumed. Its data lie where they lay. ``written``: the file that has its settings."""
    try:
        begun = resolve({}, run / written)
    except ConfigError:  # made, and nothing written in it yet; or not by us
        return False
    names = [name for name in TYPES if name == "data" or name not in MAY_CHANGE]
    return all(begun.value(name) == settings.value(name) for name in names)


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings, each of the type it must have; of a run's ``config.toml`` also
    those that it keeps apart. Raises ConfigError naming the file."""
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
    private = read_private(path.parent) if path.name in (CONFIG, CROSSVAL) else None
    values = {name: value for name, value in (private or {}).items() if name in TYPES} | values
    for name, value in values.items():
        if name not in TYPES:
            if isinstance(value, dict):
                raise ConfigError(
                    f"{path}: [{name}] is a table; write settings outside tables, one a line, named like their "
                    f"flags are: batch_size = 32"
                )
            raise ConfigError(f"{path}: there is no setting {name!r}; the nearest is {nearest(name, TYPES)!r}")
    return {name: check(f"{path}: {name}", value, _WANTED[name], ConfigError) for name, value in values.items()}


def _given(values: Mapping[str, Any], name: str) -> bool:
    return values.get(name) not in (None, False)


def _one_of_two(values: Mapping[str, Any], pair: tuple[str, str], shown: Callable[[str], str]) -> None:
    if all(_given(values, name) for name in pair):
        why = "--demo makes its own images" if "demo" in pair else "the weights define the size of their network"
        left = pair[0] if "demo" in pair else pair[1]
        raise ConfigError(f"{shown(left)} is {values[left]!r}, but {why}; leave out one of {' and '.join(pair)}")


def _set(settings: Settings, name: str, value: Any, shown: str) -> Settings:
    if name not in TYPES:
        raise ConfigError(f"there is no setting {name!r}; the nearest is {nearest(name, TYPES)!r}")
    return settings.changed(name, check(shown, value, _WANTED[name], ConfigError))


def _check(settings: Settings, shown: Callable[[str], str]) -> None:
    """Check settings that depend on each other; ``shown``: where a setting comes from."""
    of_data = ("group_regex", "group_column", "class_names", "folds", "splits", "keep_duplicates_together")
    for name in of_data if settings.demo else ():
        if settings.value(name):
            raise ConfigError(
                f"{shown(name)} is {settings.value(name)!r}, but --demo makes its own images, classes and splits; "
                f"leave out one of {name} and demo"
            )
    if settings.folds == 1:
        raise ConfigError(f"{shown('folds')} is {settings.folds}; it must be at least 2, or 0 for none")
    if not 0 <= settings.fold < max(settings.folds, 1):
        wanted = (
            f"with --folds {settings.folds} it must be 0 to {settings.folds - 1}"
            if settings.folds
            else "give --folds too"
        )
        raise ConfigError(f"{shown('fold')} is {settings.fold}; {wanted}")
    if settings.folds and settings.splits:
        raise ConfigError(
            f"{shown('folds')} is {settings.folds} and {shown('splits')} {settings.splits}; images are divided by only "
            f"one of them; leave out the other"
        )
    if settings.training.depths is not None and not settings.weights:
        try:
            settings.network()
        except ConfigError as error:
            raise ConfigError(f"{shown('depths')}: {error}") from error
    if settings.group_regex is not None:
        try:
            re.compile(settings.group_regex)
        except re.error as error:
            raise ConfigError(
                f"{shown('group_regex')} is {settings.group_regex!r}, which is not a valid regular expression "
                f"({error}); an example: '(patient\\d+)'"
            ) from error
    if settings.training.freeze != "none" and not settings.weights:
        raise ConfigError(
            f"{shown('freeze')} is {settings.training.freeze!r}, but a new network has learned nothing to keep; give "
            f"--weights, or leave it out"
        )
