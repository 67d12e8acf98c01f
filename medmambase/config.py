"""Every default in the project: network shapes, preprocessing, recipes.

Stop before: ``settings.py``, which fills them from a file and from flags. Next stop:
``model/network.py`` builds a network from a ``ModelConfig``;
``training/loop.py`` follows a ``TrainConfig``.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

Block = Literal["medmambase", "medmamba", "notebook", "medmamba_v0"]
Gates = Literal["on", "off"]
Odd = Literal["pad", "crop"]
Init = Literal["corrected", "upstream"]
Resize = Literal["letterbox", "stretch"]
HighDepth = Literal["percentile", "range"]
Optimizer = Literal["adamw", "adam"]
Schedule = Literal["cosine", "constant"]
Augmentation = Literal["ultrasound", "crop_flip", "none"]
Balance = Literal["none", "weights", "sampler"]
Freeze = Literal["none", "embedding", "backbone"]
Caching = Literal["ram", "disk", "off"]
Metric = Literal["auc", "balanced_accuracy", "accuracy"]
Precision = Literal["auto", "float32", "bfloat16"]


class ConfigError(ValueError):
    """A setting that cannot be meant: the message names it, what was got and what is wanted."""


def _one_of(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(choices)))}")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be a finite number, at least {least}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of ``known`` that a person most likely meant."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)[0]


def check_type(name: str, value: object, wanted: Any) -> None:
    """Raises ConfigError unless ``value`` is what a file may give for the annotation ``wanted``: a
    whole number is also a float, a list a tuple."""
    if not _fits(value, wanted):
        raise ConfigError(f"{name} is {value!r}; it must be {in_words(wanted)}")


def _fits(value: object, wanted: Any) -> bool:
    parts = get_args(wanted)
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(wanted) is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    return isinstance(value, (int, float) if wanted is float else wanted) and (
        wanted is bool or not isinstance(value, bool)
    )


def in_words(wanted: Any) -> str:
    """An annotation for a person."""
    parts = get_args(wanted)
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if get_origin(wanted) is tuple:
        return f"a list, each of it {in_words(parts[0])}"
    if parts:
        return " or ".join(in_words(part) for part in parts if part is not NoneType)
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(wanted, "a text")


class _Config:
    """Reading and writing as plain dictionaries, strict about names and types."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; tuples become lists."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ConfigError for a key that does not exist, with the
        nearest one that does, and for a value of another type."""
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # every subclass is a dataclass
        types = get_type_hints(cls)
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no field {name!r}; the nearest is {nearest(name, known)!r}")
            check_type(name, value, types[name])
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of a network.

    ``block`` picks one of four: ``medmambase`` (MedMamba's block with squeeze-and-excitation
    between concat and shuffle), ``medmamba``, ``notebook`` (MedMambaSE as its authors coded it),
    ``medmamba_v0`` (notebook without SE).
    The hidden width of a gate is channels // ``se_reduction``, at least ``se_hidden_min``;
    ``se_hidden`` gives the width of each block's gate instead, one for each block in order, where
    a checkpoint follows no such rule.
    ``se_scale`` multiplies the sigmoid gate: 2 starts a new network with every gate at exactly 1, 1
    is the published gate, which starts at 0.5; None takes 2 with ``init="corrected"`` and 1 with
    ``init="upstream"``.
    ``odd`` says what patch merging does with a map of odd height or width: add a row/column of
    zeros, or drop the last.
    """

    num_classes: int = 6
    in_chans: int = 3
    block: Block = "medmambase"
    depths: tuple[int, ...] = (2, 2, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    state: int = 16
    se_reduction: int = 16
    se_hidden_min: int = 8
    se_hidden: tuple[int, ...] | None = None
    se_scale: float | None = None
    drop_rate: float = 0.0
    drop_path: float = 0.1
    odd: Odd = "pad"
    init: Init = "corrected"

    def __post_init__(self) -> None:
        _one_of("block", self.block, Block)
        _one_of("odd", self.odd, Odd)
        _one_of("init", self.init, Init)
        for name in ("num_classes", "state", "se_reduction", "se_hidden_min"):
            _at_least(name, getattr(self, name), 1)
        for name in ("drop_rate", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be at least 0 and below 1")
        if self.in_chans not in (1, 3):
            raise ConfigError(f"in_chans is {self.in_chans!r}; it must be 1 (grey) or 3 (RGB)")
        if len(self.depths) != len(self.dims) or not self.depths or min(self.depths) < 1:
            raise ConfigError(
                f"depths {self.depths} and dims {self.dims} must be as long as each other, every depth at least 1"
            )
        if self.se_hidden is not None and (len(self.se_hidden) != sum(self.depths) or min(self.se_hidden) < 1):
            raise ConfigError(
                f"se_hidden is {self.se_hidden}; it must give a width of at least 1 for each of the "
                f"{sum(self.depths)} blocks, or be None"
            )
        if self.se_scale is not None and not self.se_scale > 0:
            raise ConfigError(f"se_scale is {self.se_scale!r}; it must be above 0, or None")
        if any(dim < 2 or dim % 2 for dim in self.dims):
            raise ConfigError(
                f"dims is {self.dims}; every width must be even, since each block splits its channels in two"
            )
        if any(wide != 2 * narrow for narrow, wide in zip(self.dims, self.dims[1:], strict=False)):
            raise ConfigError(
                f"dims is {self.dims}; each width must be twice the one before, since patch merging doubles it"
            )

    def gate_widths(self) -> tuple[int, ...]:
        """The hidden width of each block's squeeze-and-excitation gate, in order."""
        channels = (dim for dim, depth in zip(self.dims, self.depths, strict=True) for _ in range(depth))
        by_rule = (max(self.se_hidden_min, c // self.se_reduction) for c in channels)
        return tuple(by_rule) if self.se_hidden is None else self.se_hidden


WITHOUT_SE: dict[Block, Block] = {
    "medmambase": "medmamba",
    "notebook": "medmamba_v0",
}  # the same block, but for its gates

# nano and micro are new, so their SE is never narrower than 8; tiny, small and base keep the
# published C/16.
PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(depths=(2, 2, 4, 2), dims=(48, 96, 192, 384)),
    "micro": ModelConfig(depths=(2, 2, 4, 2), dims=(64, 128, 256, 512)),
    "tiny": ModelConfig(depths=(2, 2, 4, 2), dims=(96, 192, 384, 768), se_hidden_min=1),
    "small": ModelConfig(depths=(2, 2, 8, 2), dims=(96, 192, 384, 768), se_hidden_min=1),
    "base": ModelConfig(depths=(2, 2, 12, 2), dims=(128, 256, 512, 1024), se_hidden_min=1),
}


@dataclass(frozen=True)
class Preprocessing(_Config):
    """From an image file to the network's input; saved with the weights, so that prediction does
    the same as training.

    ``channels`` 1 or 3; ``size`` in pixels, square; ``resize`` pads to a square first
    (``letterbox``) or distorts (``stretch``). ``high_depth``: how 16-bit and float images become
    8-bit, by each image's own 0.1 and 99.9 percentile or by the format's full range. Values enter
    the network as (value / 255 - mean) / std.
    """

    size: int = 128
    channels: int = 3
    resize: Resize = "letterbox"
    high_depth: HighDepth = "percentile"
    mean: float = 0.5
    std: float = 0.5

    def __post_init__(self) -> None:
        _one_of("resize", self.resize, Resize)
        _one_of("high_depth", self.high_depth, HighDepth)
        _at_least("size", self.size, 1)
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels!r}; it must be 1 (grey) or 3 (RGB)")
        if not self.std > 0:
            raise ConfigError(f"std is {self.std!r}; it must be above 0")


@dataclass(frozen=True)
class TrainConfig(_Config):
    """One training recipe. Learning rates are per step, ``warmup`` and ``patience`` in epochs
    (patience 0: never stop early).

    ``block`` and ``depths`` override the model preset where a recipe belongs to one network; None
    keeps the preset's. ``se`` "off" takes squeeze-and-excitation out of it and changes nothing
    else, to see what it is worth.
    ``accumulate``: batches whose gradients are added before a step. ``clip_norm``: the longest
    gradient that is taken as it is (0: any).
    ``ema``: decay, a step, of the moving average of weights that is validated and kept instead of
    them (0: off).
    ``select_after``: the part of the epochs before which none is chosen as the best, nor patience
    counted: an early epoch that looks good on few validation images is luck.
    ``balance``: every class counts alike, by weights of the loss or by how often its images are
    drawn.
    ``freeze``: what does not learn, the patch embedding or, with ``backbone``, all but the
    classifier.
    ``laterality``: left stays left, so no image is mirrored. ``recompute``: spare memory by
    computing each block again in backward.
    ``cache``: decoded images stay in memory; ``disk`` also keeps them for the next run; ``off``
    decodes each again whenever it is used.
    ``save_every``: steps between checkpoints inside an epoch (0: only after each epoch).
    """

    recipe: str = "ultrasound"
    block: Block | None = None
    depths: tuple[int, ...] | None = None
    se: Gates = "on"
    optimizer: Optimizer = "adamw"
    lr: float = 5e-4
    weight_decay: float = 0.05
    schedule: Schedule = "cosine"
    warmup: float = 3.0
    epochs: int = 50
    batch_size: int = 16
    accumulate: int = 1
    patience: int = 15
    clip_norm: float = 1.0
    label_smoothing: float = 0.05
    ema: float = 0.99
    balance: Balance = "none"
    freeze: Freeze = "none"
    augmentation: Augmentation = "ultrasound"
    laterality: bool = False
    image_size: int = 128
    resize: Resize = "letterbox"
    high_depth: HighDepth = "percentile"
    select: Metric = "auc"
    select_after: float = 0.5
    precision: Precision = "auto"
    recompute: bool = False
    cache: Caching = "ram"
    save_every: int = 0
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("se", Gates), ("optimizer", Optimizer), ("schedule", Schedule), ("balance", Balance), ("freeze", Freeze),
            ("augmentation", Augmentation), ("resize", Resize), ("high_depth", HighDepth), ("select", Metric),
            ("precision", Precision), ("cache", Caching),
        ):  # fmt: skip  # a table
            _one_of(name, getattr(self, name), choices)
        for name in ("epochs", "batch_size", "accumulate", "image_size"):
            _at_least(name, getattr(self, name), 1)
        for name in ("patience", "warmup", "clip_norm", "weight_decay", "save_every"):
            _at_least(name, getattr(self, name), 0)
        for name in ("label_smoothing", "ema", "select_after"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be at least 0 and below 1")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr!r}; it must be a finite number above 0")
        if not 0 <= self.seed < 2**63:  # what the generators of both torch and NumPy take
            raise ConfigError(f"seed is {self.seed!r}; it must be at least 0 and below 2 to the power of 63")

    def model(self, preset: ModelConfig, **changes: Any) -> ModelConfig:
        """``preset`` with this recipe's block and depths, then ``changes``."""
        own: dict[str, Any] = {"block": self.block_for(preset.block)} | (
            {} if self.depths is None else {"depths": self.depths}
        )
        return replace(preset, **(own | changes))

    def block_for(self, block: Block) -> Block:
        """The block that this recipe trains in a network whose own is ``block``."""
        chosen = self.block or block
        return WITHOUT_SE.get(chosen, chosen) if self.se == "off" else chosen


# The original's README, its notebook and MedMamba's script disagree; each is named here, ours comes
# first.
RECIPES: dict[str, TrainConfig] = {
    "ultrasound": TrainConfig(),
    "readme": TrainConfig(
        recipe="readme", block="medmambase", optimizer="adam", lr=1e-3, weight_decay=1e-4, schedule="constant",
        warmup=0, epochs=20, patience=0, clip_norm=0, label_smoothing=0, ema=0, augmentation="none", resize="stretch",
        select="accuracy", select_after=0,
    ),
    "notebook": TrainConfig(
        recipe="notebook", block="notebook", depths=(2, 2, 2, 2), optimizer="adam", lr=1e-4, weight_decay=0,
        schedule="constant", warmup=0, epochs=30, patience=10, clip_norm=0, label_smoothing=0, ema=0,
        augmentation="crop_flip", resize="stretch", select="accuracy", select_after=0,
    ),
    "medmamba": TrainConfig(
        recipe="medmamba", block="medmamba", optimizer="adam", lr=1e-4, weight_decay=0, schedule="constant", warmup=0,
        epochs=100, batch_size=32, patience=0, clip_norm=0, label_smoothing=0, ema=0, augmentation="crop_flip",
        image_size=224, resize="stretch", select="accuracy", select_after=0,
    ),
}  # fmt: skip  # one recipe a paragraph, to be read side by side
