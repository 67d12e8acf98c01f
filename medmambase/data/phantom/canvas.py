"""Paint structures, one over another, on the samples of a probe: their echo, the sound that they
take away, their edges, and their names."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.chances import Chances
from medmambase.data.phantom.probes import Box, Probe, span
from medmambase.data.phantom.structures import STRUCTURES

Array = npt.NDArray[Any]
FLUID = -38.0  # decibels below soft tissue


class Grid:
    """What all pictures of ``size`` pixels share: how many samples a probe has, the pixels' places,
    and smooth curves to make tissue uneven with."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.depths, self.lines = size, max(8, round(0.8 * size))
        self.along = np.linspace(0, 1, self.depths, dtype=np.float32)[:, None]
        self.across = np.linspace(-1, 1, self.lines, dtype=np.float32)[None, :]
        self.pixels = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        fine = max(9, size // 3)
        self.bases = [
            (_splines(self.depths, down), _splines(self.lines, across).T.copy())
            for down, across in ((8, 8), (fine, fine), (fine, 7))
        ]

    def uneven(self, rng: np.random.Generator) -> list[Array]:
        """A coarse random surface, a fine one, and one of streaks across the beams, float32
        (depths, lines) of unit variance."""
        return [
            down @ rng.standard_normal((down.shape[1], right.shape[0]), dtype=np.float32) @ right
            for down, right in self.bases
        ]


class Patch(NamedTuple):
    """A part of the samples, and how much of each belongs to a structure (0 to 1)."""

    box: Box
    mask: Array


class Canvas:
    """Echo in decibels above that of even soft tissue, loss in decibels per unit of the frame, and
    edges: float32 (depths, lines).

    Places and lengths are those of the frame, unless named ``along`` (0 at the probe to 1) or
    ``across`` (-1 to 1). ``measured`` holds the ends of lines that a sonographer may measure.
    """

    def __init__(self, grid: Grid, probe: Probe, rng: np.random.Generator) -> None:
        self.grid, self.probe = grid, probe
        self.x, self.y = probe.samples(grid.across, grid.along)
        self.coarse, self.fine, self.streaks = grid.uneven(rng)
        self.echo = np.zeros_like(self.fine)
        self.loss = np.zeros_like(self.echo)
        self.edges = np.zeros_like(self.echo)
        self.soft = 2.4 / grid.size  # half the width in which a structure begins: 1.2 pixels
        self.painted: list[tuple[str, Patch]] = []
        self.measured: list[tuple[float, float, float, float]] = []

    def paint(
        self,
        patch: Patch,
        echo: float | Array,
        *,
        loss: float = 0.0,
        texture: float = 0.0,
        edge: float = 1.0,
        name: str | None = None,
    ) -> None:
        """Give a part of the samples another echo, with ``texture`` decibels of unevenness, and add
        ``loss``, negative in what takes less than tissue away.

        What lay there before is covered, its edges too, and the new edge is as clear as ``edge``
        says; 0 for what has none. ``name`` is one of ``STRUCTURES``.
        """
        box, mask = patch
        if not mask.size:
            return
        wanted = echo + texture * self.fine[box] if texture else echo
        here = self.echo[box]
        here += mask * (wanted - here)
        if loss:
            self.weaken(patch, loss)
        rest = 1 - mask
        edges = self.edges[box]
        edges *= rest
        if edge:
            rest *= mask
            rest *= 4 * edge
            np.maximum(edges, rest, out=edges)
        if name:
            if name not in STRUCTURES:
                raise ValueError(f"{name!r} is none of STRUCTURES; add it there, or mend its spelling")
            self.painted.append((name, patch))

    def weaken(self, patch: Patch, loss: float) -> None:
        """Add ``loss`` decibels per unit of the frame to a part of the samples."""
        self.loss[patch.box] += loss * patch.mask

    def ramp(self, inside: Array) -> Array:
        """From how far samples lie inside (negative: outside) to a mask with a soft edge."""
        inside *= 0.5 / self.soft
        inside += 0.5
        return inside.clip(0, 1, out=inside)

    def _around(self, x: float, y: float, radius: float) -> tuple[Box, Array, Array]:
        box = self.probe.box(x, y, radius + self.soft, self.grid.depths, self.grid.lines)
        return box, self.x[box] - x, self.y[box] - y

    def disc(self, x: float, y: float, a: float, b: float, turn: float = 0.0) -> Patch:
        """A filled ellipse with half axes a and b, turned by ``turn`` radians."""
        box, square = self._square(x, y, a, b, turn, max(a, b))
        return Patch(box, self.ramp((1 - square) * (min(a, b) / 2)))

    def ring(self, x: float, y: float, a: float, b: float, turn: float, width: float, sides: float = 1.0) -> Patch:
        """The outline of an ellipse. Where it runs along the beams it is only as bright as
        ``sides`` says: smooth walls send sound back from where they face the probe."""
        box, square = self._square(x, y, a, b, turn, max(a, b) + width)
        mask = self.ramp(width / 2 - np.abs(1 - square) * (min(a, b) / 2))
        if sides < 1 and mask.size:
            dx, dy = self.x[box] - x, self.y[box] - y
            dy *= dy
            facing = dy / (dx * dx + dy + 1e-6)
            mask *= facing * (1 - sides) + sides
        return Patch(box, mask)

    def _square(self, x: float, y: float, a: float, b: float, turn: float, reach: float) -> tuple[Box, Array]:
        """The square of the distance from an ellipse's centre, 1 on its outline."""
        box, dx, dy = self._around(x, y, reach)
        cos, sin = math.cos(turn), math.sin(turn)
        xx, yy = (cos / a) ** 2 + (sin / b) ** 2, (sin / a) ** 2 + (cos / b) ** 2
        xy = 2 * cos * sin * (1 / a**2 - 1 / b**2)
        square = dx * xx
        square += dy * xy
        square *= dx
        dy *= dy
        dy *= yy
        square += dy
        return box, square

    def blob(self, x: float, y: float, a: float, b: float, turn: float, outline: Array) -> Patch:
        """An ellipse whose radius is multiplied by ``outline``, float32 (256,), from one angle to
        the next."""
        box, dx, dy = self._around(x, y, max(a, b) * float(outline.max()))
        cos, sin = math.cos(turn), math.sin(turn)
        u = dx * (cos / a) + dy * (sin / a)
        v = dy * (cos / b) - dx * (sin / b)
        place = (np.arctan2(v, u) * (128 / math.pi)).astype(np.int16) & 255
        u *= u
        v *= v
        u += v
        return Patch(box, self.ramp((1 - np.sqrt(u) / outline.take(place)) * min(a, b)))

    def tube(
        self, x0: float, y0: float, x1: float, y1: float, half: float, bend: float = 0.0, taper: float = 0.0
    ) -> Patch:
        """A line of ``half`` the width from one point to another, its middle pushed aside by
        ``bend``, its far end thinner by the share ``taper``."""
        length = math.hypot(x1 - x0, y1 - y0) + 1e-6
        ex, ey = (x1 - x0) / length, (y1 - y0) / length
        box, dx, dy = self._around((x0 + x1) / 2, (y0 + y1) / 2, length / 2 + half + abs(bend))
        along = dx * (ex / length)
        along += dy * (ey / length)  # from -1/2 to 1/2
        dy *= ex
        dx *= ey
        dy -= dx  # how far aside
        square = along * along
        if bend:
            dy -= bend - 4 * bend * square
        inside = -np.abs(dy)
        inside += half
        if taper:
            inside -= (along + 0.5) * (half * taper)
        beyond = np.abs(along)
        beyond -= 0.5 + half / (2 * length)
        beyond *= -length
        return Patch(box, self.ramp(np.minimum(inside, beyond)))

    def band(self, top: Array | float, bottom: Array | float) -> Patch:
        """What lies between two depths along the beams, each one number or one for every line."""
        grid = self.grid
        top, bottom = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
        rows = span(float(top.min()), float(bottom.max()), grid.depths)
        along = grid.along[rows]
        inside = np.minimum(along - top, bottom - along) * self.probe.reach
        if inside.shape[1] == 1:
            inside = np.repeat(inside, grid.lines, 1)
        return Patch((rows, slice(0, grid.lines)), self.ramp(inside))

    def beams(self, across: float, half: float, top: Array | float, bottom: float, strength: float = 1.0) -> Patch:
        """A streak along the beams, soft at its sides, of ``half`` the width, in units of
        ``across``."""
        grid = self.grid
        columns = span((across - 2.5 * half + 1) / 2, (across + 2.5 * half + 1) / 2, grid.lines)
        aside = (grid.across[:, columns] - across) / half
        box, mask = self.band(top, bottom)
        across_mask = np.exp(-aside * aside) * strength
        return Patch((box[0], columns), mask[:, columns] * across_mask)

    def interface(self, r: Chances, along: float, tilt: float = 0.05, wave: float = 0.015) -> Array:
        """A depth for every line, float32 (lines,): a little inclined and wavy."""
        across = self.grid.across[0]
        slope, height, turns, phase = r.between(-tilt, tilt), wave * r.unit(), r.between(2, 7), r.angle()
        depth: Array = along + slope * across
        depth += height * np.sin(across * turns + phase)
        return depth


def outline(r: Chances, low: int, high: int, depth: float) -> Array:
    """The radius of a lobed shape about its centre, 1 on average, float32 (256,): waves of ``low``
    to ``high`` turns, each up to ``depth`` high."""
    angle = np.arange(256, dtype=np.float32) * (math.pi / 128)
    radius = np.ones(256, np.float32)
    for turns in range(low, high + 1):
        radius += depth * r.between(0.4, 1) * np.cos(angle * turns + r.angle(), dtype=np.float32)
    return np.maximum(radius, 0.35)


def _splines(n: int, knots: int) -> Array:
    """Cubic B-splines at n places, float32 (n, knots), each row of unit energy: random heights of
    the knots become a smooth curve of unit variance."""
    place = np.linspace(0, knots - 3 - 1e-6, n)
    first, u = place.astype(int), place % 1
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3])
    basis = np.zeros((n, knots))
    for step, weight in enumerate(weights / np.sqrt((weights**2).sum(0))):
        basis[np.arange(n), first + step] = weight
    return basis.astype(np.float32)
