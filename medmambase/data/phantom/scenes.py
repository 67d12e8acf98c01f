"""Draw endless ultrasound-like pictures of many kinds, with all that is known about each: what is
in it, the tissue's echo, edges, shadows. Something to learn from before there are images.

A picture is made as a scanner makes it: structures are painted along the beams of a probe
(``superficial``, ``deep``, ``lung``), sound weakens and speckle arises (``scanner``), the picture
is processed and marked (``processing``, ``overlay``). Pose, gain, contrast, margins, marks and
processing are drawn alike for all kinds, so that brightness does not give the kind away. Not a
model of anatomy.

Pictures are made one by one: at this size the arrays of one stay in the processor's cache, which
is faster than a batch at once, and no picture can depend on its neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom import deep, lung, overlay, processing, scanner, superficial, tissue
from medmambase.data.phantom.canvas import Canvas, Grid
from medmambase.data.phantom.chances import Chances
from medmambase.data.phantom.probes import choose
from medmambase.data.phantom.structures import STRUCTURES

__all__ = ["SCENES", "STRUCTURES", "DrawnPictures", "draw"]

Array = npt.NDArray[Any]
Painter = Callable[[Canvas, Chances], None]
# What is scanned, and with which probes, one as often as another.
_SCENES: dict[str, tuple[Painter, tuple[str, ...]]] = {
    "breast": (superficial.breast, ("linear", "linear", "linear", "trapezoid")),
    "thyroid": (superficial.thyroid, ("linear", "linear", "trapezoid")),
    "vessel": (superficial.vessel, ("linear", "linear", "linear", "trapezoid", "convex")),
    "muscle and bone": (superficial.muscle_and_bone, ("linear", "linear", "linear", "trapezoid")),
    "lung, linear probe": (lung.lung, ("linear", "linear", "trapezoid")),
    "lung, convex probe": (lung.lung, ("convex", "convex", "phased")),
    "abdomen": (deep.abdomen, ("convex", "convex", "convex", "phased")),
    "kidney": (deep.kidney, ("convex", "convex", "convex", "phased", "trapezoid")),
    "pelvis": (deep.pelvis, ("endocavity", "endocavity", "convex")),
    "fetus": (deep.fetus, ("convex", "convex", "convex", "endocavity")),
    "heart": (deep.heart, ("phased", "phased", "phased", "convex")),
}
SCENES = tuple(_SCENES)
SMALLEST = 32  # pixels
_SEEN = 12 / 96**2  # share of the samples from which on a structure counts as visible
_PASSES = 0.15  # share of sound that must reach it


@dataclass(frozen=True)
class DrawnPictures:
    """n pictures of s x s pixels, and what is known about them."""

    images: npt.NDArray[np.uint8]  # (n, s, s, 3); most are grey: three equal channels
    structures: npt.NDArray[np.float32]  # (n, len(STRUCTURES)): 1 where visible, else 0
    # (n, s, s) from 0 to 1: the tissue's echo, log-compressed, without speckle, shadow and gain;
    # 0 outside of the sector
    echo: npt.NDArray[np.float32]
    edges: npt.NDArray[np.float32]  # (n, s, s) from 0 to 1: the borders of structures, soft
    # (n, s, s) from -1 to 1: the share of sound lost in a shadow, negative where more arrives than
    # elsewhere
    shadows: npt.NDArray[np.float32]
    scene: npt.NDArray[np.int64]  # (n,): places in SCENES


def draw(
    seed: int,
    indices: Sequence[int],
    *,
    size: int = 96,
    scenes: Sequence[str] = SCENES,
    speckle: bool = True,
    structure: bool = True,
) -> DrawnPictures:
    """Draw the pictures of ``indices``, each in its own way, size x size pixels.

    A picture depends on seed, index, size and the other arguments alone, to the byte, in whatever
    batch it is drawn. ``scenes`` are the kinds to choose from, of SCENES. Two arguments take away,
    to find out what is learned from: without ``speckle`` the intensity is its expectation;
    without ``structure`` image and echo become noise of the same spectrum, the image with the
    same histogram, and the other targets are 0. All else stays.
    Raises ValueError for a negative seed or index, for fewer than 32 pixels, and for scenes that
    are none of SCENES.
    """
    if size < SMALLEST:
        raise ValueError(f"size is {size}; it must be at least {SMALLEST} pixels, since less shows no structure")
    unknown = [scene for scene in scenes if scene not in _SCENES]
    if unknown or not scenes:
        raise ValueError(f"scenes are {', '.join(unknown) or 'empty'}; choose from {', '.join(SCENES)}")
    for name, number in (("seed", seed), *(("an index", index) for index in indices)):
        if not 0 <= number < 2**64:
            raise ValueError(f"{name} is {number}; it must lie between 0 and 2**64 - 1")
    grid, n = Grid(size), len(indices)
    drawn = DrawnPictures(
        images=np.zeros((n, size, size, 3), np.uint8),
        structures=np.zeros((n, len(STRUCTURES)), np.float32),
        echo=np.zeros((n, size, size), np.float32),
        edges=np.zeros((n, size, size), np.float32),
        shadows=np.zeros((n, size, size), np.float32),
        scene=np.zeros(n, np.int64),
    )
    for place, index in enumerate(indices):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
        _draw(drawn, place, grid, rng, scenes, speckle=speckle)
        if not structure:
            _scatter(drawn, place, rng)
    return drawn


def _draw(
    drawn: DrawnPictures, place: int, grid: Grid, rng: np.random.Generator, scenes: Sequence[str], *, speckle: bool
) -> None:
    """Draw one picture and its targets into their places."""
    r = Chances(rng)
    # What does not depend on the scene comes first.
    settings, look, scene = scanner.settings(r), processing.processing(r), r.one_of(scenes)
    paint, probes = _SCENES[scene]
    probe = choose(r.one_of(probes), r)
    canvas = Canvas(grid, probe, rng)
    tissue.background(canvas, r)
    paint(canvas, r)
    tissue.chance_findings(canvas, r)

    seen = scanner.view(probe, settings)
    shadow = scanner.lost(canvas, settings)
    decibels = scanner.scan(canvas, shadow, settings, rng, speckle=speckle)
    span = scanner.HIGHEST - scanner.LOWEST
    echo = np.clip((canvas.echo - scanner.LOWEST) / span, 0, 1)
    maps, inside = scanner.convert(np.stack([decibels, echo, canvas.edges, shadow]), probe, grid, seen)
    maps[1:] *= inside
    drawn.echo[place], drawn.edges[place], drawn.shadows[place] = maps[1:]
    picture = processing.process(scanner.expose(maps[0], inside, settings), inside, look)

    scale = grid.size / (2 * seen.half)
    measured = [
        (
            (x0 - seen.x + seen.half) * scale,
            (y0 - seen.y + seen.half) * scale,
            (x1 - seen.x + seen.half) * scale,
            (y1 - seen.y + seen.half) * scale,
        )
        for x0, y0, x1, y1 in canvas.measured
    ]
    names = overlay.burn_in(picture, r, measured) + _visible(canvas, shadow, seen)
    drawn.images[place] = picture
    drawn.structures[place, [STRUCTURES.index(name) for name in names]] = 1
    drawn.scene[place] = SCENES.index(scene)


def _visible(canvas: Canvas, shadow: Array, seen: scanner.View) -> list[str]:
    """The names of what was painted and can be seen: in the picture, and not in a full shadow.
    Every second sample is looked at."""
    there = seen.holds(canvas.x[::2, ::2], canvas.y[::2, ::2])
    half = shadow[::2, ::2]
    lit = (there & (half < 1 - _PASSES)).astype(np.float32)
    enough = _SEEN * canvas.x.size / 4
    found: dict[str, float] = {}
    for name, (box, mask) in canvas.painted:
        part = lit[tuple(slice(one.start // 2, (one.stop + 1) // 2) for one in box)]
        found[name] = found.get(name, 0) + float(np.vdot(part, mask[::2, ::2]))
    names = [name for name, amount in found.items() if amount >= enough]
    count = there.sum()
    if (there & (half > 0.5)).sum() > 0.02 * count:
        names.append("acoustic shadow")
    if (there & (half < -0.3)).sum() > 0.015 * count:
        names.append("enhancement")
    return names


def _scatter(drawn: DrawnPictures, place: int, rng: np.random.Generator) -> None:
    """Replace a picture by noise. Image and echo pass the same filter of random phase, which keeps
    the spectrum of each, and which of the other belongs to it; then the image's grey levels are
    those it had before, in a new order."""
    grey = drawn.images[place].mean(2, dtype=np.float32)
    n = len(grey)
    phase = np.exp(1j * np.angle(np.fft.rfft2(rng.standard_normal((n, n)))))
    phase[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(grey) * phase, s=(n, n))
    order = np.argsort(noise, axis=None, kind="stable")
    levels = np.empty(n * n, np.uint8)
    levels[order] = np.sort(np.rint(grey).astype(np.uint8), axis=None)
    drawn.images[place] = levels.reshape(n, n, 1)
    drawn.echo[place] = np.clip(np.fft.irfft2(np.fft.rfft2(drawn.echo[place]) * phase, s=(n, n)), 0, 1)
    drawn.edges[place] = drawn.shadows[place] = 0
    drawn.structures[place] = 0
