"""Paint what probes with fanning beams see far below the skin: abdomen, kidney, pelvis, fetus,
heart."""

import math

from medmambase.data.phantom import masses, tissue
from medmambase.data.phantom.canvas import FLUID, Canvas
from medmambase.data.phantom.chances import Chances


def abdomen(c: Canvas, r: Chances) -> None:
    """Liver with its vessels and the diaphragm, gallbladder with stones, lesions, ascites, gas."""
    wall = c.interface(r, r.between(0.06, 0.16), 0.02)
    if r.chance(0.7):
        tissue.muscle(c, r, tissue.skin(c, r, 0.04), wall)
    c.echo += r.between(-3, 4)
    if r.chance(0.15):
        tissue.fluid_between(c, wall, wall + r.between(0.05, 0.25))
    x, y = c.probe.place(r.between(-0.3, 0.3), 0.5)
    a, b = r.between(0.7, 1.1), r.between(0.6, 0.85)
    if r.chance(0.7):
        tissue.capsule(c, r, x, y, a, b, r.between(-0.5, 0.5), r.between(4, 10))
    if r.chance(0.4):  # the diaphragm, far below, and what lies beyond
        deep = c.interface(r, r.between(0.8, 0.92), 0.15, 0.06)
        c.paint(c.band(deep, 1.2), r.between(-14, -6), texture=2, edge=0)
        c.paint(c.band(deep - 0.012, deep + 0.012), r.between(9, 14), edge=0.8)
    for _ in range(r.whole(1, 6)):
        x, y = c.probe.place(r.between(-0.8, 0.8), r.between(0.25, 0.85))
        half, far, lean = r.between(0.018, 0.06), r.between(0.15, 0.5), r.angle()
        if r.chance(0.65):
            dx, dy = far * math.cos(lean), far * math.sin(lean)
            tissue.vessel_along(c, r, x - dx, y - dy, x + dx, y + dy, half)
        else:
            tissue.vessel_across(c, r, x, y, 1.4 * half)
    if r.chance(0.4):
        x, y = c.probe.place(r.between(-0.5, 0.5), r.between(0.3, 0.6))
        _filled(c, r, x, y, r.between(0.2, 0.4), r.between(0.1, 0.18), r.between(-0.8, 0.8))
    for _ in range(r.one_of((0, 0, 1, 1, 2))):
        x, y = c.probe.place(r.between(-0.6, 0.6), r.between(0.3, 0.8))
        masses.mass(c, r, x, y, r.between(0.08, 0.26))
    if r.chance(0.3):
        tissue.gas(c, r, r.between(-0.8, 0.8), r.between(0.25, 0.7), r.between(0.08, 0.2))


def _filled(c: Canvas, r: Chances, x: float, y: float, a: float, b: float, turn: float) -> None:
    """Gallbladder or bladder: fluid in a wall, sometimes with stones, which throw shadows."""
    wall = r.between(0.02, 0.04)
    c.paint(c.ring(x, y, a + wall / 2, b + wall / 2, turn, wall, 0.5), r.between(2, 8), edge=0.5)
    c.paint(c.disc(x, y, a, b, turn), FLUID + r.between(0, 4), loss=-r.between(6, 16), name="fluid-filled organ")
    if r.chance(0.35):
        share = r.between(-0.5, 0.5)
        stone(c, r, x + share * a * math.cos(turn), y + share * a * math.sin(turn) + 0.6 * b, r.between(0.3, 0.45) * b)
    c.measured.append((x - a * math.cos(turn), y - a * math.sin(turn), x + a * math.cos(turn), y + a * math.sin(turn)))


def stone(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A bright spot with a clean shadow."""
    size = max(size, 0.03)
    patch = c.disc(x, y, size, size * r.between(0.6, 1))
    c.paint(patch, r.between(12, 18), loss=r.between(25, 45) / size, name="stone")


def kidney(c: Canvas, r: Chances) -> None:
    """Cortex, dark pyramids, the bright sinus, sometimes widened by urine; cysts and stones."""
    if r.chance(0.6):
        tissue.muscle(c, r, tissue.skin(c, r, 0.06), c.interface(r, r.between(0.12, 0.2), 0.02))
    x, y = c.probe.place(r.between(-0.15, 0.15), r.between(0.42, 0.58))
    a, b, turn = r.between(0.5, 0.75), r.between(0.26, 0.38), r.between(-0.7, 0.7)
    tissue.capsule(c, r, x, y, a, b, turn, r.between(4, 10))
    cortex = r.between(-9, -2)
    c.paint(c.disc(x, y, a, b, turn), cortex, texture=1.2, name="kidney")
    c.measured.append((x - a * math.cos(turn), y - a * math.sin(turn), x + a * math.cos(turn), y + a * math.sin(turn)))
    cos, sin = math.cos(turn), math.sin(turn)
    count = r.whole(5, 9)
    dark = r.between(2, 8)
    for number in range(count):
        angle = 2 * math.pi * (number + r.between(-0.2, 0.2)) / count
        u, v = 0.62 * a * math.cos(angle), 0.62 * b * math.sin(angle)
        c.paint(
            c.disc(x + u * cos - v * sin, y + u * sin + v * cos, 0.3 * b, 0.22 * b, angle + turn),
            cortex - dark,
            edge=0.3,
        )
    shape = c.disc(x, y, 0.58 * a, 0.38 * b, turn)
    c.paint(shape, r.between(5, 10), texture=3, edge=0.6)
    if r.chance(0.3):  # urine
        for _ in range(r.whole(2, 4)):
            u = 0.4 * a * r.between(-1, 1)
            size = r.between(0.15, 0.28) * b
            c.paint(c.disc(x + u * cos, y + u * sin, 1.3 * size, size, turn), FLUID, loss=-8, edge=0.8)
    if r.chance(0.3):
        u = 0.45 * a * r.between(-1, 1)
        stone(c, r, x + u * cos, y + u * sin, r.between(0.03, 0.07))
    if r.chance(0.4):
        u, v = 0.8 * a * r.between(-1, 1), 0.7 * b * r.side()
        masses.mass(c, r, x + u * cos - v * sin, y + u * sin + v * cos, r.between(0.08, 0.2))
    if r.chance(0.2):
        tissue.gas(c, r, r.side() * r.between(0.4, 0.9), r.between(0.2, 0.5), r.between(0.1, 0.2))


def pelvis(c: Canvas, r: Chances) -> None:
    """Bladder, uterus with its bright lining, ovaries with follicles, cysts and masses, free
    fluid."""
    c.echo += r.between(-4, 2)
    if r.chance(0.4):
        x, y = c.probe.place(r.between(-0.3, 0.3), r.between(0.2, 0.35))
        _filled(c, r, x, y, r.between(0.3, 0.5), r.between(0.12, 0.24), r.between(-0.2, 0.2))
    if r.chance(0.25):
        x, y = c.probe.place(r.between(-0.5, 0.5), r.between(0.6, 0.8))
        c.paint(c.disc(x, y, r.between(0.3, 0.5), r.between(0.08, 0.16)), FLUID, loss=-8, name="free fluid")
    if r.chance(0.6):
        x, y = c.probe.place(r.between(-0.3, 0.3), r.between(0.45, 0.65))
        a, b, turn = r.between(0.4, 0.6), r.between(0.2, 0.3), r.between(-0.5, 0.5)
        c.paint(c.disc(x, y, a, b, turn), r.between(-6, 0), texture=1.5, name="uterus")
        dx, dy = 0.6 * a * math.cos(turn), 0.6 * a * math.sin(turn)
        c.paint(c.tube(x - dx, y - dy, x + dx, y + dy, r.between(0.03, 0.07), 0, 0.4), r.between(4, 9), edge=0.6)
        c.measured.append((x - 1.6 * dx, y - 1.6 * dy, x + 1.6 * dx, y + 1.6 * dy))
    if r.chance(0.55):
        x, y = c.probe.place(r.side() * r.between(0.3, 0.6), r.between(0.4, 0.7))
        a = r.between(0.2, 0.36)
        b = a * r.between(0.6, 0.8)
        c.paint(c.disc(x, y, a, b), r.between(-7, -2), texture=1.5, name="organ outline")
        masses.follicles(c, r, x, y, a, b)
    for _ in range(r.one_of((0, 0, 1, 1))):
        x, y = c.probe.place(r.between(-0.6, 0.6), r.between(0.35, 0.75))
        masses.mass(c, r, x, y, r.between(0.12, 0.4))
    if r.chance(0.3):
        tissue.gas(c, r, r.between(-0.8, 0.8), r.between(0.3, 0.8), r.between(0.08, 0.2))


def fetus(c: Canvas, r: Chances) -> None:
    """A head in its skull, a limb, or a trunk with its spine, in amniotic fluid or beside
    placenta."""
    c.echo += r.between(-3, 3)
    if r.chance(0.75):
        x, y = c.probe.place(r.between(-0.2, 0.2), r.between(0.5, 0.6))
        amnion = c.disc(x, y, r.between(0.7, 1), r.between(0.55, 0.8))
        c.paint(amnion, FLUID + r.between(0, 6), loss=-4, name="fluid-filled organ")
    x, y = c.probe.place(r.between(-0.25, 0.25), r.between(0.45, 0.6))
    kind = r.one_of(("head", "limb", "trunk"))
    turn, a = r.between(-0.7, 0.7), r.between(0.45, 0.68)
    if kind == "head":
        b, width = a * r.between(0.72, 0.85), r.between(0.04, 0.07)
        c.paint(c.disc(x, y, a, b, turn), r.between(-14, -6), texture=1.5, name="organ outline")
        cos, sin = math.cos(turn), math.sin(turn)
        c.paint(
            c.tube(x - 0.8 * a * cos, y - 0.8 * a * sin, x + 0.8 * a * cos, y + 0.8 * a * sin, 0.02), r.between(4, 9)
        )
        for side in (-1, 1):
            if r.chance(0.5):
                v, size = side * 0.4 * b, r.between(0.1, 0.16)
                lateral = c.disc(x - v * sin, y + v * cos, 2 * size, 0.6 * size, turn)
                c.paint(lateral, FLUID + 6, edge=0.6)
        c.paint(
            c.ring(x, y, a, b, turn, width, r.between(0.3, 0.7)), r.between(12, 17), loss=r.between(25, 70), name="bone"
        )
        c.measured.append((x - a * cos, y - a * sin, x + a * cos, y + a * sin))
    elif kind == "limb":
        dx, dy = a * math.cos(turn), a * math.sin(turn)
        flesh = c.tube(x - 1.2 * dx, y - 1.2 * dy, x + 1.2 * dx, y + 1.2 * dy, r.between(0.14, 0.24), 0, 0.3)
        c.paint(flesh, r.between(-6, 2), texture=1.5, name="organ outline")
        tissue.bone_shaft(c, r, x - dx, y - dy, x + dx, y + dy)
    else:
        b = a * r.between(0.8, 1)
        tissue.capsule(c, r, x, y, a, b, turn, r.between(5, 10))
        c.paint(c.disc(x, y, a, b, turn), r.between(-4, 2), texture=2, edge=0.6)
        spine = r.angle()
        for apart in (-0.35, 0, 0.35):  # a vertebra: three bright points
            u, v = 0.72 * a * math.cos(spine + apart), 0.72 * b * math.sin(spine + apart)
            c.paint(c.disc(x + u, y + v, 0.05, 0.05), r.between(12, 17), loss=r.between(150, 350), name="bone")
        u, v = 0.5 * a * math.cos(spine + 2), 0.5 * b * math.sin(spine + 2)
        c.paint(c.disc(x + u, y + v, r.between(0.1, 0.16), r.between(0.07, 0.12), r.angle()), FLUID, loss=-8, edge=0.9)
        c.measured.append((x - a, y, x + a, y))


def heart(c: Canvas, r: Chances) -> None:
    """Muscle about two or four chambers, valves between them, the pericardium, sometimes fluid in
    it; lung beside it."""
    c.echo += r.between(-16, -8)
    x, y = c.probe.place(r.between(-0.12, 0.12), r.between(0.48, 0.58))
    a, b, turn = r.between(0.62, 0.8), r.between(0.45, 0.6), r.angle()
    cos, sin = math.cos(turn), math.sin(turn)
    if r.chance(0.25):
        c.paint(c.disc(x, y, a + 0.14, b + 0.14, turn), FLUID, loss=-4, name="free fluid")
    c.paint(c.ring(x, y, a + 0.16, b + 0.16, turn, r.between(0.03, 0.06), 0.3), r.between(8, 14), edge=0.8)
    c.paint(c.disc(x, y, a, b, turn), r.between(-6, 3), texture=2, name="organ outline")
    four = r.chance(0.6)
    split, wall = r.between(0.0, 0.2), r.between(0.05, 0.09)
    halves = ((-1, r.between(0.8, 1)), (1, r.between(0.6, 1))) if four else ((0, 1.6),)
    for side, wide in halves:
        v = side * 0.46 * b
        for end in (-1, 1):
            far = (a - split * end) / 2 - wall
            u = split * a + end * (far + wall * 0.6)
            half = (0.36 if four else 0.45) * b * wide * r.between(0.85, 1.05)
            px, py = x + u * cos - v * sin, y + u * sin + v * cos
            lumen = c.disc(px, py, far * r.between(0.75, 0.9), half, turn)
            c.paint(lumen, FLUID + r.between(0, 8), loss=-3, name="heart chamber")
        if r.chance(0.85):  # a valve of two leaflets, between the chambers
            u, half, open_by = split * a, 0.3 * b * wide, r.between(-0.15, 0.15)
            for leaf in (-1, 1):
                v0, v1 = v + leaf * half, v + leaf * half * abs(open_by) * 2
                ends = ((u, v0), (u + open_by, v1))
                (x0, y0), (x1, y1) = ((x + p * cos - q * sin, y + p * sin + q * cos) for p, q in ends)
                c.paint(c.tube(x0, y0, x1, y1, 0.016, r.between(-0.03, 0.03)), r.between(6, 12), name="heart valve")
    c.measured.append((x - a * cos, y - a * sin, x + a * cos, y + a * sin))
