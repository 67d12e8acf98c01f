"""Paint cysts and solid masses, with the margins that tell benign from malignant."""

import math

from medmambase.data.phantom.canvas import FLUID, Canvas, outline
from medmambase.data.phantom.chances import Chances


def cyst(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A round space of fluid with a thin wall; more sound arrives behind it."""
    a, b, turn = size * r.between(0.9, 1.2), size * r.between(0.7, 0.95), r.between(-0.4, 0.4)
    wall = r.between(0.015, 0.03)
    c.paint(c.ring(x, y, a + wall / 2, b + wall / 2, turn, wall, sides=0.25), r.between(3, 9), edge=0.5)
    c.paint(c.disc(x, y, a, b, turn), FLUID + r.between(0, 5), loss=-r.between(10, 26), name="cyst")
    if r.chance(0.4):  # sound that grazes a round wall is bent away: a narrow shadow at either side
        for side in (-1, 1):
            c.weaken(c.disc(x + side * a, y, 0.03, 0.06), r.between(40, 120))
    if size > 0.15 and r.chance(0.2):  # a septum
        lean, off = r.angle(), r.between(-0.3, 0.3) * b
        dx, dy = 0.9 * a * math.cos(lean), 0.9 * b * math.sin(lean)
        c.paint(c.tube(x - dx, y - dy + off, x + dx, y + dy + off, 0.012), r.between(-4, 4), edge=0.5)
    _measure(c, x, y, a, b, turn)


def smooth_mass(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A benign mass: oval, wider than tall, sharply limited, often in a thin capsule."""
    a, b, turn = size * r.between(1.0, 1.35), size * r.between(0.55, 0.85), r.between(-0.3, 0.3)
    bright = r.chance(0.2)
    echo = r.between(5, 9) if bright else r.between(-15, -7)
    if r.chance(0.6):
        c.paint(c.ring(x, y, a, b, turn, r.between(0.03, 0.05), sides=0.4), r.between(3, 9), edge=0.3)
    shape = outline(r, 2, 3, 0.04)
    patch = c.blob(x, y, a, b, turn, shape)
    c.paint(patch, echo, loss=r.between(-10, 4), texture=r.between(0.5, 2), name="solid mass, smooth margin")
    _measure(c, x, y, a, b, turn)


def lobulated_mass(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A mass with several rounded lobes, darker than its surroundings."""
    a, b, turn = size * r.between(0.9, 1.2), size * r.between(0.7, 1.0), r.between(-0.6, 0.6)
    patch = c.blob(x, y, a, b, turn, outline(r, 3, 6, 0.11))
    name = "solid mass, lobulated margin"
    c.paint(patch, r.between(-16, -8), loss=r.between(-6, 16), texture=r.between(1, 3), name=name)
    if r.chance(0.25):
        calcifications(c, r, x, y, 0.6 * a, 0.6 * b)
    _measure(c, x, y, a, b, turn)


def spiculated_mass(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A malignant mass: irregular, taller than wide, with spicules, a bright halo, a shadow behind,
    calcifications."""
    tall = r.chance(0.6)
    a, b = size * r.between(0.7, 0.95), size * r.between(0.95, 1.2)
    if not tall:
        a, b = b, a
    turn, shape = r.between(-0.4, 0.4), outline(r, 2, 7, 0.08)
    if r.chance(0.6):
        halo = c.blob(x, y, a * 1.3, b * 1.3, turn, shape)
        c.paint(halo, r.between(4, 9), texture=2, edge=0.3, name="echogenic halo")
    echo = r.between(-18, -9)
    for spicule in range(count := r.whole(7, 12)):
        angle = 2 * math.pi * (spicule + r.between(-0.3, 0.3)) / count
        far = r.between(1.35, 1.8) * size
        dx, dy = math.cos(angle), math.sin(angle)
        dark = r.chance(0.6)
        ends = (x + 0.5 * a * dx, y + 0.5 * b * dy, x + far * dx, y + far * dy)
        c.paint(c.tube(*ends, size * r.between(0.1, 0.2), 0, 0.85), echo + 2 if dark else r.between(4, 8), edge=0.7)
    name = "solid mass, spiculated margin"
    loss = r.between(14, 55) / size * 0.25 if r.chance(0.75) else r.between(-4, 6)
    c.paint(c.blob(x, y, a, b, turn, shape), echo, loss=loss, texture=r.between(2, 4), name=name)
    if r.chance(0.45):
        calcifications(c, r, x, y, 0.7 * a, 0.7 * b)
    _measure(c, x, y, a, b, turn)


def calcifications(c: Canvas, r: Chances, x: float, y: float, a: float, b: float) -> None:
    """A cluster of bright points without shadows of their own."""
    for _ in range(r.whole(5, 12)):
        angle, far = r.angle(), math.sqrt(r.unit())
        size = r.between(0.016, 0.026)
        spot = c.disc(x + a * far * math.cos(angle), y + b * far * math.sin(angle), size, size)
        c.paint(spot, r.between(10, 17), edge=0.7, name="microcalcifications")


def solid(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A solid mass with one of three margins."""
    r.one_of((smooth_mass, smooth_mass, lobulated_mass, spiculated_mass, spiculated_mass))(c, r, x, y, size)


def mass(c: Canvas, r: Chances, x: float, y: float, size: float) -> None:
    """A cyst or a solid mass."""
    (cyst if r.chance(0.35) else solid)(c, r, x, y, size)


def _measure(c: Canvas, x: float, y: float, a: float, b: float, turn: float) -> None:
    for half, angle in ((a, turn), (b, turn + math.pi / 2)):
        dx, dy = half * math.cos(angle), half * math.sin(angle)
        c.measured.append((x - dx, y - dy, x + dx, y + dy))


def follicles(c: Canvas, r: Chances, x: float, y: float, a: float, b: float) -> None:
    """Small cysts along the rim of an ovary."""
    count, first = r.whole(4, 8), r.angle()
    for number in range(count):
        angle = first + 2 * math.pi * number / count
        size = r.between(0.16, 0.28) * min(a, b)
        far = r.between(0.5, 0.68)
        spot = c.disc(x + a * far * math.cos(angle), y + b * far * math.sin(angle), size, size)
        c.paint(spot, FLUID, loss=-r.between(4, 12), name="follicles")
