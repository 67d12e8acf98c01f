"""What tells benign from malignant is drawn so."""

from collections.abc import Callable

import numpy as np
from canvases import canvas, chances

from medmambase.data.phantom import masses
from medmambase.data.phantom.canvas import Array, Canvas
from medmambase.data.phantom.chances import Chances

Painter = Callable[[Canvas, Chances, float, float, float], None]


def painted(paint: Painter, name: str, seed: int) -> tuple[Canvas, Array]:
    """A canvas with one mass in its middle, and the mask of the mass on all samples."""
    c = canvas(size=96)
    paint(c, chances(seed), 0.0, 0.0, 0.3)
    mask = np.zeros_like(c.echo)
    for found, (box, part) in c.painted:
        if found == name:
            mask[box] = np.maximum(mask[box], part)
    return c, mask


def roughness(c: Canvas, mask: Array) -> float:
    """How much longer the border is than that of a circle of this area; 1 for a circle."""
    cell = 4 * c.probe.inner * c.probe.outer / mask.size
    down, right = np.gradient(mask, 2 * c.probe.outer / mask.shape[0], 2 * c.probe.inner / mask.shape[1])
    return float((np.hypot(down, right).sum() * cell) ** 2 / (4 * np.pi * mask.sum() * cell))


def test_margins_are_smooth_lobulated_or_rough() -> None:
    kinds = (
        (masses.smooth_mass, "solid mass, smooth margin"),
        (masses.lobulated_mass, "solid mass, lobulated margin"),
        (masses.spiculated_mass, "solid mass, spiculated margin"),
    )
    rough = [np.mean([roughness(*painted(paint, name, seed)) for seed in range(12)]) for paint, name in kinds]
    assert rough[0] < 1.25 and rough[1] > 1.08 * rough[0] and rough[2] > 1.08 * rough[0]


def test_a_benign_mass_is_wide_and_most_malignant_ones_are_tall() -> None:
    tall = {}
    for paint, name in (
        (masses.smooth_mass, "solid mass, smooth margin"),
        (masses.spiculated_mass, "solid mass, spiculated margin"),
    ):
        shapes = []
        for seed in range(16):
            c, mask = painted(paint, name, seed)
            wide, high = (np.sqrt(np.average(place**2, weights=mask)) for place in (c.x, c.y))
            shapes.append(high > wide)
        tall[name] = np.mean(shapes)
    assert tall["solid mass, smooth margin"] == 0 and tall["solid mass, spiculated margin"] > 0.4


def test_sound_is_lost_in_malignant_masses_and_gained_in_cysts() -> None:
    lost = {
        name: np.mean([(c.loss * mask).sum() / mask.sum() for c, mask in (painted(paint, name, s) for s in range(12))])
        for paint, name in (
            (masses.cyst, "cyst"),
            (masses.smooth_mass, "solid mass, smooth margin"),
            (masses.spiculated_mass, "solid mass, spiculated margin"),
        )
    }
    assert lost["cyst"] < -8 < lost["solid mass, smooth margin"] < 4 < lost["solid mass, spiculated margin"]
