"""Images, a network and settings of a cross-validation that takes seconds, for its tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medmambase import MedMambaSE
from medmambase.config import ModelConfig, Preprocessing
from medmambase.data.decoded.image_set import no_progress
from medmambase.settings import Settings, of_run
from medmambase.training.run import started, train_run

PATIENTS = 8
SMALL: dict[str, Any] = {
    "folds": 2, "epochs": 1, "batch_size": 4, "image_size": 16, "augmentation": "none", "device": "cpu",
    "group_regex": r"(\d+)_", "plain_patients": True, "save_every": 1, "backend": "torch",
}  # fmt: skip  # a table


def write_scans(folder: Path, first: int = 0) -> Path:
    """Write bright and dark images of two classes, each of PATIENTS with two, and a broken one;
    patients are numbered from ``first`` on. Of the first patient of each class they are as those of
    the other, so that nothing predicts them all and every figure has an interval."""
    rng = np.random.default_rng(first)
    for label, mean in (("cyst", 90), ("solid", 150)):
        (folder / label).mkdir(parents=True)
        for patient in range(PATIENTS):
            for view in range(2):
                pixels = rng.normal(mean if patient else 240 - mean, 50, (16, 16)).clip(0, 255).astype(np.uint8)
                number = first + patient + PATIENTS * (label == "solid")
                Image.fromarray(pixels).save(folder / label / f"{number}_{view}.png")
    (folder / "cyst" / f"{first}_broken.png").write_bytes(b"no picture")
    return folder


def write_start(folder: Path) -> Path:
    """Write a network that is small enough to be trained in a second."""
    config = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1, num_classes=2, state=2)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # whichever tests ran before
        MedMambaSE(config, preprocessing=Preprocessing(size=16, channels=1)).save(folder)
    return folder


def here(
    folds: Sequence[Path],
    settings: Settings,
    at: Sequence[str | None],
    command: str,
    ended: Callable[[Path, str | None], object],
) -> None:
    """Train the folds in this process, one after the other."""
    for fold in folds:
        with started(of_run(fold, {}), fold) as begun:
            train_run(begun, command, lambda line: None, no_progress)
        ended(fold, None)
