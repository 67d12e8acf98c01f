"""Draw the pictures of a run: training curves, confusion matrix, duplicate images side by side."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medmambase.evaluation.drawing import FigureError, labels_of, sheet
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.multilabel import MultiLabelMetrics

MOST_DUPLICATES = 8  # pairs on one sheet
Panel = tuple[str, float, dict[str, tuple[str, str]]]  # title, inches, column -> its words and colour
PANELS: tuple[Panel, ...] = (
    ("loss", 2.6, {"train_loss": ("training", "C0"), "val_loss": ("validation", "C1")}),
    (
        "score",
        2.6,
        {
            "train_accuracy": ("training accuracy", "C0"),
            "val_accuracy": ("validation accuracy", "C1"),
            "val_balanced_accuracy": ("validation balanced accuracy", "C2"),
            "val_auc": ("validation AUC", "C3"),
        },
    ),
    ("learning rate", 1.4, {"lr": ("learning rate", "C7")}),
)


def panels_of(columns: Mapping[str, npt.NDArray[np.float64]]) -> list[Panel]:
    """Return the panels that have something to draw, with the lines that do. A column that was
    never measured (no validation split, say) would be a line of nothing with a legend entry."""
    panels = [
        (title, height, {key: line for key, line in lines.items() if np.isfinite(columns.get(key, np.nan)).any()})
        for title, height, lines in PANELS
    ]
    return [panel for panel in panels if panel[2]]


def curves(metrics_csv: Path, png: Path, best_epoch: int | None = None) -> None:
    """Draw loss, scores and learning rate over the epochs of ``metrics.csv``; a dashed line marks
    ``best_epoch``.

    Empty cells and absent columns are gaps. Raises FigureError for a file without epochs or with a
    cell that is no number.
    """
    from matplotlib.ticker import MaxNLocator

    columns = columns_of(metrics_csv, "epoch")
    epochs = columns["epoch"]
    panels = panels_of(columns)
    if not panels:
        raise FigureError(
            f"{metrics_csv} has no column to draw; wanted some of "
            f"{', '.join(key for panel in PANELS for key in panel[2])}"
        )
    with sheet(png, 7.5, 0.6 + sum(height for _, height, _ in panels)) as figure:
        grid = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, height_ratios=[height for _, height, _ in panels]
        )
        for axes, (title, _, lines) in zip(grid[:, 0], panels, strict=True):
            for key, (name, colour) in lines.items():
                axes.plot(epochs, columns[key], color=colour, label=name, marker="o", markersize=3, linewidth=1.5)
            if best_epoch is not None:
                axes.axvline(
                    best_epoch,
                    color="0.3",
                    linestyle="--",
                    linewidth=1,
                    label=f"kept: epoch {best_epoch}" if axes is grid[0, 0] else None,
                )
            axes.set_ylabel(title)
            axes.grid(color="0.9")
            if title != "learning rate":
                axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.align_ylabels()
        grid[-1, 0].set_xlabel("epoch")
        grid[-1, 0].set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def confusion(metrics: AnyMetrics, png: Path, of: str = "images") -> None:
    """Draw the confusion matrix: in each cell the count and the share of its row, which is also its
    colour; ``of``: what is counted. 1 to about 30 classes. Where an image may have several classes,
    a matrix for each: images without and with it."""
    if isinstance(metrics, MultiLabelMetrics):
        _confusions(metrics, png)
        return
    counts = np.array(metrics.confusion)
    support = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(support, 1)
    total = len(counts)
    with sheet(png, 2.6 + max(2.4, 0.52 * total), 1.9 + max(2.0, 0.46 * total)) as figure:
        names, font = labels_of([one.name for one in metrics.per_class])
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            percent = f"{share[row, column]:.0%}" if share[row, column] >= 0.005 else "<1%"
            text = f"{count}\n{percent}" if count else "0" if support[row] else "-"
            colour = "white" if share[row, column] > 0.55 else "black" if count else "0.6"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=7.5 if total > 12 else 9 if total > 3 else 12,
                linespacing=1.05,
            )
        rows = [f"{name}  ({int(n)})" for name, n in zip(names, support[:, 0], strict=True)]
        axes.set_xticks(
            range(total), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False, fontfamily=font
        )
        axes.set_yticks(range(total), rows, parse_math=False, fontfamily=font)
        axes.set_xlabel("predicted")
        axes.set_ylabel(f"truth ({of})")
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(total + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(total + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        bar = figure.colorbar(
            image, ax=axes, fraction=0.3 / (2.6 + 0.52 * total), pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1]
        )
        bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
        bar.set_label("share of the true class")


def _confusions(metrics: MultiLabelMetrics, png: Path) -> None:
    total = len(metrics.per_class)
    columns = min(4, total)
    rows = -(-total // columns)
    names, font = labels_of([one.name for one in metrics.per_class])
    with sheet(png, 0.6 + 2.1 * columns, 0.4 + 2.1 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, name, table in zip(grid.flat, names, metrics.confusion, strict=False):
            axes.set_axis_on()
            counts = np.array(table)
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if share[row, column] > 0.55 else "black"
                words = f"{count}\n{share[row, column]:.0%}"
                axes.text(column, row, words, ha="center", va="center", color=colour, fontsize=9)
            axes.set_title(name, fontsize=9, parse_math=False, fontfamily=font)
            axes.set_xticks([0, 1], ["not called", "called"], fontsize=8)
            axes.set_yticks([0, 1], ["absent", "present"], fontsize=8)
            axes.tick_params(length=0)


def duplicates(
    pairs: Sequence[Sequence[Tensor]], captions: Sequence[Sequence[str]], likeness: Sequence[str], png: Path
) -> None:
    """Draw pairs of pictures, torch.uint8 (c, h, w), one pair a row: each below its caption, the
    row with its correlation."""
    rows = len(pairs)
    with sheet(png, 8.0, 4.0 * rows) as figure:
        grid = figure.subplots(rows, 2, squeeze=False)
        lines = [labels_of([line for caption in row for line in caption.split("\n")]) for row in captions]
        for axes_row, pair, (names, font), alike in zip(grid, pairs, lines, likeness, strict=True):
            for place, (axes, picture) in enumerate(zip(axes_row, pair, strict=True)):
                axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
                axes.set_title(
                    "\n".join(names[2 * place : 2 * place + 2]), fontsize=8, parse_math=False, fontfamily=font
                )
                axes.set_xticks([])
                axes.set_yticks([])
            axes_row[0].set_ylabel(alike, fontsize=8)


def columns_of(path: Path, first: str) -> dict[str, np.ndarray]:
    """Read the columns of ``metrics.csv`` as float64; an empty cell, and what is not finite, is
    NaN, which is drawn as a gap. Raises FigureError for a file without a row for each ``first``,
    an epoch or a step."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FigureError(f"{path} cannot be read: {error}") from error
    if first not in header or not rows:
        raise FigureError(
            f"{path} has no {first} to draw; wanted a first line that names the columns, {first} among them, and one "
            f"line for each"
        )
    columns: dict[str, np.ndarray] = {}
    for index, name in enumerate(header):
        cells = [row[index] if index < len(row) else "" for row in rows]
        try:
            values = [float(cell) if cell.strip() else math.nan for cell in cells]
        except ValueError as error:
            raise FigureError(f"{path}, column {name}: {error}; wanted numbers or empty cells") from error
        columns[name] = np.array([value if math.isfinite(value) else math.nan for value in values])
    if np.isnan(columns[first]).any():
        raise FigureError(f"{path}, column {first}: a cell is not a number; wanted one in every line")
    return columns
