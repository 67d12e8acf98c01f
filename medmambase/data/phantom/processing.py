"""Process grey pictures as scanners and archives do: curves, sharpening, blur, blocks, tints."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.chances import Chances

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Processing:
    """What a scanner and an archive make of a picture, drawn alike for all scenes."""

    coarse: int  # how often neighbours are averaged: the picture was small once, or a frame of a video
    detail: float  # above 0 sharpened, below 0 blurred
    gamma: float
    bend: float  # of a curve that is steep in the middle
    steps: int  # grey levels
    blocks: float  # coarseness of the compression, 0 for none
    margin: int  # grey outside of the samples
    tint: tuple[float, float, float]  # share of red, green and blue


def processing(r: Chances) -> Processing:
    """Draw how a picture is processed."""
    tinted, colour, strength = r.chance(0.12), r.unit(), r.between(0.05, 0.3)
    blue = (1 - strength, 1 - strength / 3, 1.0)
    sepia = (1.0, 1 - strength / 2, 1 - strength)
    return Processing(
        coarse=r.one_of((0, 0, 0, 1, 2)),
        detail=r.between(-1, 0.9),
        gamma=1.45 ** r.between(-1, 1),
        bend=r.between(0, 0.6),
        steps=r.one_of((256, 256, 256, 64, 24)),
        blocks=r.between(0.5, 3) if r.chance(0.15) else 0.0,
        margin=r.whole(8, 45) if r.chance(0.12) else 0,
        tint=((blue if colour < 0.5 else sepia) if tinted else (1.0, 1.0, 1.0)),
    )


def process(grey: Array, inside: Array, p: Processing) -> Array:
    """Turn grey from 0 to 1, float32 (size, size), into uint8 (size, size, 3)."""
    for _ in range(p.coarse):
        grey = _smooth(grey)
    if p.detail:
        grey = grey - p.detail * (_smooth(grey) - grey)
    grey = grey * inside
    if p.blocks:
        grey = _compress(grey, p.blocks)
    levels = np.arange(256) / 255
    curve = levels**p.gamma
    curve += p.bend * (3 * curve**2 - 2 * curve**3 - curve)
    curve = np.rint(np.rint(curve * (p.steps - 1)) * (255 / (p.steps - 1)))
    place = np.clip(grey * 255 + 0.5, 0, 255).astype(np.uint8)
    picture = np.empty((*grey.shape, 3), np.uint8)
    for channel, share in enumerate(p.tint):
        values = np.rint(curve * share).astype(np.uint8).take(place)
        if p.margin:
            values[~inside] = p.margin
        picture[..., channel] = values
    return picture


def _smooth(grey: Array) -> Array:
    """Each pixel with its eight neighbours, weighted 1 2 1 either way."""
    wide = np.empty((grey.shape[0] + 2, grey.shape[1] + 2), np.float32)
    wide[1:-1, 1:-1] = grey
    wide[0], wide[-1] = wide[1], wide[-2]
    wide[:, 0], wide[:, -1] = wide[:, 1], wide[:, -2]
    rows = wide[1:-1] * 2
    rows += wide[:-2]
    rows += wide[2:]
    both = rows[:, 1:-1] * 2
    both += rows[:, :-2]
    both += rows[:, 2:]
    both *= 1 / 16
    return both


def _compress(grey: Array, coarseness: float) -> Array:
    """Round the cosine transform of blocks of 8 x 8 pixels, coarser the finer the detail, as JPEG
    does. A rest of rows and columns stays."""
    rows, columns = (n // 8 * 8 for n in grey.shape)
    place = np.arange(8)
    basis = np.cos(math.pi / 8 * np.outer(place, place + 0.5)) * math.sqrt(1 / 4)
    basis[0] *= math.sqrt(1 / 2)
    basis = basis.astype(np.float32)
    step = (coarseness * (8 + 7 * (place[:, None] + place)) / 255).astype(np.float32)
    blocks = grey[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8).swapaxes(1, 2)
    rounded = np.rint(basis @ blocks @ basis.T / step) * step
    compressed = grey.copy()
    compressed[:rows, :columns] = (basis.T @ rounded @ basis).swapaxes(1, 2).reshape(rows, columns)
    return compressed
