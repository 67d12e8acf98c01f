"""What ``medmambase-train`` shows of a training: its epochs, the figures of the test images, and
the pictures.

Stop before: the best network of ``training/loop.py``. Next stop: ``evaluation/report.py``, from the
files that are written here.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from medmambase.data.audit import Audit
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.reading.images import normalise
from medmambase.evaluation import calibration
from medmambase.evaluation.calibration import Calibration
from medmambase.evaluation.explanation import folder as explanations
from medmambase.evaluation.metrics import Interval, Metrics, as_medmnist
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.evaluation.report import figures, performance_figures, results
from medmambase.files import write_json
from medmambase.model.network import MedMambaSE
from medmambase.training import loop
from medmambase.training.history import Epoch


def predicted(
    network: MedMambaSE, images: ImageSet, leaked: Collection[str], batch_size: int, dtype: torch.dtype
) -> Predictions:
    """What the network says of every image, beside what is known of it; ``leaked``: names of those
    that have a twin, or their patient, elsewhere."""
    return Predictions(
        tuple(sample.name for sample in images.samples),
        images.labels.numpy(),
        loop.predict(network, images, batch_size, dtype),
        network.classes,
        tuple(sample.patient or facts.patient for sample, facts in zip(images.samples, images.facts, strict=True)),
        np.array([sample.name in leaked for sample in images.samples], dtype=bool),
    )


def learn_from_validation(run: Path, validation: Predictions) -> Calibration | None:
    """Keeps the predictions of val, and what they tell for the test, in ``run``; None without
    validation images."""
    found = calibration.fit(validation)
    if found is not None:
        write_predictions(run / "val" / results.PREDICTIONS, validation)
        write_json(run / results.CALIBRATION, found.to_dict())
    return found


def test(
    folder: Path, predictions: Predictions, images: ImageSet, found: Calibration | None, published: bool
) -> list[str]:
    """Writes everything that is said of the test images into ``folder``; returns lines for a
    person. ``images``: the same, in the same order.

    Of a ``published`` MedMNIST set its own evaluator's figures go into ``medmnist.json``.
    """
    metrics = results.write(folder, predictions, found, published)
    wrong = performance_figures.worst(predictions)
    if wrong:
        performance_figures.mistakes(images.images[wrong], predictions.rows(wrong), folder / "mistakes.png")
    lines = [summary(metrics)]
    if published:
        benchmark = as_medmnist(predictions.labels, predictions.probabilities)
        lines.append(
            f"as MedMNIST's evaluator computes them: ACC {_figure(benchmark['ACC'])}, AUC {_figure(benchmark['AUC'])}"
        )
    return lines


def draw_twins(images: ImageSet, found: Audit, png: Path) -> None:
    """Twins of different classes and in different splits, side by side, the worst first; no file
    where there are none."""
    pairs = list({pair.names: pair for pair in (*found.conflicts, *found.across)}.values())[: figures.MOST_TWINS]
    if not pairs:
        return
    row_of = {sample.name: row for row, sample in enumerate(images.samples)}
    shown = [tuple(images.images[[row_of[name]]][0] for name in pair.names) for pair in pairs]
    captions = [
        tuple(
            f"{split}, {label}\n{name}"
            for name, split, label in zip(pair.names, pair.splits, pair.classes, strict=True)
        )
        for pair in pairs
    ]
    likeness = ["the same pixels" if pair.exact else f"likeness {pair.likeness:.3f}" for pair in pairs]
    png.parent.mkdir(exist_ok=True)
    figures.twins(shown, captions, likeness, png)


def draw(network: MedMambaSE, images: ImageSet, run: Path, best_epoch: int) -> None:
    """The curves, and what the network looks at on a few images: the first ones of each class."""
    figures.curves(run / "metrics.csv", run / "curves.png", best_epoch)
    labels = images.labels.tolist()
    turns = [[row for row, label in enumerate(labels) if label == own] for own in sorted(set(labels))]
    longest = max(map(len, turns), default=0)
    rows = [of_class[turn] for turn in range(longest) for of_class in turns if turn < len(of_class)][
        : explanations.ON_A_SHEET
    ]
    pictures, names = images.images[rows], tuple(images.samples[row].name for row in rows)
    batch = normalise(pictures.to(next(network.parameters()).device), network.preprocessing)
    explanations.write(
        run / "explain",
        network,
        network.classes,
        batch,
        explanations.Subjects(pictures, names, tuple(labels[row] for row in rows)),
    )


def line(epoch: Epoch) -> str:
    """An epoch in one line."""
    return (
        f"epoch {epoch.epoch:3}  train loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.3f}   val loss "
        f"{_wide(epoch.val_loss)}  "
        f"accuracy {_wide(epoch.val_accuracy)}  balanced {_wide(epoch.val_balanced_accuracy)}  AUC "
        f"{_wide(epoch.val_auc)}   {epoch.seconds:.1f} s"
    )


def summary(metrics: Metrics) -> str:
    """The test figures in some lines: all together with their intervals at 95 %, without leaked
    images, and class by class."""
    area = "AUC" if len(metrics.per_class) == 2 else "macro AUC"  # of two classes there is one curve, and no mean
    lines = [f"test: {_headline(metrics, area)}"]
    if metrics.without_leaked:
        leaked = f"{metrics.images - metrics.without_leaked.images} of {metrics.images} test images"
        lines.append(
            f"without {leaked} whose twin or patient is in train or val: {_headline(metrics.without_leaked, area)}"
        )
    wide = max(len(one.name) for one in metrics.per_class)
    lines.append(f"{'class':{wide}}  images  sensitivity  specificity     F1    AUC")
    lines += [
        f"{one.name:{wide}}  {one.support:6}  {_figure(one.sensitivity):>11}  {_figure(one.specificity):>11}  "
        f"{_figure(one.f1):>5}  {_figure(one.auc):>5}"
        for one in metrics.per_class
    ]
    return "\n".join(lines)


def _headline(metrics: Metrics, area: str) -> str:
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": area}
    return ", ".join(
        f"{words} {_figure(metrics.flat()[name])}{_between(metrics.intervals.get(name))}"
        for name, words in names.items()
    )


def _between(interval: Interval | None) -> str:
    return f" ({interval.low:.3f}-{interval.high:.3f})" if interval else ""


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _wide(value: float | None) -> str:
    return f"{_figure(value):5}"
