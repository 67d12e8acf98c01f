"""What ``medmambase-train`` shows of a training: its epochs, the figures of the test images, and the pictures.

Stop before: the best network of ``training/loop.py``. Next stop: ``evaluation/report.py``, from the files that are written here.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from medmambase.data.audit import Audit
from medmambase.data.decode import ImageSet
from medmambase.data.images import normalise
from medmambase.evaluation import explain, figures
from medmambase.evaluation.metrics import Metrics, as_medmnist, evaluate, write_predictions
from medmambase.model.network import MedMambaSE
from medmambase.training import loop, run_folder
from medmambase.training.history import Epoch


def test(network: MedMambaSE, images: ImageSet, leaked: Collection[str], folder: Path, batch_size: int, dtype: torch.dtype, published: bool) -> list[str]:
    """Predict the test images and write ``predictions.csv``, ``metrics.json`` and ``confusion.png`` into ``folder``; returns lines for a person.

    Where some are ``leaked`` (names), ``metrics.json`` has the figures without them too. Of a ``published`` MedMNIST set its own evaluator's
    figures go into ``medmnist.json``.
    """
    probabilities = loop.predict(network, images, batch_size, dtype)
    labels, names = images.labels.numpy(), [sample.name for sample in images.samples]
    metrics = evaluate(labels, probabilities, network.classes)
    clean = [row for row, name in enumerate(names) if name not in leaked]
    if 0 < len(clean) < len(names):
        metrics = replace(metrics, without_leaked=evaluate(labels[clean], probabilities[clean], network.classes))
    folder.mkdir(exist_ok=True)
    write_predictions(folder / "predictions.csv", names, labels, probabilities, network.classes)
    run_folder.write_json(folder / "metrics.json", metrics.to_dict())
    figures.confusion(metrics, folder / "confusion.png")
    lines = [summary(metrics)]
    if published:
        benchmark = as_medmnist(labels, probabilities)
        run_folder.write_json(folder / "medmnist.json", benchmark)
        lines.append(f"as MedMNIST's evaluator computes them: ACC {_figure(benchmark['ACC'])}, AUC {_figure(benchmark['AUC'])}")
    return lines


def draw_twins(images: ImageSet, found: Audit, png: Path) -> None:
    """Twins of different classes and in different splits, side by side, the worst first; no file where there are none."""
    pairs = list({pair.names: pair for pair in (*found.conflicts, *found.across)}.values())[: figures.MOST_TWINS]
    if not pairs:
        return
    row_of = {sample.name: row for row, sample in enumerate(images.samples)}
    shown = [tuple(images.images[[row_of[name]]][0] for name in pair.names) for pair in pairs]
    captions = [tuple(f"{split}, {label}\n{name}" for name, split, label in zip(pair.names, pair.splits, pair.classes, strict=True)) for pair in pairs]
    likeness = ["the same pixels" if pair.exact else f"likeness {pair.likeness:.3f}" for pair in pairs]
    png.parent.mkdir(exist_ok=True)
    figures.twins(shown, captions, likeness, png)


def draw(network: MedMambaSE, images: ImageSet, run: Path, best_epoch: int) -> None:
    """The curves, and squeeze-and-excitation before and after on the first image of each class."""
    figures.curves(run / "metrics.csv", run / "curves.png", best_epoch)
    labels = images.labels.tolist()
    rows = [labels.index(label) for label in sorted(set(labels))][: figures.MOST_ROWS]
    batch = normalise(images.images[rows].to(next(network.parameters()).device), network.preprocessing)
    stages = explain.recalibration(network, batch)
    if stages:
        (run / "explain").mkdir(exist_ok=True)
    for stage in stages:
        figures.recalibration(stage, batch, [network.classes[labels[row]] for row in rows], run / "explain" / f"se_stage{stage.stage}.png")


def line(epoch: Epoch) -> str:
    """An epoch in one line."""
    return (
        f"epoch {epoch.epoch:3}  train loss {epoch.train_loss:.3f}  accuracy {epoch.train_accuracy:.3f}   val loss {_wide(epoch.val_loss)}  "
        f"accuracy {_wide(epoch.val_accuracy)}  balanced {_wide(epoch.val_balanced_accuracy)}  AUC {_wide(epoch.val_auc)}   {epoch.seconds:.1f} s"
    )


def summary(metrics: Metrics) -> str:
    """The test figures in some lines: all together, without leaked images, and class by class."""
    area = "AUC" if len(metrics.per_class) == 2 else "macro AUC"  # of two classes there is one curve, and no mean
    lines = [f"test: {_headline(metrics, area)}"]
    if metrics.without_leaked:
        left, images = (sum(map(sum, one.confusion)) for one in (metrics.without_leaked, metrics))
        lines.append(f"without {images - left} of {images} test images whose twin or patient is in train or val: {_headline(metrics.without_leaked, area)}")
    wide = max(len(one.name) for one in metrics.per_class)
    lines.append(f"{'class':{wide}}  images  sensitivity  specificity     F1    AUC")
    lines += [
        f"{one.name:{wide}}  {one.support:6}  {_figure(one.sensitivity):>11}  {_figure(one.specificity):>11}  {_figure(one.f1):>5}  {_figure(one.auc):>5}"
        for one in metrics.per_class
    ]
    return "\n".join(lines)


def _headline(metrics: Metrics, area: str) -> str:
    return f"accuracy {_figure(metrics.accuracy)}, balanced accuracy {_figure(metrics.balanced_accuracy)}, {area} {_figure(metrics.auc)}"


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _wide(value: float | None) -> str:
    return f"{_figure(value):5}"
