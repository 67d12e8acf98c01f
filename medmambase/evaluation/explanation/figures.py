"""Draw explanations: an image beside its maps, the gates of each class, and the faithfulness of the
maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from medmambase.evaluation.drawing import FigureError, labels_of, pictures_of, sheet
from medmambase.evaluation.explanation.faithfulness import STEPS, Curves
from medmambase.evaluation.explanation.maps import Recalibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 6  # images on one recalibration sheet
DIRECTIONS = ("by rows", "by columns", "rows, reversed", "columns, reversed")


def sheet_of(pictures: Tensor, cams: Tensor, deltas: Tensor, captions: Sequence[Sequence[str]], png: Path) -> None:
    """Draw one image a row: itself with its class, truth and name, the map laid over it, and delta
    of the four scans, each against its own mean: purple above it, orange below, one scale a row.

    pictures torch.uint8 (b, c, h, w); cams (b, h, w), 0 to 1; deltas (b, 4, h', w').
    """
    rows = len(pictures)
    with sheet(png, 11.5, 0.5 + 1.85 * rows) as figure:
        grid = figure.subplots(rows, 6, squeeze=False)
        lines = [labels_of([line or "-" for line in caption]) for caption in captions]
        for row, (axes, (texts, font)) in enumerate(zip(grid, lines, strict=True)):
            picture = pictures[row].permute(1, 2, 0).expand(-1, -1, 3).numpy()
            axes[0].imshow(picture)
            axes[0].set_ylabel(
                "\n".join(text for text in texts if text != "-"), fontsize=8, parse_math=False, fontfamily=font
            )
            axes[1].imshow(picture)
            # Where the map is 0 the image stays as it is; a doctor wants to see the anatomy below
            # the colour.
            axes[1].imshow(
                cams[row].numpy(), cmap="inferno", vmin=0, vmax=1, alpha=np.clip(1.4 * cams[row].numpy(), 0, 0.65)
            )
            # Directions differ in how much they let in everywhere, which says nothing of where:
            # each is shown against its own mean.
            against = (deltas[row] / deltas[row].mean((1, 2), keepdim=True).clamp_min(1e-12) - 1).numpy()
            reach = max(1e-6, float(np.abs(against).max()))
            for one, values in zip(axes[2:], against, strict=True):
                one.imshow(values, cmap="PuOr", vmin=-reach, vmax=reach, interpolation="nearest")
            for one in axes:
                one.set_xticks([])
                one.set_yticks([])
        for axes, title in zip(
            grid[0], ("image", "evidence for the class", *(f"delta, {name}" for name in DIRECTIONS)), strict=True
        ):
            axes.set_title(title, fontsize=9)


def recalibration(stage: Recalibration, images: Tensor, titles: Sequence[str], png: Path) -> None:
    """Draw one stage, one image a row: input, map before, map after, gates. Both maps share one
    colour scale from 0, over all rows.

    images (b, c, h, w), the batch that ``stage`` was made from; titles (b,). The first six are
    drawn. Raises FigureError if they do not fit.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if not len(images) == len(titles) == len(stage.before) or not len(titles):
        raise FigureError(
            f"there are {len(images)} images, {len(titles)} titles and {len(stage.before)} maps; wanted one each, "
            f"and at least one"
        )
    shown = min(len(titles), MOST_ROWS)
    before, after, gates = stage.before[:shown].numpy(), stage.after[:shown].numpy(), stage.gates[:shown].numpy()
    maps = np.stack([before, after])
    highest = float(maps[np.isfinite(maps)].max(initial=0)) or 1.0
    usable = gates[np.isfinite(gates)]
    bins = np.linspace(
        usable.min(initial=0.9), usable.max(initial=1.1), 30
    )  # 1 is always in sight, and gates that hardly moved from it too
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
            ScalarMappable(Normalize(0, highest), "viridis"),
            ax=list(grid[:, 1:3].flat),
            location="bottom",
            aspect=40,
            fraction=0.06,
            pad=0.02,
        )
        bar.set_label("mean |activation|, one scale for every map here")
        height, width = before.shape[1:]
        figure.suptitle(
            f"Squeeze-and-excitation, stage {stage.stage}: {gates.shape[1]} channels on a {width} x {height} map",
            fontsize=12,
        )


def _gates(axes: "Axes", gates: np.ndarray, bins: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(gates[np.isfinite(gates)], bins=bins.tolist(), color="C0")
    axes.axvline(1, color="0.3", linestyle="--", linewidth=1)
    axes.set_xlim(bins[0], bins[-1])
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.tick_right()


def gates_of(stages: Sequence[np.ndarray], classes: Sequence[str], png: Path) -> None:
    """Draw the mean gates (classes, channels) of each stage: a row a class, channels sorted by
    their mean, blue below 1 and red above, one scale for all."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names, font = labels_of(classes)
    reach = max(0.05, *(float(np.abs(stage - 1).max()) for stage in stages))
    with sheet(png, 9.0, 0.8 + len(stages) * (0.55 + 0.22 * len(classes))) as figure:
        grid = figure.subplots(len(stages), 1, squeeze=False)[:, 0]
        scale = Normalize(1 - reach, 1 + reach)
        for number, (axes, stage) in enumerate(zip(grid, stages, strict=True), start=1):
            axes.imshow(
                stage[:, stage.mean(0).argsort()], cmap="RdBu_r", norm=scale, aspect="auto", interpolation="nearest"
            )
            axes.set_yticks(range(len(names)), names, parse_math=False, fontfamily=font, fontsize=8)
            axes.set_xticks([])
            axes.set_title(f"stage {number}: {stage.shape[1]} channels", fontsize=9)
        figure.colorbar(
            ScalarMappable(scale, "RdBu_r"), ax=list(grid), label="gate (1 leaves the channel as it is)", aspect=30
        )


def faithfulness_of(marked: Curves, chance: Curves, png: Path) -> None:
    """Draw the class's mean probability over the images while places are deleted and while they are
    inserted, by the map and at random."""
    x = np.arange(STEPS + 1) / STEPS
    with sheet(png, 9.0, 3.4) as figure:
        for axes, name, ideal in zip(
            figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), ("low is good", "high is good"), strict=True
        ):
            for curves, colour, label in ((marked, "C3", "by the map"), (chance, "0.5", "by chance")):
                values = getattr(curves, name)
                axes.plot(100 * x, values.mean(0).numpy(), color=colour, marker="o", markersize=3, label=label)
            axes.set_title(f"{name}: {ideal}", fontsize=10)
            axes.set_xlabel(f"% of the image {'deleted' if name == 'deletion' else 'shown'}")
            axes.set_ylim(0, 1.02)
            axes.grid(color="0.9")
            axes.legend(fontsize=8, frameon=False)
        figure.axes[0].set_ylabel("probability of the class")
