"""Resolve a run's settings: flags win over a TOML file, the file over the recipe."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from medmambase import packaged
from medmambase.config import (
    CHANGE_NO_RESULT,
    PRESETS,
    RECIPES,
    SHRINKS,
    AnyConfig,
    ConfigError,
    Count,
    Frames,
    Opponent,
    OpponentConfig,
    TrainConfig,
)
from medmambase.opponent_recipes import OPPONENT_RECIPES
from medmambase.packaged import DRAWN
from medmambase.run_folder import CONFIG, CROSSVAL
from medmambase.settings_file import checked, config_of, flag, private_of, read, refuse_changes, todays, toml_of
from medmambase.validation import check, nearest

Preset = Literal["nano", "micro", "tiny", "small", "base"]
Model = Literal[Preset, Opponent]
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
_PATHS = ("data", "splits", "start", "soft_labels", "runs")
_ABOUT = {
    CONFIG: "Every setting of a run. medmambase-train --config with this file repeats it, --resume with its folder "
    "continues it.",
    CROSSVAL: "Every setting of a cross-validation. medmambase-crossval --config with this file continues it.",
}
# To give one of a pair by flag takes back the other of the file; and why not both.
DEFINED = ("model", "start", "the weights define the size of their network")
_EITHER = (("data", "demo", "--demo makes its own images"), DEFINED)
# What an opponent has none of, the values that ask for nothing of it, and why.
_NOT_OF_OPPONENTS: dict[str, tuple[Any, str]] = {
    "se": ("on", "has no gates of ours to take out"),
    "depths": (None, "has the depths that were published"),
    "freeze": ("none", "has no parts that could be frozen"),
    "backbone_lr_factor": (1.0, "has no parts that could learn at another rate"),
    "recompute": (False, "has no blocks that could be computed again"),
    "backend": (None, "has no scan, and PyTorch computes it"),
}


@dataclass(frozen=True)
class Settings:
    """All settings of a run, as the user gave them: paths are strings, and None means automatic.

    ``data``: whatever ``data/manifest/`` reads; ``demo`` draws images instead. ``group_regex``
    finds the patient in an image's path, ``group_column`` in a CSV. ``class_names`` gives classes
    other names: "0=malignant,1=benign". ``labels``: the columns of a CSV that are a class each:
    "cyst,stone". ``frames``: which of files with several (None: the first). ``folds``:
    cross-validation, of which this run is ``fold``, counted from 0 (folds 0: none). ``split_seed``
    is that of splits and folds (None: the seed of everything else); ``splits`` a table that divides
    the images. ``keep_duplicates_together``: no split that is drawn separates duplicates, or their
    patients. ``allow_leak``: go on with patients in two splits. ``plain_patients``: the run's files
    name patients as the data does, not by pseudonyms. ``start``: the weights to start from, a path
    or a word of ``packaged``. ``soft_labels``: a table of probabilities to learn images by.
    """

    data: str | None = None
    demo: bool = False
    group_regex: str | None = None
    group_column: str | None = None
    class_names: str | None = None
    labels: str | None = None
    frames: Frames | None = None
    folds: Count = 0
    fold: Count = 0
    split_seed: Count | None = None
    splits: str | None = None
    keep_duplicates_together: bool = False
    allow_leak: bool = False
    plain_patients: bool = False
    on_bad: OnBad = "skip"
    in_chans: Channels = "auto"
    model: Model | None = None
    start: str = packaged.START
    soft_labels: str | None = None
    device: str | None = None
    backend: Engine | None = None
    runs: str = "runs"
    name: str | None = None
    training: TrainConfig = field(default_factory=TrainConfig)

    def network(self) -> AnyConfig:
        """Return the network to train without ``weights``; classes and channels are set later."""
        if self.opponent is not None:
            return OpponentConfig(self.opponent)
        return self.training.model(PRESETS[self.model or packaged.usual(self.training.recipe)])

    @property
    def opponent(self) -> Opponent | None:
        """The opponent that is trained; None where it is MedMambaSE."""
        return cast(Opponent, self.model) if self.model in OPPONENT_RECIPES else None

    @property
    def weights(self) -> str | None:
        """The path of the weights to start from; None for new ones."""
        return packaged.weights_of(self.start, self.model)

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
        return private_of({name: self.value(name) for name in ("data", "splits", "start", "soft_labels", "runs")})

    def to_toml(self, leave_out: Collection[str] = (), file: str = CONFIG) -> str:
        """Return the text of the ``file`` of a run, or of a cross-validation, with all of
        these settings but for those named in ``leave_out``."""
        return toml_of({name: self.value(name) for name in TYPES if name not in leave_out}, _ABOUT[file])


_OF_DATA = ("group_regex", "group_column", "class_names", "labels", "frames", "folds", "splits",
            "keep_duplicates_together", "soft_labels")  # fmt: skip  # one list
_OWN = tuple(f.name for f in fields(Settings) if f.name != "training")


def _annotations(limits: bool) -> dict[str, Any]:
    own = get_type_hints(Settings, include_extras=limits)
    return {name: own[name] for name in _OWN} | get_type_hints(TrainConfig, include_extras=limits)


# Every setting and its type, in the order in which they are written.
TYPES: dict[str, Any] = _annotations(limits=False)
_WANTED = _annotations(limits=True)  # the same, with the limits that a value keeps to


def from_text(name: str, text: str) -> Any:
    """Convert what a person typed after a flag to the type of its setting. Raises ConfigError
    naming the flag."""
    return check(flag(name), text, _WANTED[name], ConfigError, typed=True)


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Combine ``flags``, which win, with ``file``, which wins over the recipe. Raises ConfigError
    naming the flag, or the file and its key, what was got and what is wanted."""
    flags, written = one_of_each(todays(flags), read(file, _WANTED) if file else {}, _EITHER, f"{file}: ")
    if "recipe" in written and flags.get("recipe", written["recipe"]) != written["recipe"]:
        raise ConfigError(
            f"--recipe is {flags['recipe']!r}, and {file} has recipe {written['recipe']!r}, whose other settings "
            f"would override it; "
            "leave out --recipe, or remove it and its settings from the file"
        )
    given = {**written, **flags}
    own: dict[str, Any] = {}
    starts = is_given(given, "start") or given.get("start") == DRAWN
    if given.get("demo"):
        own = (
            DEMO
            | ({} if "recipe" in given or given.get("model") in OPPONENT_RECIPES else DEMO_RECIPE)
            | ({} if given.keys() & {"recipe", "model"} or starts else DEMO_DEPTHS)
        )
        own |= {} if is_given(given, "start") else {"model": "nano"}
    of_model = OPPONENT_RECIPES.get(str(given.get("model")))
    recipe, recipes = given.get("recipe", of_model.recipe if of_model else "ultrasound"), RECIPES | OPPONENT_RECIPES
    if recipe not in recipes:
        raise ConfigError(
            f"{flag('recipe') if 'recipe' in flags else f'{file}: recipe'} is {recipe!r}; it must be one of "
            f"{', '.join(map(repr, recipes))}"
        )
    settings = Settings(training=recipes[recipe])
    for values, shown in ((own, flag), (written, lambda name: f"{file}: {name}"), (flags, flag)):
        for name, value in values.items():
            settings = _set(settings, name, value, shown(name))
    shaped = settings.opponent or settings.training.depths or settings.training.block
    # As others' recipes were published, weights were new.
    as_named = not shaped and recipe == TrainConfig().recipe
    start, model = packaged.settled(settings.start, settings.model, packaged.usual(recipe), as_named=as_named)
    settings = replace(settings, start=start, model=model)
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
    written = read(file, _WANTED) if file else {}
    if is_given(flags, "demo") or (is_given(written, "demo") and not is_given(flags, "data")):
        raise ConfigError(
            "--demo makes its own images, with a test split of their own; give a cross-validation images to divide"
        )
    if flags.get("folds") in (0, 1):
        raise ConfigError(f"{flag('folds')} is {flags['folds']}; a cross-validation has at least 2")
    if is_given(flags, "soft_labels") or is_given(written, "soft_labels"):
        raise ConfigError(
            "--soft-labels come from a network that may have learned from the images of a fold, so its figures would "
            "be too good; leave them out of a cross-validation"
        )
    usual = {} if written.get("folds") else {"folds": FOLDS}
    return resolve({**usual, **flags, "fold": 0}, file)


def of_run(run: Path, flags: Mapping[str, Any]) -> Settings:
    """Read the settings of a run that is resumed. Raises ConfigError where ``flags`` differ from
    them in more than MAY_CHANGE."""
    settings, flags = resolve({}, config_of(run)), checked(flags, _WANTED)
    changed = {name: value for name, value in flags.items() if not is_same(name, value, settings.value(name))}
    refuse_changes(run, changed, settings.value, MAY_CHANGE)
    for name, value in flags.items():
        settings = settings.changed(name, value)
    return settings


def is_run_of(run: Path, settings: Settings, written: str = CONFIG) -> bool:
    """Return whether ``run`` was started with these settings, apart from those that may change when
    it is resumed. Its data lie where they lay. ``written``: the file that has its settings."""
    try:
        begun = resolve({}, run / written)
    except ConfigError:  # made, and nothing written in it yet; or not by us
        return False
    names = [name for name in TYPES if name == "data" or name not in MAY_CHANGE]
    return all(is_same(name, begun.value(name), settings.value(name)) for name in names)


def is_same(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of a setting ask for the same: ``data/`` and ``./data`` are the
    path ``data``."""
    words = packaged.WORDS if name == "start" else ()
    if name not in _PATHS or not (one and other) or {*words} & {one, other}:
        return bool(one == other)
    return Path(one).absolute() == Path(other).absolute()


def is_given(values: Mapping[str, Any], name: str) -> bool:
    """Return whether a setting asks for something."""
    return values.get(name) not in ((None, *packaged.WORDS) if name == "start" else (None, False))


def one_of_each(
    flags: Mapping[str, Any], written: Mapping[str, Any], pairs: Iterable[tuple[str, str, str]], file: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings given by flag and those of a file, without those that a flag excludes.
    ``pairs``: two settings that exclude each other, and why.

    Raises ConfigError where both are given by flag, or both in the file, whose messages begin with
    ``file``.
    """
    kept = dict(written)
    for one, other, why in pairs:
        for values, shown in ((flags, flag), (kept, lambda name: f"{file}{name}")):
            if is_given(values, one) and is_given(values, other):
                raise ConfigError(f"{shown(one)} is {values[one]!r}, but {why}; leave out one of {one} and {other}")
        if is_given(flags, one) or is_given(flags, other):
            kept = {name: v for name, v in kept.items() if name not in (one, other) or not is_given(kept, name)}
    return dict(flags), kept


def _set(settings: Settings, name: str, value: Any, shown: str) -> Settings:
    if name not in TYPES:
        raise ConfigError(f"there is no setting {name!r}; the nearest is {nearest(name, TYPES)!r}")
    return settings.changed(name, check(shown, value, _WANTED[name], ConfigError))


def _check(settings: Settings, shown: Callable[[str], str]) -> None:
    """Check settings that depend on each other; ``shown``: where a setting comes from."""
    for name in _OF_DATA if settings.demo else ():
        if settings.value(name):
            raise ConfigError(
                f"{shown(name)} is {settings.value(name)!r}, but --demo makes its own images, classes and splits; "
                f"leave out one of {name} and demo"
            )
    packaged.check(settings.start, settings.model, shown("start"))
    if settings.weights and settings.training.depths != (RECIPES | OPPONENT_RECIPES)[settings.training.recipe].depths:
        raise ConfigError(
            f"{shown('depths')} is {settings.training.depths}, but the weights define it; leave out depths"
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
    if settings.opponent is not None:
        _check_opponent(settings, shown)
    elif settings.training.depths is not None and not settings.weights:
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
    for name, usual in (("freeze", "none"), ("backbone_lr_factor", 1.0)) if not settings.weights else ():
        if (value := settings.value(name)) != usual:
            raise ConfigError(
                f"{shown(name)} is {value!r}, but a new network has learned nothing to keep; give --start, or leave "
                f"it out"
            )


def _check_opponent(settings: Settings, shown: Callable[[str], str]) -> None:
    """Refuse what an opponent cannot do."""
    for name, (usual, why) in _NOT_OF_OPPONENTS.items():
        if (value := settings.value(name)) != usual:
            advice = "leave it out" if name != "depths" else "leave it out, or choose a recipe without depths"
            raise ConfigError(f"{shown(name)} is {value!r}, but {settings.model} {why}; {advice}")
    if settings.training.image_size < SHRINKS:
        raise ConfigError(
            f"{shown('image_size')} is {settings.training.image_size}, but {settings.model} makes images {SHRINKS} "
            f"times smaller; it must be at least {SHRINKS}"
        )
