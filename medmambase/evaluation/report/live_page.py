"""Write ``report.html`` while a training runs: how far it is, its curves, and a line an epoch.

No test figure is on this page: there is none yet. The page draws the curves itself (SVG), in a few
thousandths of a second, where a picture takes some tenths.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase import run_folder
from medmambase.evaluation.report.figures import panels_of
from medmambase.evaluation.report.template import template, text
from medmambase.files import write_text

Row = Mapping[str, float | None]

REFRESH = 10  # seconds after which a browser reads the page again
# Of a drawing, in units of its own: its width, and the space around the lines.
_WIDE, _LEFT, _RIGHT, _ABOVE, _BELOW = 640, 56, 12, 10, 22
_INCH = 62  # units; ``PANELS`` has heights in inches
_COLOURS = {"C0": "#1f77b4", "C1": "#b85200", "C2": "#2a7a2a", "C3": "#b3261e", "C7": "#5f5f5f"}  # as words, readable


@dataclass(frozen=True)
class Line:
    """A figure over the epochs: its newest value, and the points of its unbroken parts."""

    name: str
    colour: str
    newest: float
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """A drawing: its height, the values at its lower and upper edge, and its lines."""

    title: str
    height: float
    low: float
    high: float
    lines: tuple[Line, ...]


def write_live_page(
    run: Path,
    status: str,
    epochs: Sequence[Row],
    best_epoch: int,
    described: Mapping[str, Any],
    *,
    over: bool = False,
    of_fold: bool = False,
) -> Path:
    """Write ``run/report.html``, and return its path. A browser reads it again every REFRESH
    seconds, unless the training is ``over``.

    ``status``: how far it is, in one line. ``epochs``: the rows of ``metrics.csv``, of which
    ``best_epoch`` is kept so far (0: none). ``described``: the content of ``config.json``.
    ``of_fold``: the run belongs to a cross-validation. Raises OSError.
    """
    page = template("live.html.jinja").render(
        name=run.resolve().name, status=status, epochs=epochs, best_epoch=best_epoch, described=described,
        of_fold=of_fold, refresh=None if over else REFRESH, written=time.strftime("%Y-%m-%d %H:%M:%S"),
        panels=_panels(epochs), style=text("report.css"), wide=_WIDE, left=_LEFT, right=_WIDE - _RIGHT, above=_ABOVE,
        below=_BELOW,
    )  # fmt: skip  # by idea
    path = run / run_folder.REPORT
    write_text(path, page)
    return path


def _panels(epochs: Sequence[Row]) -> list[Panel]:
    """The drawings that have a line."""
    columns = {key: np.array([row[key] for row in epochs], dtype=np.float64) for key in (epochs[0] if epochs else ())}
    found = []
    for title, inches, lines in panels_of(columns):
        known = {key: columns[key][np.isfinite(columns[key])] for key in lines}
        low, high = (float(end(np.concatenate([*known.values()]))) for end in (np.min, np.max))
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        height = inches * _INCH
        drawn = tuple(
            Line(name, _COLOURS[colour], float(known[key][-1]), tuple(_parts(columns[key], low, high, height)))
            for key, (name, colour) in lines.items()
        )
        found.append(Panel(title, height, low, high, drawn))
    return found


def _parts(values: npt.NDArray[np.float64], low: float, high: float, height: float) -> Iterable[str]:
    """The points of each row of values without a gap."""
    across, down = _WIDE - _LEFT - _RIGHT, height - _ABOVE - _BELOW
    for known, places in groupby(range(len(values)), lambda place: bool(np.isfinite(values[place]))):
        if known:
            points = [
                f"{_LEFT + across * place / max(len(values) - 1, 1):.1f},"
                f"{_ABOVE + down * (high - values[place]) / (high - low):.1f}"
                for place in places
            ]
            yield " ".join(points if len(points) > 1 else 2 * points)  # a single one is a dot
