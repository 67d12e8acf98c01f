"""Draw a synthetic six-class ultrasound set: something to train on before there is data, and to
test with.

Each image is made as a scanner makes it: tissue is laid out along scan lines that fan out from the
probe, sound weakens on its way (bone leaves a shadow), echoes of many small scatterers interfere
(speckle), the result is compressed logarithmically and converted to rows and columns.

The classes differ in structure only. Pose, size, gain, contrast, shadows and clutter are drawn
alike for all, so that neither the mean brightness nor any fixed pixel gives the class away. Not a
model of real anatomy: results on it say that training works, no more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("abdomen", "brain", "cervix", "femur", "other", "thorax")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Style:
    """What stays the same in all images of one patient: probe, settings, body."""

    half_angle: float  # of the sector, radians
    probe_radius: float  # of the probe's surface, as a share of the radius of the deepest echo
    lateral_blur: float  # width of the beam, in scan lines
    axial_blur: float  # length of the pulse, in samples
    attenuation: float  # loss over the full depth that the depth gain does not make up for, in nepers
    gain: float
    dynamic_range: float  # decibels from black to white


def _draw_style(rng: np.random.Generator) -> _Style:
    return _Style(
        half_angle=rng.uniform(0.5, 0.75),
        probe_radius=rng.uniform(0.12, 0.4),
        lateral_blur=rng.uniform(0.8, 1.5),
        axial_blur=rng.uniform(0.5, 0.9),
        attenuation=rng.uniform(-0.5, 1.0),
        gain=rng.uniform(-4, 4),
        dynamic_range=rng.uniform(38, 55),
    )


class _Tissue:
    """Echo strength and sound loss at every sample of every scan line: arrays (depth, line).
    Structures are painted one over another.

    ``x`` and ``y`` are the samples' places in the image, from -1 to 1; ``u`` and ``v`` the same in
    the turned and scaled frame of the organ.
    """

    def __init__(self, x: Array, y: Array, rng: np.random.Generator) -> None:
        self.x, self.y, self.rng = x, y, rng
        self.echo = np.exp(0.35 * _smooth_noise(x, y, rng))
        self.loss = np.zeros_like(x)
        self.u, self.v = x, y

    def place(self, scale: float, tilt: float) -> None:
        """Put the organ somewhere, a little squeezed, turned by up to ``tilt`` (radians) either
        way, either end first."""
        rng = self.rng
        angle = rng.uniform(-tilt, tilt) + np.pi * rng.integers(2)
        squeeze = rng.uniform(0.88, 1.0)
        dx, dy = self.x - rng.uniform(-0.25, 0.25), self.y - rng.uniform(-0.15, 0.4)
        self.u = (np.cos(angle) * dx + np.sin(angle) * dy) / scale
        self.v = (np.cos(angle) * dy - np.sin(angle) * dx) / (scale * squeeze)

    def paint(self, mask: Array, echo: float, loss: float = 0.0) -> None:
        self.echo += mask * (echo - self.echo)
        self.loss += mask * loss

    def disc(self, u: float, v: float, a: float, b: float, turn: float = 0.0) -> Array:
        """Soft mask of a filled ellipse with half axes a and b."""
        return _soft(1 - self._radius(u, v, a, b, turn), 0.03 / min(a, b))

    def ring(self, a: float, b: float, width: float) -> Array:
        """Soft mask of the outline of an ellipse about the organ's centre."""
        radius = self._radius(0, 0, a, b, 0)
        mask: Array = np.exp(-(((radius - 1) * min(a, b) / width) ** 2))
        return mask

    def line(self, u0: float, v0: float, u1: float, v1: float, width: float, bend: float = 0.0) -> Array:
        """Soft mask of a line from (u0, v0) to (u1, v1); ``bend`` is how far its middle is pushed
        aside."""
        length = np.hypot(u1 - u0, v1 - v0)
        eu, ev = (u1 - u0) / length, (v1 - v0) / length
        along = ((self.u - u0) * eu + (self.v - v0) * ev) / length
        aside = (self.v - v0) * eu - (self.u - u0) * ev - 4 * bend * along * (1 - along)
        beyond = np.maximum(0, np.abs(along - 0.5) - 0.5) * length
        mask: Array = np.exp(-((aside**2 + beyond**2) / width**2))
        return mask

    def _radius(self, u: float, v: float, a: float, b: float, turn: float) -> Array:
        du, dv = self.u - u, self.v - v
        along = du * (math.cos(turn) / a) + dv * (math.sin(turn) / a)
        across = dv * (math.cos(turn) / b) - du * (math.sin(turn) / b)
        radius: Array = np.sqrt(along * along + across * across)
        return radius


def _brain(t: _Tissue) -> None:
    """A skull, and the line between its two halves."""
    rng = t.rng
    b = rng.uniform(0.72, 0.85)
    t.paint(t.disc(0, 0, 1, b), rng.uniform(0.4, 0.7))
    gap = rng.uniform(-0.3, 0.3)
    t.paint(t.line(-0.8, 0, gap - 0.12, 0, 0.06), 3.5, 0.3)
    t.paint(t.line(gap + 0.12, 0, 0.8, 0, 0.06), 3.5, 0.3)
    t.paint(t.ring(1, b, 0.09), 6, 1.2)


def _abdomen(t: _Tissue) -> None:
    """A soft outline, the stomach and the bent umbilical vein, both filled with fluid, and the
    spine."""
    rng = t.rng
    b = rng.uniform(0.85, 1)
    t.paint(t.disc(0, 0, 1, b), rng.uniform(0.6, 1.0))
    t.paint(t.ring(1, b, 0.1), rng.uniform(2.5, 5), 0.8)
    t.paint(
        t.disc(
            rng.uniform(0.35, 0.5),
            rng.uniform(-0.3, 0.1),
            rng.uniform(0.2, 0.28),
            rng.uniform(0.15, 0.2),
            rng.uniform(0, 3),
        ),
        0.03,
    )
    t.paint(t.line(-0.05, 0.05, -0.6, rng.uniform(-0.1, 0.3), 0.09, rng.uniform(0.15, 0.25)), 0.03)
    for du in (-0.12, 0, 0.12):
        t.paint(t.disc(du, -0.75 + abs(du), 0.07, 0.07), 7, 3)


def _thorax(t: _Tissue) -> None:
    """Ribs in a circle, each with its shadow, about a heart of four chambers."""
    rng = t.rng
    t.paint(t.disc(0, 0, 1, 1), rng.uniform(0.6, 1.0))
    ribs = int(rng.integers(7, 11))
    for rib in range(ribs):
        middle = 2 * np.pi * (rib + rng.uniform(-0.15, 0.15)) / ribs
        half = 0.3 * 2 * np.pi / ribs
        ends = (np.cos(middle - half), np.sin(middle - half), np.cos(middle + half), np.sin(middle + half))
        t.paint(t.line(*ends, 0.08, -0.06), 6, 2)
    cu, cv, turn = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15), rng.uniform(0, np.pi)
    t.paint(t.disc(cu, cv, 0.55, 0.5), 2.0)
    for quarter in range(4):
        angle = turn + quarter * np.pi / 2 + np.pi / 4
        size = rng.uniform(0.17, 0.21)
        t.paint(t.disc(cu + 0.27 * np.cos(angle), cv + 0.27 * np.sin(angle), size, size), 0.03)


def _femur(t: _Tissue) -> None:
    """One long bright bone, thicker at its ends, and the shadow behind it."""
    rng = t.rng
    bend = rng.uniform(-0.15, 0.15)
    t.paint(t.line(-1, 0, 1, 0, 0.1, bend), 7, 4)
    for end in (-1, 1):
        t.paint(t.disc(end, 0, 0.16, 0.14), 6, 3)


def _cervix(t: _Tissue) -> None:
    """A dark channel between two bright lips, open like a funnel at one end."""
    rng = t.rng
    wide, bend = rng.uniform(0.3, 0.4), rng.uniform(-0.2, 0.2)
    t.paint(t.line(-1.1, 0, 1.1, 0, 0.55, bend), rng.uniform(0.6, 1.0))
    for side in (-1, 1):
        t.paint(t.line(-1.1, side * 0.28, 1.0, side * wide, 0.12, bend), rng.uniform(3, 5), 0.8)
    t.paint(t.line(-1.0, 0, 1.0, 0, 0.11, bend), 0.03)
    t.paint(t.disc(1.0, 0, 0.35, 0.2), 0.03)


def _other(t: _Tissue) -> None:
    """Cysts and solid masses, in no order."""
    rng = t.rng
    for _ in range(int(rng.integers(2, 5))):
        a, turn = rng.uniform(0.2, 0.45), rng.uniform(0, np.pi)
        u, v = rng.uniform(-0.8, 0.8, 2)
        b = a * rng.uniform(0.6, 1)
        if rng.random() < 0.5:
            t.paint(t.disc(u, v, a + 0.12, b + 0.12, turn), rng.uniform(2.5, 5), 0.4)
            t.paint(t.disc(u, v, a, b, turn), 0.03)
        else:
            t.paint(t.disc(u, v, a, b, turn), rng.uniform(3, 6), 1.5)


_ORGANS: dict[str, Callable[[_Tissue], None]] = {
    "abdomen": _abdomen,
    "brain": _brain,
    "cervix": _cervix,
    "femur": _femur,
    "other": _other,
    "thorax": _thorax,
}


def _clutter(t: _Tissue) -> None:
    """What every image may hold: layers under the skin, small vessels, bright specks, gas that
    throws a shadow."""
    rng = t.rng
    t.u, t.v = t.x, t.y
    for _ in range(int(rng.integers(1, 4))):
        y = rng.uniform(-0.95, -0.65)
        t.paint(
            0.7 * t.line(-1.2, y, 1.2, y + rng.uniform(-0.1, 0.1), rng.uniform(0.02, 0.05), rng.uniform(0, 0.15)),
            rng.uniform(2, 4),
            0.1,
        )
    for _ in range(int(rng.integers(0, 4))):
        u, v = rng.uniform(-0.8, 0.8, 2)
        t.paint(t.disc(u, v, rng.uniform(0.04, 0.12), rng.uniform(0.04, 0.08), rng.uniform(0, np.pi)), 0.05)
    for _ in range(int(rng.integers(0, 5))):
        u, v = rng.uniform(-0.8, 0.8, 2)
        t.paint(t.disc(u, v, rng.uniform(0.03, 0.06), 0.04), rng.uniform(3, 7), rng.uniform(0, 4))
    if rng.random() < 0.5:
        t.paint(
            t.disc(rng.uniform(-0.7, 0.7), rng.uniform(-1.0, -0.6), rng.uniform(0.03, 0.1), 0.05), 3, rng.uniform(2, 6)
        )


def _draw(kind: str, style: _Style, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image, uint8 (size, size)."""
    lines, depths = size, round(1.2 * size)
    # The sector just fits the square: deepest echo at radius ``outer``, probe at radius ``inner``.
    inner_share, half = style.probe_radius, style.half_angle
    outer = min(2 / (1 - inner_share * np.cos(half)), 1 / np.sin(half) * 1.2)
    inner = inner_share * outer
    apex = -(outer + inner * np.cos(half)) / 2

    radius = np.linspace(inner, outer, depths)[:, None]
    theta = np.linspace(-half, half, lines)[None, :]
    tissue = _Tissue(radius * np.sin(theta), apex + radius * np.cos(theta), rng)
    # A bone along the beam hides behind its own end, so a sonographer lays it across.
    tissue.place(rng.uniform(0.62, 0.82), tilt=0.8)
    _ORGANS[kind](tissue)
    _clutter(tissue)

    depth = np.linspace(0, 1, depths)[:, None]
    loss = np.cumsum(tissue.loss, axis=0) * ((outer - inner) / depths) * 6
    strength = tissue.echo * np.exp(-loss - (style.attenuation + rng.uniform(-0.4, 0.4)) * depth)
    # Scatterers interfere before detection: blur the complex echo, then take its magnitude
    # (Rayleigh speckle where tissue is even).
    field = [
        _blur(_blur(strength * rng.standard_normal(strength.shape), style.axial_blur, 0), style.lateral_blur, 1)
        for _ in range(2)
    ]
    decibels = 20 * np.log10(np.hypot(field[0], field[1]) + 1e-6)
    span = style.dynamic_range * rng.uniform(0.9, 1.1)
    grey = np.clip((decibels + style.gain + rng.uniform(-4, 4) + 0.5 * span) / span, 0, 1)

    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = axis[None, :], axis[:, None] - apex
    at_depth = (np.hypot(x, y) - inner) / (outer - inner) * (depths - 1)
    at_line = (np.arctan2(x, y) + half) / (2 * half) * (lines - 1)
    pixels: npt.NDArray[np.uint8] = np.rint(255 * _sample(grey, at_depth, at_line)).astype(np.uint8)
    return pixels


def write_phantom(root: Path, *, images_per_class: int, size: int = 96, seed: int = 0) -> Path:
    """Write ``root/train|val|test/<class>/pNNNN_MM.png`` (patient, image), 8-bit grey, size x size
    pixels; returns ``root``.

    60, 20 and 20 % of the patients go to train, val and test; each has about two images of each
    class. The same arguments give the same bytes. Raises ValueError for fewer than 5 images a
    class, which could not fill three splits, or fewer than 32 pixels.
    """
    if images_per_class < 5:
        raise ValueError(
            f"images_per_class is {images_per_class}; it must be at least 5, so that every split gets a patient"
        )
    if size < 32:
        raise ValueError(f"size is {size}; it must be at least 32 pixels, since smaller organs cannot be told apart")
    patients = max(5, images_per_class // 2)
    for split in ("train", "val", "test"):
        for kind in CLASSES:
            (root / split / kind).mkdir(parents=True, exist_ok=True)
    for patient in range(patients):
        split = "train" if patient < round(0.6 * patients) else "val" if patient < round(0.8 * patients) else "test"
        style = _draw_style(np.random.default_rng([seed, patient]))
        rounds = len(range(patient, images_per_class, patients))
        for number in range(rounds * len(CLASSES)):
            kind = CLASSES[number % len(CLASSES)]
            pixels = _draw(kind, style, size, np.random.default_rng([seed, patient, number]))
            Image.fromarray(pixels).save(root / split / kind / f"p{patient:04d}_{number:02d}.png")
    return root


def _soft(signed: Array, width: float) -> Array:
    mask: Array = 0.5 * (1 + np.tanh(signed / width))
    return mask


def _smooth_noise(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """A few plane waves of random direction, of unit variance: tissue is not even."""
    total = np.zeros_like(x)
    for angle, frequency, phase in rng.uniform((0, 2, 0), (2 * np.pi, 9, 2 * np.pi), (4, 3)):
        total += np.sin(x * (frequency * np.cos(angle)) + y * (frequency * np.sin(angle)) + phase)
    return total / math.sqrt(2)


def _blur(values: Array, sigma: float, axis: int) -> Array:
    """Gaussian of 3 sigma along one axis, energy kept, so that speckle has the same strength for
    every style."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    padded = np.pad(values, [(reach, reach) if i == axis else (0, 0) for i in range(2)], mode="reflect")
    n = values.shape[axis]
    shifted = (padded[shift : shift + n] if axis == 0 else padded[:, shift : shift + n] for shift in range(kernel.size))
    return sum((weight * part for weight, part in zip(kernel, shifted, strict=True)), start=np.zeros_like(values))


def _sample(values: Array, row: Array, column: Array) -> Array:
    """``values`` between its grid points, bilinear; zero outside."""
    inside = (row >= 0) & (row <= values.shape[0] - 1) & (column >= 0) & (column <= values.shape[1] - 1)
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    i, j = np.minimum(row.astype(int), values.shape[0] - 2), np.minimum(column.astype(int), values.shape[1] - 2)
    di, dj = row - i, column - j
    top = values[i, j] * (1 - dj) + values[i, j + 1] * dj
    bottom = values[i + 1, j] * (1 - dj) + values[i + 1, j + 1] * dj
    between: Array = inside * (top * (1 - di) + bottom * di)
    return between
