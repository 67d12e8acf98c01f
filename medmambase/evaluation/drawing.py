"""What all pictures share: an empty figure that becomes a PNG file, labels that can be drawn, and
images as matplotlib takes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from medmambase.files import move

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fonts with Asian scripts that Windows, macOS and Linux bring along; matplotlib's own covers Latin,
# Greek, Cyrillic, Hebrew and Arabic.
ASIAN_FONTS = (
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "PingFang SC",
    "Hiragino Sans",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
)
LONGEST_LABEL = 28  # characters; the tables of the report have the whole name


class FigureError(ValueError):
    """A file that cannot be drawn: the message names it, the place and what is wanted."""


@contextmanager
def sheet(png: Path, width: float, height: float, *, whole: bool = False) -> Iterator["Figure"]:
    """Open an empty figure (inches) that becomes the file when the block ends, whatever the user's
    own matplotlib settings are. ``whole``: the file is as large as what is drawn, such as a legend
    beside axes that stay square."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        part = png.with_name(png.name + ".part")
        figure.savefig(part, format="png", dpi=110, bbox_inches="tight" if whole else None)
        move(part, png)


def labels_of(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Shorten names so that they fit, and choose fonts that can draw them; a name no font can draw
    becomes its number, from 1."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    installed = {entry.name for entry in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in ASIAN_FONTS if name in installed)]
    faces = [get_font(findfont(FontProperties(family=name))) for name in fonts]

    def label(number: int, name: str) -> str:
        text = " ".join(name.split())
        if len(text) > LONGEST_LABEL:
            text = f"{text[: LONGEST_LABEL - 13]}…{text[-12:]}"  # both ends: names that share a beginning stay apart
        drawable = all(any(face.get_char_index(ord(letter)) for face in faces) for letter in text)
        return text if text and drawable else f"no. {number}"

    return [label(number, name) for number, name in enumerate(names, start=1)], fonts


def pictures_of(images: Tensor) -> list[np.ndarray]:
    """Convert normalised images to (h, w) or (h, w, 3) in 0..1; the batch's darkest value is black,
    its brightest white."""
    values = images.float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low if high > low else 1.0)
    return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in values]
