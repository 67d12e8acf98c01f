"""Paint what linear probes see near the skin: breast, thyroid, vessels, muscle and bone."""

import math

from medmambase.data.phantom import masses, tissue
from medmambase.data.phantom.canvas import FLUID, Canvas
from medmambase.data.phantom.chances import Chances


def breast(c: Canvas, r: Chances) -> None:
    """Skin, fat with its septa, glandular tissue, the pectoral muscle, and often a mass."""
    fat = tissue.skin(c, r, r.between(0.15, 0.4))
    for _ in range(r.whole(0, 4)):  # lobules of fat
        x, y = c.probe.place(r.between(-0.9, 0.9), r.between(0.1, 0.8))
        a, turn = r.between(0.1, 0.3), r.between(-0.4, 0.4)
        c.paint(c.disc(x, y, a, a * r.between(0.4, 0.7), turn), r.between(-9, -5), texture=1.5, edge=0.3)
    end = r.between(0.65, 0.95)
    behind = c.interface(r, end, 0.06)
    gland = c.band(fat, behind)
    c.paint(gland, r.between(-1, 4) + r.between(1, 3) * c.coarse[gland.box], texture=r.between(1.5, 3.5), edge=0.4)
    for _ in range(r.whole(1, 5)):  # ducts and strands
        x, y = c.probe.place(r.between(-0.9, 0.9), r.between(0.3, 0.6))
        lean, far = r.between(-0.5, 0.5), r.between(0.15, 0.4)
        dx, dy = far * math.cos(lean), far * math.sin(lean)
        half, echo = r.between(0.012, 0.03), r.between(4, 8) if r.chance(0.6) else -12
        c.paint(c.tube(x - dx, y - dy, x + dx, y + dy, half, r.between(-0.08, 0.08)), echo, edge=0.4)
    if r.chance(0.6):
        tissue.fascia(c, r, behind)
        tissue.muscle(c, r, behind, c.interface(r, end + r.between(0.1, 0.25)))
    for _ in range(r.one_of((0, 1, 1, 1, 1, 1, 2))):
        x, y = c.probe.place(r.between(-0.65, 0.65), r.between(0.25, 0.65))
        masses.mass(c, r, x, y, r.between(0.1, 0.34))


def thyroid(c: Canvas, r: Chances) -> None:
    """Strap muscles, one lobe or both beside the trachea, the carotid arteries, nodules."""
    fat = tissue.skin(c, r, r.between(0.08, 0.16))
    top = r.between(0.2, 0.3)
    tissue.muscle(c, r, fat, c.interface(r, top, 0.03))
    echo, grain = r.between(0, 5), r.between(1, 2.5)
    behind = c.interface(r, top + r.between(0.5, 0.65), 0.04)
    if r.chance(0.6):
        tissue.muscle(c, r, behind, c.interface(r, 1.1))
    lobes = []
    if r.chance(0.45):  # one lobe, along
        x, y = c.probe.place(r.between(-0.1, 0.1), top + r.between(0.18, 0.26))
        lobes.append((x, y, r.between(0.7, 1.0), r.between(0.22, 0.34), 0))
    else:
        middle = r.between(-0.6, 0.6)
        for side in (-1, 1):
            x, y = c.probe.place(middle + side * r.between(0.42, 0.52), top + r.between(0.16, 0.24))
            lobes.append((x, y, r.between(0.26, 0.36), r.between(0.22, 0.32), side))
        if r.chance(0.85):
            _trachea(c, r, middle, top + r.between(0.06, 0.14))
    for x, y, a, b, side in lobes:
        turn = r.between(-0.2, 0.2)
        tissue.capsule(c, r, x, y, a, b, turn, r.between(5, 9))
        c.paint(c.disc(x, y, a, b, turn), echo, texture=grain, name="thyroid lobe")
        c.measured.append((x - a, y, x + a, y))
        for _ in range(r.one_of((0, 0, 1, 1, 2))):
            nodule = b * r.between(0.25, 0.75)
            masses.mass(c, r, x + 0.45 * a * r.between(-1, 1), y + 0.3 * b * r.between(-1, 1), nodule)
        if side and r.chance(0.7):  # the carotid artery
            beside = x + side * (a + r.between(0.12, 0.2))
            tissue.vessel_across(c, r, beside, y + r.between(-0.05, 0.1), r.between(0.08, 0.14))


def _trachea(c: Canvas, r: Chances, across: float, along: float) -> None:
    """Cartilage like a bright arch, and below it air with its repetitions."""
    x, y = c.probe.place(across, along)
    a, b = r.between(0.2, 0.28), r.between(0.18, 0.28)
    y += b
    c.paint(c.disc(x, y, a, b), r.between(-16, -8), loss=r.between(30, 70), texture=2, edge=0.5)
    c.paint(c.ring(x, y, a, b, 0, r.between(0.04, 0.07), sides=0.2), r.between(9, 15), loss=40, name="trachea")
    for order in (1, 2, 3):
        half = a * (1 - 0.2 * order)
        patch = c.tube(x - half, y - b + 0.13 * order, x + half, y - b + 0.13 * order, 0.016, -0.05)
        c.paint(patch, r.between(4, 10), edge=0.2)


def vessel(c: Canvas, r: Chances) -> None:
    """An artery along or across, its wall of two bright layers, plaques in it; often a vein."""
    fat = tissue.skin(c, r, r.between(0.06, 0.2))
    first = r.between(0.25, 0.45)
    tissue.muscle(c, r, fat, c.interface(r, first - 0.03, 0.04))
    if r.chance(0.5):
        tissue.muscle(c, r, c.interface(r, 0.85, 0.05), c.interface(r, 1.1))
    middle = first + r.between(0.05, 0.3)
    if r.chance(0.55):
        _artery_along(c, r, middle)
        if r.chance(0.3):
            x0, y0 = c.probe.place(-1.1, middle - r.between(0.2, 0.3))
            x1, y1 = c.probe.place(1.1, middle - r.between(0.2, 0.3))
            tissue.vessel_along(c, r, x0, y0, x1, y1, r.between(0.05, 0.1))
        return
    for number in range(r.whole(1, 3)):
        across = r.between(-0.2, 0.2) if number == 0 else r.side() * r.between(0.4, 0.7)
        x, y = c.probe.place(across, middle + r.between(-0.1, 0.1))
        size = r.between(0.12, 0.26) if number < 2 else r.between(0.05, 0.1)
        tissue.vessel_across(c, r, x, y, size)
        c.measured.append((x - size, y, x + size, y))
        if r.chance(0.3):
            angle = r.angle()
            _plaque(c, r, x + 0.75 * size * math.cos(angle), y + 0.75 * size * math.sin(angle), 0.4 * size, angle)


def _artery_along(c: Canvas, r: Chances, middle: float) -> None:
    half, bend, tilt = r.between(0.1, 0.22), r.between(-0.12, 0.12), r.between(-0.15, 0.15)
    x0, y0 = c.probe.place(-1.1, middle + tilt)
    x1, y1 = c.probe.place(1.1, middle - tilt)
    wall = r.between(0.02, 0.04)
    for more, echo in ((2.6 * wall, r.between(7, 12)), (1.6 * wall, r.between(-14, -6)), (0.9 * wall, r.between(3, 9))):
        c.paint(c.tube(x0, y0, x1, y1, half + more, bend), echo, edge=0.5)
    lumen = c.tube(x0, y0, x1, y1, half, bend)
    c.paint(lumen, FLUID + r.between(0, 8), loss=-r.between(4, 14), name="vessel")
    c.measured.append(((x0 + x1) / 2, (y0 + y1) / 2 + bend - half, (x0 + x1) / 2, (y0 + y1) / 2 + bend + half))
    for _ in range(r.one_of((0, 1, 1, 2))):
        share, side = r.between(0.2, 0.8), r.side()
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0) + 4 * bend * share * (1 - share) + side * half * 0.85
        _plaque(c, r, x, y, half * r.between(0.35, 0.6), 0)


def _plaque(c: Canvas, r: Chances, x: float, y: float, size: float, turn: float) -> None:
    hard = r.chance(0.4)
    patch = c.disc(x, y, size * r.between(1.0, 1.9), size, turn + math.pi / 2 if turn else 0)
    c.paint(
        patch, r.between(9, 15) if hard else r.between(-8, 4), loss=r.between(120, 300) if hard else 0, name="plaque"
    )


def muscle_and_bone(c: Canvas, r: Chances) -> None:
    """Layers of muscle, tendons, joints with fluid, the surface of a bone."""
    top = tissue.skin(c, r, r.between(0.08, 0.25))
    depth = float(top.mean())
    for _ in range(r.whole(1, 3)):
        depth += r.between(0.12, 0.3)
        bottom = c.interface(r, depth, 0.08, 0.02)
        if r.chance(0.75):
            tissue.muscle(c, r, top, bottom)
        else:  # a tendon: bright fibres
            tissue.fibres(c, r, c.band(top, bottom), r.between(1, 5), r.between(3, 6))
            tissue.fascia(c, r, bottom)
        top = bottom
    if r.chance(0.3):
        x, y = c.probe.place(r.between(-0.6, 0.6), r.between(0.3, 0.6))
        (masses.mass if r.chance(0.6) else tissue.vessel_across)(c, r, x, y, r.between(0.08, 0.22))
    if r.chance(0.75):
        surface = c.interface(r, min(0.9, depth + r.between(0, 0.1)), 0.12, 0.07)
        if r.chance(0.35):
            tissue.fluid_between(c, surface - r.between(0.05, 0.14), surface)
        tissue.bone_surface(c, r, surface, r.between(0.03, 0.05))
