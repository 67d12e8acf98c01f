"""Paint the lung: chest wall, ribs, pleural line, and what it throws into the picture."""

import numpy as np

from medmambase.data.phantom import tissue
from medmambase.data.phantom.canvas import FLUID, Array, Canvas
from medmambase.data.phantom.chances import Chances


def lung(c: Canvas, r: Chances) -> None:
    """Air below the pleural line sends everything back: A-lines repeat it, B-lines run down from
    it; where tissue or fluid has taken the place of air, sound goes on."""
    near = 0.14 if c.probe.half_angle > 0.3 else 0.24
    wall = r.between(0.6, 1.5) * near
    fat = tissue.skin(c, r, 0.45 * wall)
    pleura = c.interface(r, wall, 0.03, 0.012)
    tissue.muscle(c, r, fat, pleura)

    # Air scatters; haze that fades downwards.
    haze = c.band(pleura, 1.2)
    depth = c.grid.along[haze.box[0]] - wall
    fading = r.between(-12, -3) - r.between(8, 26) * depth
    c.paint(haze, np.repeat(fading, c.grid.lines, 1), texture=r.between(1.5, 3), edge=0)
    kind = r.one_of(("air", "air", "wet", "wet", "wet", "solid", "solid", "fluid", "fluid"))
    if r.chance(0.75 if kind == "air" else 0.2):
        _a_lines(c, r, pleura)
    surface = pleura
    if kind == "fluid":
        surface = _effusion(c, r, pleura)
    if kind == "solid" or (kind == "fluid" and r.chance(0.4)):
        _consolidation(c, r, surface)
    if kind == "wet" or (kind == "solid" and r.chance(0.5)):
        _b_lines(c, r, surface)
    _pleural_line(c, r, pleura, broken=r.chance(0.5 if kind in ("wet", "solid") else 0.1))
    if r.chance(0.65):
        _ribs(c, r, wall)


def _pleural_line(c: Canvas, r: Chances, along: Array, *, broken: bool) -> None:
    half = r.between(0.008, 0.016) * 2 / c.probe.reach
    if broken:  # little steps and gaps
        steps = np.sin(c.grid.across[0] * r.between(12, 30) + r.angle())
        along = along + 0.012 * np.maximum(steps, 0)
        half = half * np.clip(1.2 + 1.6 * np.sin(c.grid.across[0] * r.between(9, 22) + r.angle()), 0.15, 1)
    c.paint(c.band(along - half, along + half), r.between(12, 18), texture=1.5, name="pleural line")


def _a_lines(c: Canvas, r: Chances, pleura: Array) -> None:
    echo, fall = r.between(3, 9), r.between(2, 5)
    for order in range(2, 7):
        half = r.between(0.006, 0.014) * 2 / c.probe.reach
        if float(pleura.min()) * order < 1:
            patch = c.band(pleura * order - half, pleura * order + half)
            c.paint(patch, echo - fall * (order - 2), edge=0.5, name="A-lines")


def _b_lines(c: Canvas, r: Chances, pleura: Array) -> None:
    many = r.chance(0.3)  # confluent
    for _ in range(r.whole(5, 9) if many else r.whole(1, 5)):
        half = r.between(0.05, 0.16) if many else r.between(0.02, 0.07)
        streak = c.beams(
            r.between(-0.95, 0.95), half, pleura, r.one_of((1.3, 1.3, r.between(0.6, 1))), r.between(0.6, 0.95)
        )
        c.paint(streak, r.between(2, 10), texture=2, edge=0.3, name="B-lines")


def _consolidation(c: Canvas, r: Chances, pleura: Array) -> None:
    """Lung like liver below the pleura, with a torn lower border and air left in its bronchi."""
    across = c.grid.across[0]
    middle, half, deep = r.between(-0.7, 0.7), r.between(0.2, 0.8), r.between(0.12, 0.4)
    bulge = np.clip(1 - ((across - middle) / half) ** 2, 0, None)
    torn = np.ones_like(across)
    for turns in (5, 11, 23):
        torn += r.between(0, 0.25) * np.sin(across * (turns * r.between(0.7, 1.4)) + r.angle())
    bottom = pleura + (deep * np.sqrt(bulge) * torn).astype(np.float32)
    bottom = np.where(bulge > 0, bottom, pleura - 0.05)
    rim = c.band(np.where(bulge > 0, bottom, -1), np.where(bulge > 0, bottom + 0.03, -1))
    c.paint(rim, r.between(8, 14), texture=2, edge=0.3)
    c.paint(c.band(pleura, bottom), r.between(-9, -1), texture=2.5, name="consolidation")
    for _ in range(r.whole(0, 6)):
        x, y = c.probe.place(middle + 0.6 * half * r.between(-1, 1), float(pleura.mean()) + deep * r.between(0.2, 0.7))
        c.paint(c.disc(x, y, r.between(0.02, 0.07), 0.018, r.between(-0.8, 0.8)), r.between(7, 14), edge=0.5)


def _effusion(c: Canvas, r: Chances, pleura: Array) -> Array:
    """Fluid between chest wall and lung; returns the depth of the lung's surface."""
    across = c.grid.across[0]
    deep, side = r.between(0.1, 0.45), r.side()
    full = r.chance(0.4)
    share = np.ones_like(across) if full else np.clip(side * across + r.between(0, 0.6), 0, 1)
    surface: Array = pleura + deep * np.sqrt(share)
    patch = c.band(pleura, surface)
    c.paint(patch, FLUID + r.between(0, 10), loss=-r.between(2, 12), name="free fluid")
    half = 0.012
    c.paint(c.band(surface - half, surface + half), r.between(4, 12), edge=0.5)
    return surface


def _ribs(c: Canvas, r: Chances, wall: float) -> None:
    apart, first = r.between(0.7, 1.3), r.between(-1, 0)
    size = r.between(0.08, 0.15)
    for number in range(3):
        across = first + number * apart
        if -1.1 < across < 1.1:
            tissue.bone_spot(c, r, across, wall * r.between(0.75, 0.9), size, size * r.between(0.3, 0.5))
