"""A small cross-validation with every file that the commands read again, and the tables that divide
images and give them soft labels: for fuzz_readers.py."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz_mutations import Case, of_json, of_text
from fuzz_run import whole_run
from kill_test import image_set
from medmambase import CrossvalRun, run_folder, settings
from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import Sample
from medmambase.data.manifest.sources import read_manifest
from medmambase.evaluation import distillation, pooling
from medmambase.evaluation.predictions import Predictions, read_predictions, write_predictions
from medmambase.evaluation.report import of_a_crossval, report
from medmambase.inference import held_out
from medmambase.inference.predictor import Predictor
from medmambase.model import starting
from medmambase.model.starting import Learned, Origin
from medmambase.run_folder import BEST, TEST
from medmambase.training import run as trainings
from medmambase.training.crossval import run as crossval
from medmambase.training.soft_labels import soft_labels

_CLASSES, _SOFT = ("a", "b"), ("a", "b", "c")
LEARNED = Learned("drawn", 64, 2, 32, (96,), 0, ("echo",), "0.2.0", ("cyst",))


def whole_crossval(folder: Path) -> Path:
    """Write a finished one of two folds, with a distilled network, into ``folder``, without
    pictures; return its own folder."""
    made = folder / "crossval"
    run = whole_run(folder / "fold")
    starting.write_origin(run, Origin("start", "0" * 64, (LEARNED,), ("00ff" * 8,)))
    for fold in (0, 1):
        shutil.copytree(run, made / f"{run_folder.FOLD}{fold}")
        (made / f"{run_folder.FOLD}{fold}" / run_folder.REPORT).touch()  # which says that it has ended
    for name in (run_folder.DESCRIPTION, run_folder.ENVIRONMENT, run_folder.DATA_REPORT, run_folder.APPEARANCE):
        shutil.copy(run / name, made / name)
    shutil.copytree(run / TEST, made / TEST)
    whole = settings.of_crossval({"data": "C:\\scans ü", "folds": 2})
    run_folder.write_text(made / run_folder.CROSSVAL, whole.to_toml(("data",), run_folder.CROSSVAL))
    run_folder.write_private(made, {"key": "00ff" * 8, "data": "/home/a/scans"})
    _parts(made)
    read = [pooling.of_fold(fold) for fold in run_folder.folds_of(made)]
    told = pooling.over_folds([one for _, one in read], together=True)
    for row in told["folds"]:
        row["best_epoch"] = 2
    run_folder.write_json(made / run_folder.FOLDS, told)
    run_folder.write_json(made / run_folder.LOSS, {"on": TEST} | distillation.measure(read[0][0], read[1][0]))
    return made


def tables(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a CSV file."""
    made = whole_crossval(folder)
    fold = made / f"{run_folder.FOLD}1"
    for number in range(8):
        path = folder / "scans" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    splits, soft = folder / "divided.csv", folder / "soft.csv"
    rows = [(f"{'ab'[i % 2]}/{i}.png", ("train", "val", "test")[i // 2 % 3], f"p{i // 2}") for i in range(8)]
    run_folder.write_rows(splits, ("path", "split", "patient"), rows)
    training = image_set(12, "train", 8)
    chance = np.random.default_rng(0).dirichlet(np.ones(len(_SOFT)), 12)
    names = tuple(sample.name for sample in training.samples)
    write_predictions(soft, Predictions(names, training.labels.numpy(), chance, _SOFT))

    def divide() -> str:
        found = read_manifest(folder / "scans", seed=0, splits=splits)
        return f"{'all' if len(found.samples) == 8 else 'some'} images divided"

    own = fold / run_folder.SPLITS_OF_FOLD
    shutil.copy(splits, own)
    whole = replace(settings.of_crossval({"data": str(folder / "scans"), "folds": 2}), fold=1)

    def divide_fold() -> str:
        found = trainings._manifest(whole, no_progress, fold)
        return f"{'all' if len(found.samples) == 8 else 'some'} images divided for a fold"

    def learn() -> str:
        return f"soft labels {tuple(soft_labels(soft, training, _SOFT).shape)}"

    return [
        Case(splits, of_text, divide),
        Case(own, of_text, divide_fold),
        Case(soft, of_text, learn),
        Case(made / run_folder.PARTS, of_text, partial(_parts, made)),
        Case(fold / TEST / run_folder.PREDICTIONS, of_text, partial(_pooled, made)),
        Case(fold / run_folder.LAST / run_folder.IMAGES, of_text, partial(_started_from, fold)),
    ]


def settings_files(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a TOML file."""
    made = whole_crossval(folder)
    path = made / run_folder.CROSSVAL
    return [
        Case(path, of_text, lambda: _set(settings.of_crossval({}, path))),
        Case(path, of_text, lambda: f"{'two' if len(run_folder.folds_of(made)) == 2 else 'other'} folds"),
        Case(made / run_folder.PRIVATE, of_text, lambda: f"cross-validation of {CrossvalRun(made).folder.name}"),
    ]


def objects(folder: Path) -> list[Case]:
    """Write them, and return the cases of what is read from a JSON file."""
    made = whole_crossval(folder)
    fold = made / f"{run_folder.FOLD}1"
    told = [made / name for name in (run_folder.FOLDS, run_folder.LOSS, run_folder.DESCRIPTION, run_folder.DATA_REPORT)]
    told.append(made / TEST / run_folder.METRICS)
    of_fold = (run_folder.DESCRIPTION, run_folder.DATA_REPORT, run_folder.APPEARANCE, run_folder.ENVIRONMENT)
    return [
        Case(fold / run_folder.START, of_json, partial(_started_from, fold)),
        *(Case(path, of_json, lambda: report.write_report(made).name) for path in told),
        *(Case(fold / name, of_json, partial(_gathered, made)) for name in of_fold),
        Case(fold / BEST / run_folder.DESCRIPTION, of_json, partial(_predicted, made)),
        Case(fold / run_folder.CALIBRATION, of_json, partial(_predicted, made)),
    ]


def _set(found: settings.Settings) -> str:
    found.network()
    return f"settings of {'two' if found.folds == 2 else 'other'} folds"


def _divided(made: Path) -> pooling.Division:
    found = read_predictions(made / f"{run_folder.FOLD}0" / TEST / run_folder.PREDICTIONS)
    rows = zip(found.names, found.labels.tolist(), found.patients, strict=True)
    samples = tuple(Sample(Path(name), label, "test", name, patient) for name, label, patient in rows)
    return pooling.Division(samples, "2 folds", dict.fromkeys(found.names))


def _parts(made: Path) -> str:
    crossval._write_parts(made / run_folder.PARTS, _divided(made), _CLASSES)
    return "the same folds"


def _pooled(made: Path) -> str:
    read = [pooling.of_fold(fold)[0] for fold in run_folder.folds_of(made)]
    return f"{len(pooling.pooled(read, _divided(made)).names) > 0} pooled"


def _started_from(fold: Path) -> str:
    pixels, _ = held_out.learned_from(fold)
    origin = starting.read(fold / BEST).origin
    return (
        f"{'some' if pixels else 'no'} pixels, {'some' if origin.seen else 'none'} seen: {len(origin.sentence()) > 0}"
    )


def _gathered(made: Path) -> str:
    runs = run_folder.folds_of(made)
    files = of_a_crossval.gathered(runs, _divided(made), [pooling.of_fold(run)[1] for run in runs])
    for name, values in files.items():
        run_folder.write_json(made / name, values)
    return f"{len(files)} files"


def _predicted(made: Path) -> str:
    predictor = Predictor.load(made, device="cpu", backend="torch")
    if predictor.network.preprocessing.size > 1000:
        return "networks of large images, which take their time"
    (one,) = predictor(np.zeros((8, 8), dtype=np.uint8))
    return "a prediction" if one.problem is None else one.problem
