"""Say where a probe's samples lie in the body, and where a picture's pixels lie among the samples.

The frame of a picture reaches from -1 to 1, across (x) and down (y). A sample has a place along its
beam, from 0 at the probe to 1 at the deepest echo, and a place across the beams, from -1 to 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.chances import Chances

Array = npt.NDArray[Any]
Box = tuple[slice, slice]
KINDS = ("linear", "trapezoid", "convex", "phased", "endocavity")


@dataclass(frozen=True)
class Probe:
    """The geometry of a probe: parallel beams (``half_angle`` 0), or beams that fan out."""

    half_angle: float  # of the fan, radians
    inner: float  # radius of the probe's surface; of parallel beams, half their width
    outer: float  # radius of the deepest echo; of parallel beams, half their length
    apex: float  # y of the centre of both circles

    @property
    def reach(self) -> float:
        """Length of a beam, in units of the frame."""
        return self.outer - self.inner if self.half_angle else 2 * self.outer

    @property
    def area(self) -> float:
        """Share of the frame that the beams cover."""
        if not self.half_angle:
            return self.inner * self.outer
        return self.half_angle * (self.outer**2 - self.inner**2) / 4

    def place(self, across: float, along: float) -> tuple[float, float]:
        """x and y of a place among the beams."""
        if not self.half_angle:
            return across * self.inner, (2 * along - 1) * self.outer
        radius, angle = self.inner + along * self.reach, across * self.half_angle
        return radius * math.sin(angle), self.apex + radius * math.cos(angle)

    def samples(self, across: Array, along: Array) -> tuple[Array, Array]:
        """x and y of all samples, float32 (depth, line), for ``across`` (1, line) and ``along``
        (depth, 1)."""
        if not self.half_angle:
            x, y = np.broadcast_arrays(across * self.inner, (2 * along - 1) * self.outer)
            return x.copy(), y.copy()
        radius, angle = self.inner + along * self.reach, across * self.half_angle
        return radius * np.sin(angle), radius * np.cos(angle) + self.apex

    def box(self, x: float, y: float, radius: float, depths: int, lines: int) -> Box:
        """Rows and columns of the samples that a circle may touch; rows and columns begin at even
        numbers, so that every second sample of two boxes is the same sample."""
        if not self.half_angle:
            top, bottom = ((v / self.outer + 1) / 2 for v in (y - radius, y + radius))
            left, right = (v / self.inner for v in (x - radius, x + radius))
        else:
            far, angle = math.hypot(x, y - self.apex), math.atan2(x, y - self.apex)
            spread = math.asin(radius / far) if far > radius else 2 * math.pi
            top, bottom = ((v - self.inner) / self.reach for v in (far - radius, far + radius))
            left, right = ((v / self.half_angle) for v in (angle - spread, angle + spread))
        return span(top, bottom, depths), span((left + 1) / 2, (right + 1) / 2, lines)

    def positions(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Where places of the frame lie among the beams: along (0 to 1) and across (-1 to 1), of
        the arrays' common shape."""
        if not self.half_angle:
            along, across = np.broadcast_arrays((y / self.outer + 1) / 2, x / self.inner)
            return along, across
        below = y - self.apex
        radius, angle = np.sqrt(x * x + below * below), np.arctan2(x, below)
        return (radius - self.inner) / self.reach, angle / self.half_angle


def span(low: float, high: float, n: int) -> slice:
    """The samples from ``low`` to ``high``, both from 0 to 1 of ``n``, and two more at either
    end."""
    start = max(0, int(low * (n - 1)) - 2) // 2 * 2
    return slice(min(start, n), max(start, min(n, int(high * (n - 1)) + 4)))


def choose(kind: str, r: Chances) -> Probe:
    """Return a probe of one of ``KINDS``, of an angle, a radius and a depth of its own; it just
    fits the frame. Raises ValueError for another kind."""
    a, b = r.unit(), r.unit()
    if kind == "linear":
        wide, deep = (1.0, 0.6 + 0.4 * a) if b < 0.6 else (0.7 + 0.3 * a, 1.0)
        return Probe(0.0, wide, deep, 0.0)
    ranges = {
        "trapezoid": (0.12, 0.3, 0.55, 0.8),
        "convex": (0.42, 0.65, 0.2, 0.45),
        "phased": (0.6, 0.82, 0.01, 0.05),
        "endocavity": (0.85, 1.15, 0.08, 0.18),
    }
    if kind not in ranges:
        raise ValueError(f"the kind of a probe is {kind!r}; it must be one of {', '.join(KINDS)}")
    narrow, wide, small, large = ranges[kind]
    half, share = narrow + (wide - narrow) * a, small + (large - small) * b
    outer = min(2 / (1 - share * math.cos(half)), 1.15 / math.sin(half))
    return Probe(half, share * outer, outer, -(outer + share * outer * math.cos(half)) / 2)
