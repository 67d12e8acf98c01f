"""Train one fold of a cross-validation, from files of images to the report, as kill_test.py wants
it: small, and such that the same bytes come out of it whenever it is not disturbed.

``python -m kill_folds FOLDER SETTINGS COMMAND`` is what a cross-validation starts for each fold
(``training/crossval/fold.py``), with figures that are not painted.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase import train as train_run
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import Progress
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.report.report import ReportError
from medmambase.training.crossval import fold as program

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


def leave_unpainted() -> None:
    """Write a picture of one pixel for each figure of this process: to paint them would take most
    of the time of a small run."""
    from matplotlib.figure import Figure

    def one_pixel(figure: Figure, path: Path, **_: Any) -> None:
        Image.new("L", (1, 1)).save(path, "PNG")

    Figure.savefig = one_pixel  # type: ignore[assignment,method-assign]  # of the same use


if __name__ == "__main__":
    leave_unpainted()
    sys.exit(program.main(sys.argv[1:]))
