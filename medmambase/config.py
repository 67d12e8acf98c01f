"""Define every default: network shapes, preprocessing, recipes."""

from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field

from medmambase.validation import check, nearest

Block = Literal["medmambase", "medmamba", "notebook", "medmamba_v0"]
Opponent = Literal["resnet18", "densenet121", "swin_tiny", "efficientnet_lite0"]
Gates = Literal["on", "off"]
Odd = Literal["pad", "crop"]
Init = Literal["corrected", "upstream"]
Resize = Literal["letterbox", "stretch"]
HighDepth = Literal["percentile", "range"]
Optimizer = Literal["adamw", "adam"]
Schedule = Literal["cosine", "constant", "steps"]
Augmentation = Literal["ultrasound", "crop_flip", "trivial", "none"]
Balance = Literal["none", "weights", "sampler"]
Freeze = Literal["none", "embedding", "backbone"]
Caching = Literal["ram", "disk", "off"]
Metric = Literal["auc", "balanced_accuracy", "accuracy"]
Precision = Literal["auto", "float32", "bfloat16"]
Graphs = Literal["auto", "off"]


# Settings that change no result: a run may be resumed with others.
CHANGE_NO_RESULT = ("graphs", "cache", "save_every", "live", "tensorboard")
# Settings that a checkpoint names only where they ask for something: one that was written before
# there were such settings is resumed all the same.
CAME_LATER = {"backbone_lr_factor": 1.0, "mixup": 0.0}


def first_counted(select_after: float, epochs: int) -> int:
    """Return the first epoch that may be chosen as the best; see ``TrainConfig.select_after``."""
    return int(select_after * epochs) + 1


class ConfigError(ValueError):
    """A setting is invalid; the message names it, its value, and what is valid."""


def _grey_or_rgb(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("1 (grey) or 3 (RGB)")
    return channels


def _widths(dims: tuple[int, ...]) -> tuple[int, ...]:
    if any(dim % 2 for dim in dims):
        raise ValueError("even widths, because each block splits its channels in two")
    if any(wide != 2 * narrow for narrow, wide in pairwise(dims)):
        raise ValueError("widths that double from stage to stage, because patch merging doubles them")
    return dims


def check_frames(wish: str) -> str:
    """Return ``wish``, a choice of frames. Raises ValueError with what was wanted."""
    number = wish.isascii() and wish.isdigit() and 0 < len(wish.lstrip("0")) < 7
    if wish not in ("first", "middle", "all") and not number:
        raise ValueError("first, middle, all, or how many frames, as a whole number above 0")
    return wish


Frames = Annotated[str, AfterValidator(check_frames)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=10_000)]  # of a square picture; readers take 100 million pixels at most
Part = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what the generators of both torch and NumPy take
ImageChannels = Annotated[int, AfterValidator(_grey_or_rgb)]
_FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Positives = Annotated[tuple[Positive, ...], Field(min_length=1), _FromList]
Widths = Annotated[tuple[Annotated[int, Field(ge=2)], ...], AfterValidator(_widths), _FromList]


class Checked:
    """Check every field; read and write plain dictionaries."""

    def __post_init__(self) -> None:
        for name, wanted in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, check(name, getattr(self, name), wanted, ConfigError))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values; tuples become lists."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Invert ``to_dict``. Raises ConfigError for an unknown key, naming the nearest known one,
        and for an invalid value."""
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} is {values!r:.80}; it must be named values, as to_dict gives them")
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # every subclass is a dataclass
        for name in values:
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no field {name!r}; the nearest is {nearest(name, known)!r}")
        return cls(**values)


class _Network(Checked):
    multi_label: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values; ``multi_label`` only where it is true, so that what was
        written before it came is still the same."""
        return {key: value for key, value in super().to_dict().items() if key != "multi_label" or value}


@dataclass(frozen=True)
class ModelConfig(_Network):
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
    ``multi_label``: an image may have several classes, or none (``model/task.py``).
    """

    num_classes: Positive = 6
    in_chans: ImageChannels = 3
    block: Block = "medmambase"
    depths: Positives = (2, 2, 4, 2)
    dims: Widths = (96, 192, 384, 768)
    state: Positive = 16
    se_reduction: Positive = 16
    se_hidden_min: Positive = 8
    se_hidden: Positives | None = None
    se_scale: AboveZero | None = None
    drop_rate: Part = 0.0
    drop_path: Part = 0.1
    odd: Odd = "pad"
    init: Init = "corrected"
    multi_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.dims):
            raise ConfigError(f"depths {self.depths} and dims {self.dims} must have the same length")
        if self.se_hidden is not None and len(self.se_hidden) != sum(self.depths):
            raise ConfigError(
                f"se_hidden is {self.se_hidden}; it must give a width for each of the {sum(self.depths)} blocks, or be "
                f"None"
            )

    def words(self) -> str:
        """Return block, depths and widths, for a person."""
        return f"{self.block}, depths {self.depths}, widths {self.dims}{', multi-label' if self.multi_label else ''}"

    def gate_widths(self) -> tuple[int, ...]:
        """The hidden width of each block's squeeze-and-excitation gate, in order."""
        channels = (dim for dim, depth in zip(self.dims, self.depths, strict=True) for _ in range(depth))
        by_rule = (max(self.se_hidden_min, c // self.se_reduction) for c in channels)
        return tuple(by_rule) if self.se_hidden is None else self.se_hidden


@dataclass(frozen=True)
class OpponentConfig(_Network):
    """Another network to compare with, which ``model/opponents.py`` builds: its ``opponent`` says
    which. Nothing but its ends can be chosen: as it was published, it is an opponent.
    ``multi_label``: as of ``ModelConfig``."""

    opponent: Opponent
    num_classes: Positive = 6
    in_chans: ImageChannels = 3
    multi_label: bool = False

    def words(self) -> str:
        """Return its name."""
        return f"{self.opponent}{', multi-label' if self.multi_label else ''}"


AnyConfig = ModelConfig | OpponentConfig
SHRINKS = 32  # every opponent's last map is so many times smaller than its image, which is no smaller


def network_config(values: dict[str, Any]) -> AnyConfig:
    """Invert ``to_dict`` of either kind of network. Raises ConfigError."""
    return OpponentConfig.from_dict(values) if "opponent" in values else ModelConfig.from_dict(values)


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
class Preprocessing(Checked):
    """Define how an image file becomes the network's input; saved with the weights, so that
    prediction and training do the same.

    ``channels`` 1 or 3; ``size`` in pixels, square; ``resize`` pads to a square first
    (``letterbox``) or distorts (``stretch``). ``high_depth``: how 16-bit and float images become
    8-bit, by each image's own 0.1 and 99.9 percentile or by the format's full range. Values enter
    the network as (value / 255 - mean) / std.
    """

    size: Side = 128
    channels: ImageChannels = 3
    resize: Resize = "letterbox"
    high_depth: HighDepth = "percentile"
    mean: float = 0.5
    std: AboveZero = 0.5


@dataclass(frozen=True)
class TrainConfig(Checked):
    """One training recipe. Learning rates are per step, ``warmup`` and ``patience`` in epochs
    (patience 0: never stop early).

    ``block`` and ``depths`` override the model preset where a recipe belongs to one network; None
    keeps the preset's. ``se`` "off" takes squeeze-and-excitation out of it and changes nothing
    else, to see what it is worth.
    ``backbone_lr_factor`` multiplies the learning rate of everything but the classifier.
    ``schedule``: after the warm-up the rate follows a half cosine, stays, or falls to a tenth after
    a half and again after three quarters of the epochs (``steps``).
    ``accumulate``: batches whose gradients are added before a step. ``clip_norm``: the longest
    gradient that is taken as it is (0: any).
    ``mixup``: a, of the Beta(a, a) from which the share of each batch's images in their mixtures
    is drawn (0: off).
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
    ``graphs``: replay steps as CUDA graphs where that gives the same bits.
    ``cache``: decoded images stay in memory; ``disk`` also keeps them for the next run; ``off``
    decodes each again whenever it is used.
    ``save_every``: steps between checkpoints inside an epoch (0: only after each epoch).
    ``live``: the report is written after each epoch too, as far as it goes.
    """

    recipe: str = "ultrasound"
    block: Block | None = None
    depths: Positives | None = None
    se: Gates = "on"
    optimizer: Optimizer = "adamw"
    lr: AboveZero = 5e-4
    backbone_lr_factor: AboveZero = 1.0
    weight_decay: NotNegative = 0.05
    schedule: Schedule = "cosine"
    warmup: NotNegative = 3.0
    epochs: Positive = 50
    batch_size: Positive = 16
    accumulate: Positive = 1
    patience: Count = 15
    clip_norm: NotNegative = 1.0
    label_smoothing: Part = 0.05
    mixup: NotNegative = 0.0
    ema: Part = 0.99
    balance: Balance = "none"
    freeze: Freeze = "none"
    augmentation: Augmentation = "ultrasound"
    laterality: bool = False
    image_size: Side = 128
    resize: Resize = "letterbox"
    high_depth: HighDepth = "percentile"
    select: Metric = "auc"
    select_after: Part = 0.5
    precision: Precision = "auto"
    recompute: bool = False
    graphs: Graphs = "auto"
    cache: Caching = "ram"
    save_every: Count = 0
    live: bool = False
    tensorboard: bool = False
    seed: Seed = 0

    def model(self, preset: ModelConfig, **changes: Any) -> ModelConfig:
        """Return ``preset`` with this recipe's block and depths, then ``changes``. Raises TypeError
        for a preset that is no ModelConfig."""
        wanted: object = preset
        if not isinstance(wanted, ModelConfig):
            raise TypeError(f"preset is {wanted!r:.80}; it must be a ModelConfig, such as PRESETS['tiny']")
        own: dict[str, Any] = {"block": self.block_for(preset.block)} | (
            {} if self.depths is None else {"depths": self.depths}
        )
        return replace(preset, **(own | changes))

    def block_for(self, block: Block) -> Block:
        """Return the block that this recipe trains in a network whose own is ``block``."""
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
