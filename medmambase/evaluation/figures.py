"""The pictures of a run: training curves, confusion matrix, squeeze-and-excitation before and after.

Before: ``metrics.csv``, ``metrics.py`` and ``explain.py``. Next stop: ``report.py`` puts the PNG files on the page.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from medmambase.evaluation.explain import Recalibration
from medmambase.evaluation.metrics import Metrics
from medmambase.files import move

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Fonts with Asian scripts that Windows, macOS and Linux bring along; matplotlib's own covers Latin, Greek, Cyrillic, Hebrew and Arabic.
ASIAN_FONTS = ("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "PingFang SC", "Hiragino Sans", "Noto Sans CJK JP", "WenQuanYi Micro Hei")
LONGEST_LABEL = 28  # characters; the tables of the report have the whole name
MOST_ROWS = 6  # images on one recalibration sheet
MOST_TWINS = 12  # pairs on one sheet
PANELS = (
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


class FigureError(ValueError):
    """A file that cannot be drawn: the message names it, the place and what is wanted."""


def curves(metrics_csv: Path, png: Path, best_epoch: int | None = None) -> None:
    """Loss, scores and learning rate over the epochs of ``metrics.csv``; a dashed line marks ``best_epoch``.

    Empty cells and absent columns are gaps. Raises FigureError for a file without epochs or with a cell that is no number.
    """
    from matplotlib.ticker import MaxNLocator

    columns = _columns(metrics_csv)
    epochs = columns["epoch"]
    # A column that was never measured (no validation split, say) would be a line of nothing with a legend entry.
    panels = [(title, height, {key: line for key, line in lines.items() if np.isfinite(columns.get(key, np.nan)).any()}) for title, height, lines in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise FigureError(f"{metrics_csv} has no column to draw; wanted some of {', '.join(key for panel in PANELS for key in panel[2])}")
    with sheet(png, 7.5, 0.6 + sum(height for _, height, _ in panels)) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[height for _, height, _ in panels])
        for axes, (title, _, lines) in zip(grid[:, 0], panels, strict=True):
            for key, (name, colour) in lines.items():
                axes.plot(epochs, columns[key], color=colour, label=name, marker="o", markersize=3, linewidth=1.5)
            if best_epoch is not None:
                axes.axvline(best_epoch, color="0.3", linestyle="--", linewidth=1, label=f"kept: epoch {best_epoch}" if axes is grid[0, 0] else None)
            axes.set_ylabel(title)
            axes.grid(color="0.9")
            if title != "learning rate":
                axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.align_ylabels()
        grid[-1, 0].set_xlabel("epoch")
        grid[-1, 0].set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def confusion(metrics: Metrics, png: Path) -> None:
    """The confusion matrix: in each cell the count and the share of its row, which is also its colour. 1 to about 30 classes."""
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
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5 if total > 12 else 9 if total > 3 else 12, linespacing=1.05)
        rows = [f"{name}  ({int(n)})" for name, n in zip(names, support[:, 0], strict=True)]
        axes.set_xticks(range(total), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False, fontfamily=font)
        axes.set_yticks(range(total), rows, parse_math=False, fontfamily=font)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth (images)")
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(total + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(total + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        bar = figure.colorbar(image, ax=axes, fraction=0.3 / (2.6 + 0.52 * total), pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"])
        bar.set_label("share of the true class")


def twins(pairs: Sequence[Sequence[Tensor]], captions: Sequence[Sequence[str]], likeness: Sequence[str], png: Path) -> None:
    """Pairs of pictures, torch.uint8 (c, h, w), one pair a row: each below its caption, the row with its likeness."""
    rows = len(pairs)
    with sheet(png, 6.0, 2.7 * rows) as figure:
        grid = figure.subplots(rows, 2, squeeze=False)
        lines = [labels_of([line for caption in row for line in caption.split("\n")]) for row in captions]
        for axes_row, pair, (names, font), alike in zip(grid, pairs, lines, likeness, strict=True):
            for place, (axes, picture) in enumerate(zip(axes_row, pair, strict=True)):
                axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
                axes.set_title("\n".join(names[2 * place : 2 * place + 2]), fontsize=8, parse_math=False, fontfamily=font)
                axes.set_xticks([])
                axes.set_yticks([])
            axes_row[0].set_ylabel(alike, fontsize=8)


def recalibration(stage: Recalibration, images: Tensor, titles: Sequence[str], png: Path) -> None:
    """One stage, one image a row: input, map before, map after, gates. Both maps share one colour scale from 0, over all rows.

    images (b, c, h, w), the batch that ``stage`` was made from; titles (b,). The first six are drawn. Raises FigureError if they do not fit.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if not len(images) == len(titles) == len(stage.before) or not len(titles):
        raise FigureError(f"there are {len(images)} images, {len(titles)} titles and {len(stage.before)} maps; wanted one each, and at least one")
    shown = min(len(titles), MOST_ROWS)
    before, after, gates = stage.before[:shown].numpy(), stage.after[:shown].numpy(), stage.gates[:shown].numpy()
    maps = np.stack([before, after])
    highest = float(maps[np.isfinite(maps)].max(initial=0)) or 1.0
    usable = gates[np.isfinite(gates)]
    bins = np.linspace(usable.min(initial=0.9), usable.max(initial=1.1), 30)  # 1 is always in sight, and gates that hardly moved from it too
    pictures = pictures_of(images[:shown])
    with sheet(png, 10.5, 1.4 + 2.3 * shown) as figure:
        names, font = labels_of(titles[:shown])
        grid = figure.subplots(shown, 4, squeeze=False, width_ratios=[1, 1, 1, 1.15])
        for row, (picture, name, axes) in enumerate(zip(pictures, names, grid, strict=True)):
            axes[0].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[0].set_ylabel(name, parse_math=False, fontfamily=font, fontsize=9)
            for column, values in ((1, before[row]), (2, after[row])):
                axes[column].imshow(values, cmap="viridis", vmin=0, vmax=highest, interpolation="nearest")
            for one in axes[:3]:
                one.set_xticks([])
                one.set_yticks([])
            _gates(axes[3], gates[row], bins)
        for axes, title in zip(grid[0], ("input", "before SE", "after SE", "channels by gate"), strict=True):
            axes.set_title(title, fontsize=11)
        grid[-1, 3].set_xlabel("gate (1 leaves the channel as it is)")
        tallest = max(axes.get_ylim()[1] for axes in grid[:, 3])
        for axes in grid[:, 3]:
            axes.set_ylim(0, tallest)
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, highest), "viridis"), ax=list(grid[:, 1:3].flat), location="bottom", aspect=40, fraction=0.06, pad=0.02
        )
        bar.set_label("mean |activation|, one scale for every map here")
        height, width = before.shape[1:]
        figure.suptitle(f"Squeeze-and-excitation, stage {stage.stage}: {gates.shape[1]} channels on a {width} x {height} map", fontsize=12)


def _gates(axes: "Axes", gates: np.ndarray, bins: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(gates[np.isfinite(gates)], bins=bins.tolist(), color="C0")
    axes.axvline(1, color="0.3", linestyle="--", linewidth=1)
    axes.set_xlim(bins[0], bins[-1])
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.tick_right()


@contextmanager
def sheet(png: Path, width: float, height: float) -> Iterator["Figure"]:
    """An empty figure (inches) that becomes the file when the block ends, whatever the user's own matplotlib settings are."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        part = png.with_name(png.name + ".part")
        figure.savefig(part, format="png", dpi=110)
        move(part, png)


def labels_of(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names that fit and can be drawn, and the fonts to draw them with; a name no font can draw becomes its number, from 1."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    installed = {entry.name for entry in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in ASIAN_FONTS if name in installed)]
    faces = [get_font(findfont(FontProperties(family=name))) for name in fonts]

    def label(number: int, name: str) -> str:
        text = " ".join(name.split())
        if len(text) > LONGEST_LABEL:
            text = f"{text[: LONGEST_LABEL - 13]}…{text[-12:]}"  # both ends: names that share a beginning stay apart
        drawable = all(any(face.get_char_index(ord(letter)) for face in faces) for letter in text)
        return text if text and drawable else f"no. {number}"

    return [label(number, name) for number, name in enumerate(names, start=1)], fonts


def pictures_of(images: Tensor) -> list[np.ndarray]:
    """Normalised images as (h, w) or (h, w, 3) in 0..1; the batch's darkest value is black, its brightest white."""
    values = images.float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low if high > low else 1.0)
    return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in values]


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of ``metrics.csv`` as float64; an empty cell, and what is not finite, is NaN, which is drawn as a gap."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FigureError(f"{path} cannot be read: {error}") from error
    if "epoch" not in header or not rows:
        raise FigureError(f"{path} has no epoch to draw; wanted a first line that names the columns, epoch among them, and one line an epoch")
    columns: dict[str, np.ndarray] = {}
    for index, name in enumerate(header):
        cells = [row[index] if index < len(row) else "" for row in rows]
        try:
            values = [float(cell) if cell.strip() else math.nan for cell in cells]
        except ValueError as error:
            raise FigureError(f"{path}, column {name}: {error}; wanted numbers or empty cells") from error
        columns[name] = np.array([value if math.isfinite(value) else math.nan for value in values])
    if np.isnan(columns["epoch"]).any():
        raise FigureError(f"{path}, column epoch: a cell is no number; wanted one in every line")
    return columns
