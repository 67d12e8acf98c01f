"""What stands in each line of a table, as the settings of its trainings. It imports no PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from medmambase.config import PRESETS, ConfigError, ModelConfig
from medmambase.opponent_recipes import OPPONENT_RECIPES
from medmambase.packaged import NONE, WORDS
from medmambase.settings import Settings, resolve
from medmambase.validation import nearest

SEEDS = 3  # where nobody says how many
MODELS = ("swin_tiny", "medmamba", "medmambase")  # the original's table, where nobody names others
# Networks that are known by their blocks; every other line is named as --model names it.
_OF_BLOCKS: dict[str, dict[str, Any]] = {
    "medmamba": {"model": "tiny", "se": "off"},
    "medmambase": {"model": "tiny", "se": "on"},
}
KNOWN = (*_OF_BLOCKS, *PRESETS, *OPPONENT_RECIPES)


@dataclass(frozen=True)
class Line:
    """A line of the table: the name of its network, and the settings of each training, which
    differ in their seeds alone."""

    name: str
    trainings: tuple[Settings, ...]


def lines(models: Sequence[str], seeds: int, flags: Mapping[str, Any], file: Path | None = None) -> list[Line]:
    """Resolve the settings of all trainings: those that were given by ``flags`` and in ``file``, of
    each network by its own recipe where nobody names one, with as many ``seeds``, from that of
    ``flags`` on. All have the same images in the same splits.

    Raises ConfigError where there is no network or no seed, for a network that does not exist or
    stands twice, be it by two names, for the path of weights to start from or soft labels, and
    where a recipe trains another network. Opponents start as they do without ``start``.
    """
    if not models or seeds < 1:
        raise ConfigError(f"--models names {len(models)} and --seeds is {seeds}; give a table one of each at least")
    for name in models:
        if name not in KNOWN:
            raise ConfigError(
                f"--models has {name!r}; the nearest is {nearest(name, KNOWN)!r}, and there are {', '.join(KNOWN)}"
            )
    if len(set(models)) < len(models):
        raise ConfigError(f"--models is {' '.join(models)}; name each network once")
    start = flags["start"] if "start" in flags else resolve({}, file).start if file is not None else NONE
    if start not in WORDS:
        raise ConfigError(
            f"{'--start' if 'start' in flags else f'{file}: start'} is {start!r}, but the networks of a table have no "
            f"weights in common; give one of {', '.join(WORDS)}, or train single networks with medmambase-train and "
            f"compare them with medmambase-compare"
        )
    found = [_line(name, seeds, flags, file) for name in models]
    for one, other in combinations(found, 2):
        if one.trainings == other.trainings:
            raise ConfigError(f"--models has {one.name} and {other.name}, which are one network here; leave one out")
    if not (found[0].trainings[0].data or found[0].trainings[0].demo):
        raise ConfigError("give a folder of images, a CSV or a MedMNIST .npz, or --demo to train on synthetic images")
    return found


def _line(name: str, seeds: int, flags: Mapping[str, Any], file: Path | None) -> Line:
    own = _OF_BLOCKS.get(name, {"model": name})
    if name in OPPONENT_RECIPES:  # which is what it is
        own = own | {"start": NONE}
    first = resolve({**flags, **own}, file)
    if first.soft_labels:
        raise ConfigError(
            f"--soft-labels is {first.soft_labels!r}, but a table compares what networks learn from the images; leave "
            f"it out"
        )
    network = first.network()
    if name in _OF_BLOCKS and isinstance(network, ModelConfig) and network.block != name:
        raise ConfigError(
            f"--recipe {first.training.recipe} trains blocks of type {network.block!r}, and a line of the table is "
            f"{name!r}; choose another recipe, or leave the line out"
        )
    # All are tested on the same images, however they are seeded.
    shared = first.changed("split_seed", first.seed_of_splits)
    begin = first.training.seed
    return Line(name, tuple(shared.changed("seed", seed) for seed in range(begin, begin + seeds)))
