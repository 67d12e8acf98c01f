"""Draw the performance of a set of predictions: ROC and precision-recall curves, reliability, the
worst mistakes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from medmambase.evaluation.calibration import reliability, with_temperature
from medmambase.evaluation.drawing import labels_of, sheet
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

MOST_CURVES = 10  # more cannot be told apart
MOST_MISTAKES = 12


def roc(predictions: Predictions, metrics: AnyMetrics, png: Path) -> None:
    """Draw sensitivity over 1 - specificity, one curve for each class against all others; of two
    classes that of the second."""
    from sklearn.metrics import roc_curve  # slow to import, and importing this package must stay cheap

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        false, true, _ = roc_curve(positive, scores)
        return false, true

    with sheet(png, 7.5, 4.6, whole=True) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="guessing")
        _curves(axes, predictions, metrics, "auc", curve, "default")
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")


def pr(predictions: Predictions, metrics: AnyMetrics, png: Path) -> None:
    """Draw precision (PPV) over recall (sensitivity), one curve for each class; a dotted line marks
    what guessing achieves, the class's share of the images."""
    from sklearn.metrics import precision_recall_curve

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(positive, scores)
        return recall, precision

    with sheet(png, 7.5, 4.6, whole=True) as figure:
        axes = figure.subplots()
        for colour, column in _colours(predictions, metrics, "ap"):
            axes.axhline(predictions.is_of(column).mean(), color=colour, linestyle=":", linewidth=1)
        _curves(axes, predictions, metrics, "ap", curve, "steps-post")
        axes.set_xlabel("recall (sensitivity)")
        axes.set_ylabel("precision (PPV)")


def calibration(predictions: Predictions, temperature: float | None, png: Path) -> None:
    """Draw how often the network was right over its confidence, in 15 bins; with the temperature
    from val too, if there is one. Below: how many images."""
    shown = [("as the network says it", "C0", predictions)]
    if temperature is not None:
        shown.append((f"at temperature {temperature:.2f}", "C1", with_temperature(predictions, temperature)))
    with sheet(png, 6.0, 5.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect")
        for name, colour, one in shown:
            bins = reliability(one)
            confidence = [b.confidence for b in bins]
            above.plot(
                confidence,
                [b.accuracy for b in bins],
                color=colour,
                marker="o",
                markersize=4,
                linewidth=1.5,
                label=name,
            )
            below.bar(confidence, [b.images for b in bins], width=0.02, color=colour, alpha=0.6)
        several = predictions.task.multi_label
        above.set_ylabel("share of images with the class" if several else "share that was right")
        above.set_xlim(-0.02, 1.02)
        above.set_ylim(-0.02, 1.02)
        above.grid(color="0.9")
        above.legend(fontsize=8, loc="upper left", frameon=False)
        below.set_ylabel("probabilities" if several else "images")
        below.set_xlabel("probability, of all classes" if several else "confidence: the highest probability")


def answered(curve: Sequence[Mapping[str, Any]], png: Path) -> None:
    """Draw accuracy, with its interval, over the share of images that are answered: a ``curve`` of
    ``answering.py``."""
    with sheet(png, 6.0, 3.6, whole=True) as figure:
        axes = figure.subplots()
        shares, accuracy = [one["share"] for one in curve], [one["accuracy"] for one in curve]
        sure = [(share, one) for share, one in zip(shares, accuracy, strict=True) if one["low"] is not None]
        axes.fill_between(
            [share for share, _ in sure], [one["low"] for _, one in sure], [one["high"] for _, one in sure],
            color="C0", alpha=0.2, linewidth=0, label="95 % interval",
        )  # fmt: skip  # one call
        axes.plot(shares, [one["figure"] for one in accuracy], color="C0", marker="o", markersize=4, label="accuracy")
        axes.set_xlim(1.02, 0)
        axes.set_xlabel("share of the images that are answered, the surest ones")
        axes.set_ylabel("share that was right")
        axes.grid(color="0.9")
        axes.legend(fontsize=8, loc="lower left", frameon=False)


def worst(predictions: Predictions) -> list[int]:
    """Find the mistakes with the highest confidence: their rows, the most confident first, equals
    in the order of their rows. Of several classes an image the one whose probability is farthest
    from the truth counts."""
    if predictions.task.multi_label:
        missed = predictions.predicted != predictions.labels
        wrong = np.flatnonzero(missed.any(axis=1))
        confidence = (abs(predictions.probabilities - predictions.labels) * missed)[wrong].max(axis=1, initial=0)
    else:
        wrong = np.flatnonzero(predictions.predicted != predictions.labels)
        confidence = predictions.probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")][:MOST_MISTAKES].tolist()


def mistakes(images: Sequence[Tensor], predictions: Predictions, png: Path) -> None:
    """Draw pictures, torch.uint8 (c, h, w), of those ``predictions``, in their order: each with its
    true class, the class that was called, and its file's name."""
    columns = 3
    rows = -(-len(images) // columns)
    with sheet(png, 9.6, 3.8 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, (axes, picture) in enumerate(zip(grid.flat, images, strict=False)):
            said = ""
            if not predictions.task.multi_label:
                said = f" ({predictions.probabilities[row, predictions.predicted[row]]:.0%})"
            (truth, wrong, name), font = labels_of(
                [
                    predictions.in_words(predictions.labels, row),
                    predictions.in_words(predictions.predicted, row),
                    Path(predictions.names[row]).name,
                ]
            )
            axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            axes.set_title(f"is {truth}\ncalled {wrong}{said}\n{name}", fontsize=7.5, parse_math=False, fontfamily=font)


def _colours(predictions: Predictions, metrics: AnyMetrics, figure: str) -> list[tuple[str, int]]:
    """A colour for each class that has the figure, the first ten."""
    columns = predictions.task.told_apart(len(predictions.classes))
    there = [column for column in columns if getattr(metrics.per_class[column], figure) is not None]
    return [(f"C{place % 10}", column) for place, column in enumerate(there[:MOST_CURVES])]


def _curves(
    axes: "Axes",
    predictions: Predictions,
    metrics: AnyMetrics,
    figure: str,
    curve: Curve,
    drawn: Literal["default", "steps-post"],
) -> None:
    names, font = labels_of(predictions.classes)
    for colour, column in _colours(predictions, metrics, figure):
        x, y = curve(predictions.is_of(column), predictions.probabilities[:, column])
        value, interval = getattr(metrics.per_class[column], figure), metrics.intervals.get(f"{column}/{figure}")
        sure = f" ({interval.low:.3f}-{interval.high:.3f})" if interval else ""
        axes.plot(
            x,
            y,
            drawstyle=drawn,
            color=colour,
            linewidth=1.5,
            label=f"{names[column]}: {figure.upper()} {value:.3f}{sure}",
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.grid(color="0.9")
    if not axes.get_legend_handles_labels()[0]:  # as where no image is of the class that is drawn
        return
    legend = axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontfamily(font)
