"""Train one fold of a cross-validation, from files of images to the report, as kill_test.py wants
it: small, and such that the same bytes come out of it whenever it is not disturbed.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase import train as train_run
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import Progress
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.report.report import ReportError

_IMAGES, _START = "images", "start"
_PATIENTS = 18


def prepare(folder: Path) -> None:
    """Draw images of three classes, two of each patient, and the network that all folds start
    from."""
    rng = np.random.default_rng(0)
    for patient in range(_PATIENTS):
        for view in range(2):
            path = folder / _IMAGES / "abc"[patient % 3] / f"{patient}_{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 100, (16, 16), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(70 * (patient % 3))).save(path)
    config = ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16))
    MedMambaSE(config, preprocessing=Preprocessing(size=16, channels=1)).save(folder / _START)


def train(runs: Path, name: str, config: TrainConfig, fold: tuple[int, int], progress: Progress) -> None:
    """Train a fold of so many in a run of this name below ``runs``, from wherever it stands there;
    ``prepare`` was given the folder of ``runs``. Raises what ``medmambase.train`` raises,
    RunFolderError for whatever cannot be written."""
    usual = TrainConfig().to_dict()
    given = {name: value for name, value in config.to_dict().items() if value != usual[name]}
    try:
        train_run(
            runs.parent / _IMAGES, weights=runs.parent / _START, runs=runs, name=name, group_regex=r"(\d+)_",
            plain_patients=True, fold=fold[0], folds=fold[1], resume=True, progress=progress, **given,
        )  # fmt: skip  # the data, then the run
    except (FigureError, ReportError, OSError) as error:
        raise run_folder.RunFolderError(str(error)) from error
