"""What is painted is where it was asked for, covers what was there, and has edges and a name."""

import math

import numpy as np
import pytest
from canvases import canvas, chances

from medmambase.data.phantom.canvas import Canvas, Grid, Patch, outline
from medmambase.data.phantom.probes import KINDS


def area(c: Canvas, patch: Patch) -> float:
    """Of a patch on a linear probe, in units of the frame."""
    cell = 4 * c.probe.inner * c.probe.outer / ((c.grid.depths - 1) * (c.grid.lines - 1))
    return float(patch.mask.sum()) * cell


def test_shapes_are_as_large_as_they_say() -> None:
    c, flat = canvas(), np.ones(256, np.float32)
    x, y = c.probe.place(0.1, 0.5)
    for patch, expected in (
        (c.disc(x, y, 0.4, 0.2, 0.5), math.pi * 0.4 * 0.2),
        (c.blob(x, y, 0.4, 0.2, 0.5, flat), math.pi * 0.4 * 0.2),
        (c.ring(x, y, 0.35, 0.35, 0, 0.1), math.pi * (0.4**2 - 0.3**2)),
        (c.tube(x - 0.3, y - 0.2, x + 0.3, y + 0.2, 0.08), 2 * 0.08 * (math.hypot(0.6, 0.4) + 0.08)),
        (c.band(0.4, 0.6), 0.2 * 4 * c.probe.inner * c.probe.outer),
    ):
        assert abs(area(c, patch) / expected - 1) < 0.08
    along = np.full(c.grid.lines, 0.4, np.float32)
    np.testing.assert_array_equal(c.band(along, along + np.float32(0.2)).mask, c.band(0.4, 0.6).mask)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disc_is_where_it_was_asked_for(kind: str) -> None:
    c = canvas(kind)
    x, y = c.probe.place(-0.4, 0.6)
    box, mask = c.disc(x, y, 0.2, 0.2)
    assert abs(np.average(c.x[box], weights=mask) - x) < 0.03 and abs(np.average(c.y[box], weights=mask) - y) < 0.03


def test_a_tube_bends_and_tapers() -> None:
    c = canvas()
    box, mask = c.tube(-0.6, 0, 0.6, 0, 0.05, bend=0.2)
    for x, y in ((-0.58, 0.0), (0.0, 0.2), (0.58, 0.0)):
        there = (c.x[box] - x) ** 2 + (c.y[box] - y) ** 2 < 0.03**2
        assert mask[there].min() > 0.5
    assert mask[(np.abs(c.x[box]) < 0.1) & (np.abs(c.y[box]) < 0.1)].max() == 0
    box, mask = c.tube(-0.6, 0, 0.6, 0, 0.15, taper=0.8)
    assert mask[c.x[box] > 0.4].sum() < 0.5 * mask[c.x[box] < -0.4].sum()


def test_what_is_painted_covers_what_was_there_and_its_edges() -> None:
    c = canvas()
    c.paint(c.disc(0, 0, 0.2, 0.2), -20, name="cyst")
    assert c.edges.max() > 0.9
    c.paint(c.disc(0, 0, 0.5, 0.5), 5, loss=7, name="kidney")
    assert c.echo.dtype == c.loss.dtype == c.edges.dtype == np.float32
    inside = c.x**2 + c.y**2 < 0.4**2
    assert np.abs(c.echo[inside] - 5).max() < 0.01 and c.edges[inside].max() < 0.01 and (c.loss[inside] == 7).all()
    rim = np.abs(np.hypot(c.x, c.y) - 0.5) < 0.01
    assert c.edges[rim].min() > 0.8 and np.abs(c.echo[np.hypot(c.x, c.y) > 0.6]).max() == 0
    assert [name for name, _ in c.painted] == ["cyst", "kidney"]


def test_a_misspelt_structure_is_refused() -> None:
    c = canvas()
    with pytest.raises(ValueError, match="'cist' is none of STRUCTURES"):
        c.paint(c.disc(0, 0, 0.2, 0.2), -20, name="cist")


def test_tissue_is_uneven_as_much_as_it_says() -> None:
    surfaces = [Grid(32).uneven(np.random.default_rng(seed)) for seed in range(120)]
    for kind in range(3):
        values = np.stack([surface[kind] for surface in surfaces])
        assert abs(values.std() - 1) < 0.08 and abs(values.mean()) < 0.1
    streaks = np.stack([Grid(96).uneven(np.random.default_rng(seed))[2] for seed in range(5)])
    assert np.abs(np.diff(streaks, axis=1)).mean() > 2 * np.abs(np.diff(streaks, axis=2)).mean()


def test_an_outline_has_the_lobes_asked_for() -> None:
    shape = outline(chances(3), 5, 5, 0.2)
    assert shape.dtype == np.float32 and abs(shape.mean() - 1) < 0.01
    assert np.argmax(np.abs(np.fft.rfft(shape - shape.mean()))) == 5


def test_streaks_run_along_the_beams() -> None:
    c = canvas("convex")
    box, mask = c.beams(0.2, 0.1, 0.3, 1.2)
    across, along = c.grid.across[:, box[1]], c.grid.along[box[0]]
    assert mask[:, np.abs(across[0] - 0.2).argmin()][along[:, 0] > 0.4].min() > 0.9
    assert mask[along[:, 0] < 0.2].size == 0 or mask[along[:, 0] < 0.2].max() == 0
    assert mask[:, np.abs(across[0] - 0.2) > 0.22].max() < 0.02
