"""Resolve the settings of a pretraining: flags win over a TOML file, as in a training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BeforeValidator, Field

from medmambase import packaged
from medmambase.config import (
    PRESETS,
    AboveZero,
    Checked,
    ConfigError,
    Count,
    ModelConfig,
    NotNegative,
    Part,
    Positive,
    Positives,
    Precision,
    Seed,
    Side,
    TrainConfig,
)
from medmambase.packaged import NONE
from medmambase.settings import DEFINED, Channels, Engine, OnBad, Preset, is_same, one_of_each
from medmambase.settings_file import checked, config_of, flag, private_of, read, refuse_changes, todays, toml_of
from medmambase.validation import check

Target = Literal["structures", "echo", "edges"]
TARGETS: tuple[Target, ...] = get_args(Target)
PICTURE = "picture"  # the one target of images: what they were before patches were hidden
STEPS = 3000  # where neither steps nor minutes are given
MOST_STEPS = 10**9
_ABOUT = (
    "Every setting of a pretraining. medmambase-pretrain --config with this file repeats it, --resume with its folder "
    "continues it."
)
MAY_CHANGE = ("data", "device", "workers", "save_every", "half")  # of a run that is resumed
_EITHER = (
    ("data", "drawn", "--drawn makes its own pictures"),
    DEFINED,
    ("steps", "minutes", "--minutes decides how many there are"),
)
_OF_DRAWN = ("targets", "scenes", "speckle", "structure")
_OF_IMAGES = ("splits", "hidden", "noise", "on_bad")


def _listed(value: object) -> object:
    """What a person typed, or one value, as a tuple; numbers in text become numbers."""
    if isinstance(value, str):
        words = [word.strip() for word in value.split(",")]
        return tuple(int(word) if word.isdecimal() else word for word in words if word)
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else value


_FromText = BeforeValidator(_listed)
Targets = Annotated[tuple[Target, ...], Field(min_length=1), _FromText]
Words = Annotated[tuple[str, ...], Field(min_length=1), _FromText]
Sides = Annotated[tuple[Side, ...], Field(min_length=1), _FromText]


@dataclass(frozen=True)
class PretrainSettings(Checked):
    """All settings of a pretraining; paths are strings, and None means automatic.

    ``data``: images, or ``drawn`` for pictures that are drawn as they are needed. ``splits``: a
    table that divides the images; only its train part is then learned from. ``start`` from other
    weights, or ``model`` and ``depths``, of a new network. ``image_size``: sides in pixels, of
    which each step takes one.
    Of drawn pictures: ``targets`` that are predicted, ``scenes`` (None: all), and whether they have
    ``speckle`` and ``structure``. Of images: the share of each that is ``hidden``, and the greatest
    standard deviation of the ``noise`` that is added, where black is -1 and white 1.
    ``steps`` of ``batch_size``, or as many as about ``minutes`` allow. ``warmup``: the part of the
    steps over which the rate rises to ``lr``; then it falls as a half cosine. ``clip_norm`` and
    ``ema``: as ``TrainConfig`` has them. ``held_out``: pictures that are never learned from, on
    which the report's figures are measured; of images at most a tenth.
    ``workers``: processes that draw ahead (0: none; they change no result). ``save_every``: steps
    between checkpoints within a round (0: none). ``half``: write the weights in float16.
    """

    data: str | None = None
    drawn: bool = False
    splits: str | None = None
    on_bad: OnBad = "skip"
    start: str = NONE
    model: Preset | None = None
    depths: Positives | None = None
    in_chans: Channels = "auto"
    image_size: Sides = (96,)
    targets: Targets = TARGETS
    scenes: Words | None = None
    speckle: bool = True
    structure: bool = True
    hidden: Part = 0.5
    noise: NotNegative = 0.3
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    minutes: AboveZero | None = None
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: AboveZero = 1e-3
    weight_decay: NotNegative = 0.05
    warmup: Part = 0.05
    clip_norm: NotNegative = 1.0
    ema: Part = 0.999
    held_out: Positive = 256
    seed: Seed = 0
    device: str | None = None
    precision: Precision = "auto"
    backend: Engine | None = None
    workers: Annotated[int, Field(ge=0, le=61)] | None = None  # Windows waits for no more processes
    save_every: Count = 0
    half: bool = False
    runs: str = "runs"
    name: str | None = None

    def value(self, name: str) -> Any:
        """Return one setting."""
        return getattr(self, name)

    @property
    def weights(self) -> str | None:
        """The path of the weights to start from; None for new ones."""
        return packaged.weights_of(self.start, self.model)

    def network(self) -> ModelConfig:
        """Return the network to pretrain without ``start``; channels are set later."""
        preset = PRESETS[self.model or packaged.USUAL]
        return preset if self.depths is None else replace(preset, depths=self.depths)

    def predicted(self) -> tuple[str, ...]:
        """Return the names of what is predicted, each with a loss of its own."""
        return tuple(name for name in TARGETS if name in self.targets) if self.drawn else (PICTURE,)

    def optimisation(self, steps: int) -> TrainConfig:
        """Return what ``training/optimise.py`` takes, in which an epoch is one of ``steps``."""
        return TrainConfig(
            recipe="pretraining", lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup * steps, epochs=steps,
            clip_norm=self.clip_norm, ema=self.ema, seed=self.seed,
        )  # fmt: skip  # by idea

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result, besides the images."""
        aside = (*MAY_CHANGE, "precision", "backend", "runs", "name", "splits", "start", "minutes", "steps")
        return {name: value for name, value in self.to_dict().items() if name not in aside}

    def private(self) -> dict[str, str]:
        """Return the settings that tell of folders or people: a run keeps them in a file of its own
        that is not passed on."""
        return private_of({"data": self.data, "splits": self.splits, "start": self.start, "runs": self.runs})

    def to_toml(self, leave_out: Mapping[str, str]) -> str:
        """Return the text of a TOML file with all of these settings, but for those named in
        ``leave_out``."""
        told = {name: self.value(name) for name in TYPES if name not in leave_out}
        return toml_of(told, _ABOUT)


# Every setting and its type, in the order in which they are written; then with the limits that a
# value keeps to.
TYPES: dict[str, Any] = get_type_hints(PretrainSettings)
_WANTED = get_type_hints(PretrainSettings, include_extras=True)


def from_text(name: str, text: str) -> Any:
    """Convert what a person typed after a flag to the type of its setting. Raises ConfigError
    naming the flag."""
    return check(flag(name), text, _WANTED[name], ConfigError, typed=True)


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> PretrainSettings:
    """Combine ``flags``, which win, with ``file``. Raises ConfigError naming the flag, or the file
    and its key, what was got and what is wanted."""
    flags, written = one_of_each(todays(flags), read(file, _WANTED) if file else {}, _EITHER, f"{file}: ")

    def shown(name: str) -> str:
        return f"{file}: {name}" if name in written and name not in flags else flag(name)

    settings = PretrainSettings(**{**written, **checked(flags, _WANTED)})
    as_named = settings.depths is None
    start, model = packaged.settled(settings.start, settings.model, packaged.USUAL, as_named=as_named)
    settings = replace(settings, start=start, model=model)
    _check(settings, shown, f"{file}: " if file else "")
    return settings


def of_run(run: Path, flags: Mapping[str, Any]) -> PretrainSettings:
    """Read the settings of a run that is resumed. Raises ConfigError where ``flags`` differ from
    them in more than MAY_CHANGE."""
    settings, flags = resolve({}, config_of(run, "pretraining")), checked(flags, _WANTED)
    others = {name: value for name, value in flags.items() if not is_same(name, value, settings.value(name))}
    refuse_changes(run, others, settings.value, MAY_CHANGE)
    if settings.drawn and flags.get("data"):
        raise ConfigError(f"{flag('data')} is {flags['data']!r}, but {run} draws its pictures; leave it out")
    return replace(settings, **flags)


def is_run_of(run: Path, settings: PretrainSettings) -> bool:
    """Return whether ``run`` was started with these settings, apart from those that may change when
    it is resumed. Its data lie where they lay."""
    try:
        begun = resolve({}, config_of(run, "pretraining"))
    except ConfigError:  # made, and nothing written in it yet; or the run of a training
        return False
    names = [name for name in TYPES if name == "data" or name not in MAY_CHANGE]
    return all(is_same(name, begun.value(name), settings.value(name)) for name in names)


def _check(settings: PretrainSettings, shown: Callable[[str], str], file: str) -> None:
    """Check settings that depend on each other; ``shown``: where a setting comes from; ``file``:
    how a message begins where there is one."""
    if not (settings.data or settings.drawn):
        raise ConfigError(f"{file}give a folder of images, or --drawn to learn from drawn pictures")
    packaged.check(settings.start, settings.model, shown("start"))
    default = PretrainSettings()
    for name in _OF_IMAGES if settings.drawn else _OF_DRAWN:
        if settings.value(name) != default.value(name):
            kind = "images" if settings.drawn else "drawn pictures"
            raise ConfigError(f"{shown(name)} is {settings.value(name)!r}, which is about {kind} alone; leave it out")
    if not settings.drawn and not (settings.hidden or settings.noise):
        raise ConfigError(
            f"{shown('hidden')} and {shown('noise')} are 0, so there would be nothing to restore; leave one of them out"
        )
    if settings.depths is not None and settings.weights:
        raise ConfigError(f"{shown('depths')} is {settings.depths}, but the weights define it; leave out depths")
    try:
        settings.network()
    except ConfigError as error:
        raise ConfigError(f"{shown('depths')}: {error}") from error
