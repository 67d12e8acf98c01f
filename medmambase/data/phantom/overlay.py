"""Burn in what screens show over a picture: calipers, text and a scale."""

from typing import Any

import numpy as np
import numpy.typing as npt

from medmambase.data.phantom.chances import Chances

Array = npt.NDArray[Any]
Line = tuple[float, float, float, float]
# Characters of 3 x 5 dots: five rows, each an octal digit of three bits.
GLYPHS = (
    "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 25755 74447 65556 74747 74744 55755 44447 57755 75557"
    " 65644 65655 72222 55552 00002 00700 02020"
)
WHITE = (255, 255, 255)
COLOURS = (WHITE, WHITE, WHITE, (190, 190, 190), (160, 160, 160), (255, 230, 40), (60, 230, 80), (60, 220, 255))


def burn_in(picture: Array, r: Chances, measured: list[Line]) -> list[str]:
    """Draw onto uint8 (size, size, 3) what a screen shows, alike for all scenes, and return its
    names. ``measured``: lines in pixels, ends as x, y, x, y, that calipers may mark."""
    names = []
    if r.chance(0.25):
        _scale(picture, r)
        names.append("scale")
    # Half of the calipers mark something and half of them nothing, so that they give nothing away.
    if r.chance(0.2):
        lines = [line for line in measured if 0 < min(line) and max(line) < len(picture) - 1]
        aim, ends = (
            r.chance(0.5),
            (r.between(0.15, 0.45), r.between(0.2, 0.8), r.between(0.5, 0.85), r.between(0.2, 0.8)),
        )
        chosen = r.one_of(lines) if lines and aim else tuple(end * len(picture) for end in ends)
        _calipers(picture, r, chosen)
        names.append("calipers")
    if r.chance(0.25):
        for _ in range(r.whole(1, 2)):
            _text(picture, r)
        names.append("text")
    return names


def _dots(picture: Array, rows: Array, columns: Array, colour: tuple[int, int, int], share: float) -> None:
    """Mix a colour into some pixels; those beside the picture are left out."""
    n = len(picture)
    there = (rows >= 0) & (rows < n) & (columns >= 0) & (columns < n)
    rows, columns = rows[there], columns[there]
    wanted = np.array(colour, np.float32)
    picture[rows, columns] = np.rint(picture[rows, columns] * (1 - share) + wanted * share)


def _text(picture: Array, r: Chances) -> None:
    n, glyphs = len(picture), GLYPHS.split()
    bits = [[int(row) >> shift & 1 for row in r.one_of(glyphs) for shift in (2, 1, 0)] for _ in range(r.whole(2, 9))]
    letters = np.pad(np.array(bits).reshape(-1, 5, 3), ((0, 0), (0, 0), (0, 1)))
    word = letters.swapaxes(0, 1).reshape(5, -1)
    times = max(1, round(n / 96 * r.between(0.5, 1.6)))
    rows, columns = np.nonzero(word.repeat(times, 0).repeat(times, 1))
    beside = r.between(0.75, 0.98) if r.chance(0.5) else r.between(0.0, 0.2)  # near the upper or the lower edge
    top, left = int(beside * (n - 5 * times)), int(r.unit() * max(1, n - word.shape[1] * times))
    _dots(picture, rows + top, columns + left, r.one_of(COLOURS), r.between(0.4, 1))


def _calipers(picture: Array, r: Chances, ends: tuple[float, ...]) -> None:
    x0, y0, x1, y1 = ends
    n, colour = len(picture), r.one_of(COLOURS)
    arm, slanted, dotted = max(2, round(n / 96 * r.between(1.6, 3.2))), r.chance(0.3), r.chance(0.6)
    along = np.arange(-arm, arm + 1)
    rest = np.zeros_like(along)
    for x, y in ((x0, y0), (x1, y1)):
        for across, down in ((along, along), (along, -along)) if slanted else ((along, rest), (rest, along)):
            _dots(picture, round(y) + down, round(x) + across, colour, 0.95)
    if dotted:
        share = np.linspace(0, 1, max(2, round(max(abs(x1 - x0), abs(y1 - y0)) / 3)))
        rows, columns = (np.rint(a + (b - a) * share).astype(int) for a, b in ((y0, y1), (x0, x1)))
        _dots(picture, rows, columns, colour, 0.8)


def _scale(picture: Array, r: Chances) -> None:
    """Marks at equal distances along one side."""
    n, colour = len(picture), r.one_of(COLOURS)
    apart, length = max(3, round(n * r.between(0.05, 0.14))), max(1, round(n / 96 * r.between(1, 3)))
    rows = np.repeat(np.arange(r.whole(0, apart), n, apart), length)
    columns = np.tile(np.arange(length), len(rows) // length)
    right, share, below = r.chance(0.7), r.between(0.6, 1), r.chance(0.25)
    columns = n - 1 - columns if right else columns
    if below:
        rows, columns = columns, rows
    _dots(picture, rows, columns, colour, share)
