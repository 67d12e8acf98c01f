"""Choose frames of files that hold several, and count them.

A frame is named by the file and its number, counted from 1 as viewers do: ``clip.gif#07``.
"""

import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

MOST_FRAMES = 10_000  # to be counted in a TIFF, and to be taken of any file


def chosen(wish: str, count: int) -> list[int]:
    """Return which frames, from 0, of a file of ``count`` are taken: "first", "middle", "all", or
    as many as a number says, in the middle of as many parts of equal length; of a shorter file
    all."""
    if wish == "first":
        return [0]
    if wish == "all":
        return list(range(count))
    parts = 1 if wish == "middle" else min(int(wish), count)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def framed_name(name: str, frame: int, count: int) -> str:
    """Return the name of a frame, from 0, of the file ``name`` with ``count`` of them; by name they
    stand in their order."""
    return f"{name}#{frame + 1:0{len(str(count))}}"


def file_and_frame(path: Path) -> tuple[Path, int | None]:
    """Divide the path of a frame, as ``framed_name`` makes it, into the file and the frame, from 0;
    any other path, and that of a file that is there, is given back with None."""
    found = re.fullmatch(r"(.+)#0*([1-9][0-9]{0,4})", path.name, re.DOTALL)
    if found is None or path.exists():
        return path, None
    return path.with_name(found[1]), int(found[2]) - 1


def number_of(image: Image.Image) -> int:
    """Count the frames of an open image, of a TIFF 10,000 at most; what is damaged behind some is
    not counted. It may end at another frame than it began."""
    count = 1
    with suppress(Exception):
        if image.format != "TIFF":
            return int(getattr(image, "n_frames", 1))
        while count < MOST_FRAMES:  # n_frames would have no end
            image.seek(count)
            count += 1
    return count
