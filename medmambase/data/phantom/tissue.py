"""Paint what many scenes have: layers under the skin, muscle, bone, vessels, gas, outlines."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.canvas import FLUID, Canvas, Patch
from medmambase.data.phantom.chances import Chances

Array = npt.NDArray[Any]


def background(c: Canvas, r: Chances) -> None:
    """Soft tissue that is not even: patches, grains, strands across the beams."""
    c.echo = r.between(1, 5) * c.coarse + r.between(0.5, 2.5) * c.fine
    if r.chance(0.7):
        c.echo += r.between(0.5, 4) * c.streaks


def skin(c: Canvas, r: Chances, deepest: float) -> Array:
    """Skin, and the fat under it down to about ``deepest``; returns the depth where fat ends, for
    every line."""
    below = c.interface(r, r.between(0.02, 0.06), 0.01, 0.005)
    c.paint(c.band(-0.1, below), r.between(3, 9), texture=1, edge=0.5)
    fat = c.interface(r, r.between(0.4, 1) * deepest + 0.06, 0.04)
    c.paint(c.band(below, fat), r.between(-10, -4), texture=r.between(1, 3), edge=0.5)
    for _ in range(r.whole(0, 3)):  # septa
        x0, y0 = c.probe.place(r.between(-1, 1), 0.05)
        x1, y1 = c.probe.place(r.between(-1, 1), deepest)
        c.paint(c.tube(x0, y0, x1, y1, 0.01, r.between(-0.1, 0.1)), r.between(1, 6), edge=0.3)
    return fat


def fascia(c: Canvas, r: Chances, along: Array, strength: float = 1.0) -> None:
    """A thin bright sheet."""
    half = r.between(0.004, 0.01) / c.probe.reach * 2
    c.paint(c.band(along - half, along + half), r.between(5, 11) * strength, edge=0.6)


def muscle(c: Canvas, r: Chances, top: Array | float, bottom: Array | float) -> None:
    """Dark fibres with bright stripes between them, in a sheath."""
    patch = c.band(top, bottom)
    fibres(c, r, patch, r.between(-9, -4), r.between(3, 6), name="striated muscle")
    if isinstance(bottom, np.ndarray) and r.chance(0.8):
        fascia(c, r, bottom)


def fibres(c: Canvas, r: Chances, patch: Patch, echo: float, height: float, name: str | None = None) -> None:
    """Stripes, nearly across the beams, in a part of the samples."""
    grid, box = c.grid, patch.box
    turns, tilt = r.between(14, 34), r.between(-6, 6)
    phase = grid.along[box[0]] * (turns * 2) + grid.across[:, box[1]] * tilt
    wave = np.sin(phase * math.pi + 0.9 * c.coarse[box])
    c.paint(patch, echo + height * wave, texture=1.5, edge=0.6, name=name)


def bone_surface(c: Canvas, r: Chances, along: Array, thick: float = 0.03) -> None:
    """A bright continuous surface that sound does not pass."""
    c.paint(c.band(along, along + 0.9), -16, texture=1, edge=0)
    c.paint(c.band(along - thick / 2, along + thick / 2), r.between(13, 19), loss=r.between(550, 900), name="bone")


def bone_spot(c: Canvas, r: Chances, across: float, along: float, a: float, b: float) -> None:
    """A rib or spine in cross-section: a bright cap, dark behind it."""
    x, y = c.probe.place(across, along)
    c.paint(c.disc(x, y, a, b), r.between(-14, -8), loss=r.between(90, 260), edge=0.5, name="bone")
    cap = c.ring(x, y, a, b, 0, 0.05, sides=0.1)
    upper = cap.mask * (c.y[cap.box] < y)
    c.paint(Patch(cap.box, upper), r.between(12, 18), loss=r.between(40, 160))


def bone_shaft(c: Canvas, r: Chances, x0: float, y0: float, x1: float, y1: float) -> None:
    """A long bone, thicker at its ends."""
    bend = r.between(-0.08, 0.08)
    half = r.between(0.03, 0.05)
    c.paint(c.tube(x0, y0, x1, y1, half, bend), r.between(12, 18), loss=r.between(250, 500), name="bone")
    if r.chance(0.6):
        for x, y in ((x0, y0), (x1, y1)):
            size = half * r.between(1.2, 1.8)
            c.paint(c.disc(x, y, size, size), r.between(8, 14), loss=r.between(60, 200), edge=0.6)
    c.measured.append((x0, y0, x1, y1))


def capsule(c: Canvas, r: Chances, x: float, y: float, a: float, b: float, turn: float, echo: float) -> None:
    """The bright outline of an organ, brightest where it faces the probe."""
    width = r.between(0.02, 0.045)
    c.paint(c.ring(x, y, a, b, turn, width, sides=r.between(0.3, 0.8)), echo, edge=0.8, name="organ outline")


def vessel_across(c: Canvas, r: Chances, x: float, y: float, radius: float) -> None:
    """A vessel in cross-section: an artery with a bright wall, or a flat vein."""
    vein = r.chance(0.45)
    squeeze, turn = r.between(0.4, 0.8) if vein else r.between(0.88, 1), r.between(-0.3, 0.3)
    if not vein or r.chance(0.3):
        wall = r.between(0.02, 0.04)
        c.paint(
            c.ring(x, y, radius + wall / 2, radius * squeeze + wall / 2, turn, wall, 0.4), r.between(5, 12), edge=0.7
        )
    lumen = FLUID + r.between(0, 8)
    c.paint(c.disc(x, y, radius, radius * squeeze, turn), lumen, loss=-r.between(3, 14), name="vessel")


def vessel_along(c: Canvas, r: Chances, x0: float, y0: float, x1: float, y1: float, half: float) -> None:
    """A vessel along its course, with or without bright walls, often tapering."""
    bend, taper = r.between(-0.12, 0.12), r.between(0, 0.5)
    if r.chance(0.5):
        wall = r.between(0.015, 0.035)
        c.paint(c.tube(x0, y0, x1, y1, half + wall, bend, taper), r.between(4, 10), edge=0.6)
    c.paint(c.tube(x0, y0, x1, y1, half, bend, taper), FLUID + r.between(0, 8), loss=-r.between(2, 8), name="vessel")


def gas(c: Canvas, r: Chances, across: float, along: float, wide: float) -> None:
    """Bowel gas: an irregular bright surface, haze and shadow below it."""
    x, y = c.probe.place(across, along)
    for _ in range(r.whole(2, 4)):
        dx, dy = r.between(-wide, wide), r.between(-0.04, 0.04)
        size = wide * r.between(0.3, 0.7)
        c.paint(
            c.disc(x + dx, y + dy, size, r.between(0.02, 0.05)), r.between(10, 16), loss=r.between(60, 220), name="gas"
        )
    if r.chance(0.6):
        c.paint(c.beams(across, wide, along + 0.03, 1.2, r.between(0.3, 0.7)), r.between(0, 6), texture=5, edge=0)


def fluid_between(c: Canvas, top: Array | float, bottom: Array | float) -> None:
    """Free fluid between two surfaces."""
    c.paint(c.band(top, bottom), FLUID, loss=-8, name="free fluid")


def chance_findings(c: Canvas, r: Chances) -> None:
    """What any picture may hold: bright specks, reverberations below the probe, a side without
    contact, gas."""
    for _ in range(r.whole(0, 4)):
        x, y = c.probe.place(r.between(-0.9, 0.9), r.between(0.1, 0.95))
        size = r.between(0.012, 0.035)
        c.paint(c.disc(x, y, size * r.between(1, 2.5), size, r.between(-0.5, 0.5)), r.between(4, 12), edge=0.6)
    if r.chance(0.25):
        first, strength = r.between(0.03, 0.08), r.between(3, 8)
        for order in (1, 2, 3):
            patch = c.band(first * order - 0.006, first * order + 0.006)
            c.paint(Patch(patch.box, patch.mask * (0.7 / order)), strength, edge=0)
    if r.chance(0.6):  # layers near the probe take away more here than there
        rows = c.grid.depths // 8
        uneven = np.maximum(c.coarse[rows // 2] + r.between(-1, 0.6), 0)
        c.loss[:rows] += uneven * r.between(4, 40)
    if r.chance(0.12):
        aside, wide = r.side() * r.between(0.7, 1.1), r.between(0.1, 0.35)
        c.weaken(c.beams(aside, wide, -0.1, 0.1), r.between(80, 300))
    if r.chance(0.08):
        gas(c, r, r.between(-0.8, 0.8), r.between(0.15, 0.6), r.between(0.08, 0.2))
