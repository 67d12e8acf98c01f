"""What is known of a run before its folder is made, and a run whose folder is locked: the same of a
training and of a pretraining."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from medmambase import run_folder
from medmambase.config import AnyConfig, ConfigError
from medmambase.data.manifest.folders import Manifest
from medmambase.distributed import ALONE, Ranks
from medmambase.machine import device_name
from medmambase.model.classifier import Trainable
from medmambase.model.network import MedMambaSE
from medmambase.model.opponents import PublishedWeights
from medmambase.model.starting import NEW_WEIGHTS, Start, read_origin
from medmambase.privacy import without_paths
from medmambase.settings import Settings
from medmambase.settings_file import flag

S = TypeVar("S")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan(Generic[S]):
    """Everything that is known before a folder is created. ``manifest`` is None where pictures are
    drawn, ``start`` where the network is a new one, or in a checkpoint; ``precision`` and
    ``engine`` are lines for a person."""

    settings: S
    model: AnyConfig
    start: Start | PublishedWeights | None
    manifest: Manifest | None
    device: torch.device
    dtype: torch.dtype
    precision: str
    engine: str


P = TypeVar("P", bound=Plan[Any])


@dataclass(frozen=True)
class Started(Generic[P]):
    """A run that is ready to be trained, its folder locked by this process; ``resumes`` if it was
    started before."""

    plan: P
    folder: Path
    resumes: bool
    ranks: Ranks = ALONE


@contextmanager
def locked(
    resumed: Path | None, runs: str, name: Callable[[], str], ranks: Ranks = ALONE, patience: float = 0
) -> Iterator[Path]:
    """Create the folder of a run in ``runs``, or take that of ``resumed``, and lock it while the
    context lasts; of several processes the first one does both for all.

    ``name``: of a new folder, without its number; it is asked for nothing else. ``patience``: as of
    ``run_folder.held``. Raises RunFolderError.
    """
    made = str(run_folder.create(Path(runs), name())) if ranks.first and not resumed else ""
    folder = resumed or Path(ranks.agree(made))
    with run_folder.held(folder, patience) if ranks.first else nullcontext():
        yield folder


def describe(network: Trainable, plan: Plan[Any], folder: Path, say: Say, more: int = 0) -> dict[str, Any]:
    """Print network, start, device, backend and precision; return what ``config.json`` says of
    them. ``more``: devices beside this process's own."""
    parameters = sum(p.numel() for p in network.parameters())
    origin, device = read_origin(folder), device_name(plan.device)
    started_from = origin.sentence() if origin else "not recorded" if plan.settings.weights else NEW_WEIGHTS
    say(
        f"network:   {network.config.words()}, {parameters / 1e6:.2f} M parameters"
        f"{' without a head' if isinstance(network, MedMambaSE) and network.head is None else ''}"
    )
    say(f"start:     {started_from}")
    say(f"device:    {device}{f' and {more} more' if more else ''}")
    say(f"backend:   {plan.engine}")
    say(f"precision: {plan.precision}")
    return {
        "device": device, "engine": without_paths(plan.engine), "precision": plan.precision, "parameters": parameters,
        "start": started_from,
    }  # fmt: skip  # the file's content


def check_several(settings: Settings) -> None:
    """Raise ConfigError for what images that may have several classes cannot be trained by."""
    for name, value, advice in (
        ("soft_labels", settings.soft_labels, "leave it out"),
        ("balance", settings.training.balance if settings.training.balance == "sampler" else None, "choose weights"),
    ):
        if value is not None:
            raise ConfigError(
                f"{flag(name)} is {value!r}, which takes one class an image, and these images may have several; "
                f"{advice}"
            )
