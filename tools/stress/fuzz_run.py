"""A small run with every file that the commands read again, for fuzz_readers.py."""

from collections import Counter
from pathlib import Path

import numpy as np

from medmambase import MedMambaSE, ModelConfig, run_folder
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.audit import Audit, Duplicate
from medmambase.evaluation import calibration
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.medmnist import as_medmnist
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.evaluation.report import results
from medmambase.inference.appearance import LEVELS, Appearance

SMALL = ModelConfig(num_classes=2, in_chans=1, depths=(1,), dims=(8,), state=2)
TRAINING = TrainConfig(epochs=2, batch_size=4, image_size=8, warmup=0, ema=0.9, select_after=0)
GREY = Preprocessing(size=8, channels=1)


def whole_run(folder: Path) -> Path:
    """Write the run into ``folder``, without pictures, and return its folder."""
    run = folder / "run"
    for name in (run_folder.TEST, run_folder.BEST, run_folder.VAL, run_folder.LAST, run_folder.EXPLAIN):
        (run / name).mkdir(parents=True)
    MedMambaSE(SMALL, classes=("a", "b"), preprocessing=GREY).save(run / run_folder.BEST)
    _write_results(run)
    described = {"model": SMALL.to_dict(), "training": TRAINING.to_dict(), "preprocessing": GREY.to_dict()}
    told = {"classes": ["a", "b"], "device": "cpu", "engine": "torch", "precision": "float32", "parameters": 1000}
    told |= {"best_epoch": 2, "best_score": 0.75, "selected_by": "auc"}
    run_folder.write_json(run / run_folder.DESCRIPTION, described | told)
    run_folder.write_json(run / run_folder.ENVIRONMENT, {"python": "3.12.1", "torch": "2.13.0"})
    run_folder.write_json(run / run_folder.APPEARANCE, Appearance(12, {}, 0.5, (1 / LEVELS,) * LEVELS, 0.2).to_dict())
    (run / run_folder.HISTORY).write_text(
        "epoch,lr,train_loss,train_accuracy,val_loss,val_auc\n1,0.1,0.7,0.5,0.7,0.5\n2,0.1,0.6,0.75,0.7,\n",
        encoding="utf-8",
        newline="\n",
    )
    splits = [(f"{i}.png", "ab"[i % 2], f"p{i // 2}", ("train", "val", "test")[i // 2 % 3]) for i in range(8)]
    run_folder.write_rows(run / run_folder.SPLITS, ("path", "label", "patient", "split"), splits)
    seen = [(split, name, str(int(label == "b")), f"{i:032x}") for i, (name, label, _, split) in enumerate(splits)]
    run_folder.write_rows(run / run_folder.LAST / run_folder.IMAGES, ("split", "name", "label", "pixels"), seen)
    return run


def _write_results(run: Path) -> None:
    chance, test = np.random.default_rng(0).random((12, 1)), run / run_folder.TEST
    found = Predictions(
        tuple(f"test/{i}.png" for i in range(12)),
        np.arange(12) % 2,
        np.hstack([chance, 1 - chance]),
        ("a", "b"),
        tuple(f"p{i // 2}" for i in range(12)),
        np.arange(12) < 2,
    )
    write_predictions(test / run_folder.PREDICTIONS, found)
    learned, figures = calibration.fit(found), evaluate_with_intervals(found)
    assert learned is not None
    run_folder.write_json(run / run_folder.CALIBRATION, learned.to_dict())
    run_folder.write_json(test / run_folder.METRICS, figures.to_dict())
    run_folder.write_json(test / run_folder.CALIBRATED, results.on_test(found, figures, learned))
    run_folder.write_json(test / run_folder.MEDMNIST, as_medmnist(found.labels, found.probabilities))
    results.note_access(run, "scans", 12, "medmambase-train scans")
    pair = Duplicate(("1.png", "5.png"), ("train", "test"), ("b", "b"), 0.97, exact=False)
    patients, leaked = {"p1": Counter(train=1, val=1)}, frozenset({"5.png"})
    audit = Audit((("0.png", "2.png"),), (pair.names,), (pair,), (pair,), patients, leaked, Counter(), Counter())
    told: dict[str, object] = {"root": "scans", "method": "drawn", "notes": ["none"]}
    told |= {"counts": {"train": {"a": 2, "b": 2}}, "skipped": [{"path": "x.png", "reason": "no picture"}]}
    run_folder.write_json(run / run_folder.DATA_REPORT, told | {"audit": audit.to_dict()})
    curves = {"deletion": 0.4, "insertion": 0.6}
    tested = {"cam": curves, "random": curves, "verdict": "None is better."}
    run_folder.write_json(run / run_folder.EXPLAIN / run_folder.FAITHFULNESS, tested)
