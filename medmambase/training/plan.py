"""What is known of a run before its folder is made, and a run whose folder is locked: the same of a
training and of a pretraining."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from medmambase import run_folder
from medmambase.config import ModelConfig
from medmambase.data.manifest.folders import Manifest
from medmambase.distributed import ALONE, Ranks
from medmambase.model.starting import Start

S = TypeVar("S")


@dataclass(frozen=True)
class Plan(Generic[S]):
    """Everything that is known before a folder is created. ``manifest`` is None where pictures are
    drawn, ``start`` where the network is a new one, or in a checkpoint; ``precision`` and
    ``engine`` are lines for a person."""

    settings: S
    model: ModelConfig
    start: Start | None
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
