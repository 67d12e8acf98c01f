"""Draw the pictures of a pretraining: its losses, and what was predicted beside what was wanted."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medmambase.evaluation.drawing import FigureError, pictures_of, sheet
from medmambase.evaluation.report.figures import columns_of

MOST_PICTURES = 6  # rows of the sheet


def curves(metrics_csv: Path, png: Path) -> None:
    """Draw over the steps of ``metrics.csv`` the loss of each target, in training and on pictures
    held out, and the mean AUC where there is one. Raises FigureError for a file without rows."""
    columns = columns_of(metrics_csv, "step")
    names = [name.removeprefix("held_out_") for name in columns if name.startswith("held_out_")]
    if not names:
        raise FigureError(f"{metrics_csv} has no column to draw; wanted some that begin with held_out_")
    scored = bool(np.isfinite(columns.get("auc", np.nan)).any())
    with sheet(png, 7.5, 0.6 + 2.0 * (len(names) + scored)) as figure:
        grid = figure.subplots(len(names) + scored, 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(grid, names, strict=False):
            for part, words, colour in (("train", "training", "C0"), ("held_out", "held out", "C1")):
                values = columns.get(f"{part}_{name}", np.full(len(columns["step"]), np.nan))
                axes.plot(columns["step"], values, color=colour, label=words, marker="o", markersize=3)
            axes.set_ylabel(f"loss: {name}")
        if scored:
            grid[-1].plot(columns["step"], columns["auc"], color="C3", label="held out", marker="o", markersize=3)
            grid[-1].set_ylabel("mean AUC")
        for axes in grid:
            axes.grid(color="0.9")
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.align_ylabels()
        grid[-1].set_xlabel("step")


def pictures(png: Path, inputs: Tensor, wanted: Tensor, predicted: Tensor, names: tuple[str, ...]) -> None:
    """Draw a row for each of the first pictures: the input, and for each target what was wanted and
    what was predicted. inputs (b, c, s, s); wanted and predicted (b, targets, s, s), of a target
    named "picture" all channels."""
    rows = min(MOST_PICTURES, len(inputs))
    with sheet(png, 1.5 * (1 + 2 * len(names)), 0.3 + 1.5 * rows) as figure:
        grid = figure.subplots(rows, 1 + 2 * len(names), squeeze=False)
        columns = [("input", pictures_of(inputs[:rows]))]
        for place, name in enumerate(names):
            channels = slice(None) if name == "picture" else slice(place, place + 1)
            both = wanted[:rows, channels], predicted[:rows, channels].clamp(wanted.min(), wanted.max())
            shades = pictures_of(torch.cat(both))  # together, so that equal values have equal shades
            columns += [(f"{name}: wanted", shades[:rows]), (f"{name}: predicted", shades[rows:])]
        for column, (title, shown) in zip(grid.T, columns, strict=True):
            column[0].set_title(title, fontsize=8)
            for axes, picture in zip(column, shown, strict=True):
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
