"""Scan painted tissue: sound weakens, echoes of small scatterers interfere, and samples become
pixels."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.canvas import Canvas, Grid
from medmambase.data.phantom.chances import Chances
from medmambase.data.phantom.probes import Probe

Array = npt.NDArray[Any]
NEPERS = math.log(10) / 20  # of amplitude, in a decibel
LOWEST, HIGHEST = -40.0, 20.0  # decibels about soft tissue that the clean echo map shows, as 0 and 1


@dataclass(frozen=True)
class Settings:
    """How a scanner is set, drawn alike for all scenes."""

    attenuation: float  # decibels over the whole depth that the depth gain does not make up for
    focus: float  # place along the beam
    focus_gain: float  # decibels there
    beam: float  # width of the beam in the focus, in pixels of a picture of 96
    spread: float  # how much wider it is elsewhere
    pulse: float  # its length, in the same pixels
    averaging: float  # 0: one view, full speckle; 1: so many views or frames that none is left
    floor: float  # electronic noise, decibels above soft tissue
    haze: float  # reverberation right below the probe, likewise
    shadows: float  # share of a shadow's decibels that crossing beams of several directions leave
    level: float  # mean grey, from 0 to 1
    contrast: float  # standard deviation of grey
    span: float  # decibels from black to white
    coverage: float  # share of the picture that is not black margin
    x: float  # where the middle of the picture is, as a share of what is left to move
    y: float


def settings(r: Chances) -> Settings:
    """Draw how a scanner is set."""
    compound, harmonics = r.chance(0.4), r.chance(0.4)
    return Settings(
        attenuation=r.between(-6, 22),
        focus=r.between(0.2, 0.9),
        focus_gain=r.between(0, 4),
        beam=r.between(0.5, 1.1),
        spread=r.between(0, 1.2),
        pulse=r.between(0.35, 0.7),
        averaging=r.between(0.6, 0.95) if compound else r.between(0.15, 0.8),
        floor=r.between(-46, -34) if harmonics else r.between(-38, -24),
        haze=-60.0 if harmonics else r.between(-40, -8),
        shadows=r.between(0.5, 0.9) if compound else 1.0,
        level=r.between(0.07, 0.34),
        contrast=r.between(0.1, 0.2),
        span=r.between(42, 70),
        coverage=r.between(0.55, 0.98),
        x=r.between(-1, 1),
        y=r.between(-1, 1),
    )


@dataclass(frozen=True)
class View:
    """The square of the frame that becomes the picture."""

    x: float
    y: float
    half: float

    def holds(self, x: Array, y: Array) -> Array:
        """Whether places lie in the picture, bool."""
        inside: Array = np.maximum(np.abs(x - self.x), np.abs(y - self.y)) < self.half
        return inside


def view(probe: Probe, s: Settings) -> View:
    """Choose the square so that about ``s.coverage`` of it shows tissue: a narrow fan is cut into,
    a wide picture gets margins."""
    half = min(1.3, max(0.7, math.sqrt(probe.area / s.coverage)))
    free = abs(1 - half)
    return View(0.6 * free * s.x, 0.6 * free * s.y, half)


def lost(canvas: Canvas, s: Settings) -> Array:
    """Share of sound that structures took away before each sample: 1 in a full shadow, negative,
    at least -1, behind what takes less away than tissue. float32 (depths, lines)."""
    loss = canvas.loss.cumsum(0)
    loss -= canvas.loss
    loss *= -NEPERS * canvas.probe.reach / canvas.grid.depths * s.shadows
    np.clip(loss, -7, math.log(2), out=loss)
    return 1 - np.exp(loss, out=loss)


def scan(canvas: Canvas, shadow: Array, s: Settings, rng: np.random.Generator, *, speckle: bool) -> Array:
    """Return the received intensity in decibels, float32 (depths, lines).

    Scatterers interfere before detection: the complex echo is blurred by beam and pulse, then its
    magnitude is taken, so that speckle follows Rayleigh's distribution where tissue is even.
    Without ``speckle`` it is the intensity's expectation.
    """
    grid = canvas.grid
    along = grid.along
    gain = s.focus_gain * np.exp(-(((along - s.focus) * 4) ** 2)) - s.attenuation * (along - 0.5)
    amplitude = canvas.echo + gain
    amplitude *= NEPERS
    np.exp(amplitude, out=amplitude)
    amplitude *= 1 - shadow
    mean = amplitude * amplitude
    noise = 10 ** ((s.floor + 8 * (along - 0.5)) / 10)
    haze = 10 ** (s.haze / 10) * np.exp(-along / 0.07)
    if not speckle:
        mean += noise + haze
        return _decibels(mean)
    fields = rng.standard_normal((2, grid.depths, grid.lines), dtype=np.float32)
    electronic = fields[0] * fields[0]
    electronic *= noise
    fields *= amplitude
    pixel = grid.size / 96
    widths = s.beam * (1 + s.spread * np.abs(along[:, 0] - s.focus)) * pixel * grid.lines / grid.size
    fields = _blur(fields, widths, 2)
    fields = _blur(fields, np.full(1, s.pulse * pixel), 1)
    fields *= fields
    received = fields[0]
    received += fields[1]
    received *= (1 - s.averaging) / 2
    mean += haze
    mean *= s.averaging
    received += mean
    received += haze * (1 - s.averaging)
    received += electronic
    return _decibels(received)


def _decibels(intensity: Array) -> Array:
    intensity += 1e-6
    np.log(intensity, out=intensity)
    intensity *= 10 / math.log(10)
    return intensity


def _blur(fields: Array, sigmas: Array, axis: int) -> Array:
    """Blur along an axis with Gaussians that keep the energy of noise; ``sigmas`` is one number, or
    one for each depth."""
    reach = max(1, math.ceil(2.2 * float(sigmas.max()) - 0.3))
    kernel = np.exp(-0.5 * (np.arange(reach + 1)[:, None] / sigmas) ** 2)
    kernel /= np.sqrt(kernel[0] ** 2 + 2 * (kernel[1:] ** 2).sum(0))
    weights = kernel.astype(np.float32)[:, :, None]
    blurred = fields * weights[0]
    for step in range(1, reach + 1):
        near: tuple[slice, ...] = (slice(None),) * axis + (slice(None, -step),)
        far: tuple[slice, ...] = (slice(None),) * axis + (slice(step, None),)
        part = fields * weights[step]
        blurred[near] += part[far]
        blurred[far] += part[near]
    return blurred


def convert(maps: Array, probe: Probe, grid: Grid, seen: View) -> tuple[Array, Array]:
    """Turn float32 (m, depths, lines) into pictures, float32 (m, size, size), between samples
    bilinear; and which pixels lie among the samples, bool (size, size)."""
    x = seen.half * grid.pixels[None, :] + seen.x
    y = seen.half * grid.pixels[:, None] + seen.y
    along, across = probe.positions(x, y)
    row = along * (grid.depths - 1)
    column = (across + 1) * ((grid.lines - 1) / 2)
    inside = (row >= 0) & (row <= grid.depths - 1) & (column >= 0) & (column <= grid.lines - 1)
    np.clip(row, 0, grid.depths - 1.001, out=row)
    np.clip(column, 0, grid.lines - 1.001, out=column)
    i, j = row.astype(np.intp), column.astype(np.intp)
    row -= i
    column -= j
    first = i * grid.lines + j
    corners = [first + step for step in (0, 1, grid.lines, grid.lines + 1)]
    pictures = np.empty((len(maps), grid.size, grid.size), np.float32)
    for values, picture in zip(maps, pictures, strict=True):  # one by one they stay in the cache
        upper, right, lower, far = (values.take(corner) for corner in corners)
        right -= upper
        right *= column
        upper += right
        far -= lower
        far *= column
        lower += far
        lower -= upper
        lower *= row
        np.add(upper, lower, out=picture)
    return pictures, inside


def expose(decibels: Array, inside: Array, s: Settings) -> Array:
    """Set the gain as a sonographer does, so that the picture is neither dark nor bright: grey from
    0 to 1, 0 outside of the samples.

    Brightness hangs on the settings, not on what is scanned: the mean is ``s.level`` whatever the
    margins, the contrast halfway between that of ``s.span`` and ``s.contrast``.
    """
    values = decibels[inside]
    middle = float(values.mean())
    np.clip(values, middle - 26, middle + 24, out=values)
    middle, spread = float(values.mean()), float(values.std())
    level = min(0.6, s.level / float(inside.mean()) ** 0.6)
    slope = math.sqrt(s.contrast / max(spread, 1.0) / s.span)
    grey = decibels * slope
    grey += level - middle * slope
    np.clip(grey, 0, 1, out=grey)
    grey *= inside
    return grey
