"""A complete run folder, as training leaves it, made without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from medmambase import run_folder
from medmambase.config import RECIPES, ModelConfig, Preprocessing
from medmambase.evaluation import calibration
from medmambase.evaluation.explanation import figures as explanation_figures
from medmambase.evaluation.explanation.maps import Recalibration
from medmambase.evaluation.metrics import Metrics
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.report import figures, performance_figures, results

CLASSES = ["Fetal brain", "<script>alert('x')</script>", 'Gebärmutter & "co"']
AUDITED = {
    "method": "split by patient <b>1</b>",
    "audit": {"findings": ["duplicates: a.png (train, x) and <b>b</b>.png (test, x): the same pixels"]},
}


def put(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def change(path: Path, **values: object) -> None:
    put(path, json.loads(path.read_text(encoding="utf-8")) | values)


def plain_run(folder: Path, metrics: Metrics) -> Path:
    """Write the files of the page of a run of two classes into ``folder``, without pictures."""
    run = folder / "plain-001"
    (run / "test").mkdir(parents=True)
    settings = {
        "model": ModelConfig(num_classes=2),
        "training": RECIPES["ultrasound"],
        "preprocessing": Preprocessing(),
    }
    put(run / run_folder.DESCRIPTION, {name: one.to_dict() for name, one in settings.items()} | {"classes": ["a", "b"]})
    put(run / "test" / run_folder.METRICS, metrics.to_dict())
    counts = {"train": {"a": 3}, "val": {"a": 1}, "test": {"a": 1, "b": 2}}
    put(run / run_folder.DATA_REPORT, {"counts": counts, "skipped": [], "notes": [], "audit": {"findings": []}})
    return run


def finished_run(folder: Path) -> Path:
    """Write a complete run folder into ``folder`` and return it."""
    run = folder / "fetal ü 001"
    for name in ("test", "explain"):
        (run / name).mkdir(parents=True)
    labels = np.repeat([0, 1, 2], [15, 10, 5])
    scores = np.eye(3)[labels] / 2 + np.random.default_rng(0).random((30, 3))
    names, patients = tuple(f"test/x/{row}.png" for row in range(30)), tuple(f"p{row // 2}" for row in range(30))
    predictions = Predictions(names, labels, scores / scores.sum(axis=1, keepdims=True), tuple(CLASSES), patients)
    results.write(run / "test", predictions, calibration.fit(predictions), published=False)
    performance_figures.mistakes(
        list(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)),
        predictions.rows(performance_figures.worst(predictions)[:3]),
        run / "test" / "mistakes.png",
    )
    results.note_access(run, "D:\\my data", 30, "medmambase-train <b>x</b>")
    settings = {
        "model": ModelConfig(num_classes=3).to_dict(),
        "training": RECIPES["notebook"].to_dict(),
        "preprocessing": Preprocessing().to_dict(),
    }
    how = {
        "device": "cpu",
        "engine": "cpu: no NVIDIA GPU",
        "precision": "float32: the CPU",
        "parameters": 1234567,
        "best_epoch": 2,
        "best_score": 0.87654,
    }
    put(run / "config.json", settings | how | {"classes": CLASSES})
    counts = {
        split: dict(zip(CLASSES, row, strict=True))
        for split, row in (("train", (70, 71, 72)), ("val", (15, 15, 15)), ("test", (10, 10, 10)))
    }
    skipped = [{"path": "train/<i>x</i>.png", "reason": "image file is truncated"}]
    put(
        run / "data_report.json",
        {"root": "D:\\my data", "counts": counts, "skipped": skipped, "notes": ["val has no <b>Femur</b>"], **AUDITED},
    )
    put(run / "env.json", {"python": "3.12.1", "torch": "2.13.0+cpu"})
    curves = {"deletion": 0.25, "insertion": 0.75}
    put(
        run / "explain" / "faithfulness.json",
        {"cam": curves, "random": {"deletion": 0.5, "insertion": 0.5}, "verdict": "They mark what <b>counts</b>."},
    )
    (run / "command.txt").write_text('medmambase-train "D:\\my data" --recipe notebook\n', encoding="utf-8")
    (run / "metrics.csv").write_text("epoch,lr,train_loss\n1,0.1,2\n2,0.1,1\n", encoding="utf-8")
    figures.curves(run / "metrics.csv", run / "curves.png", 2)
    for name in ("sheet_01", "gates", "faithfulness"):
        shutil.copy(run / "curves.png", run / "explain" / f"{name}.png")
    for number in (1, 2):
        stage = Recalibration(number, torch.ones(1, 4, 4), torch.ones(1, 4, 4) / 2, torch.ones(1, 8) / 2)
        explanation_figures.recalibration(
            stage, torch.zeros(1, 1, 8, 8), ["brain"], run / "explain" / f"se_stage{number}.png"
        )
    return run
