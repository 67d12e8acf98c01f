"""Lay the map of each image over the image as its file has it, one PNG an image."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import Progress
from medmambase.data.reading.fitted import place
from medmambase.data.reading.frames import file_and_frame
from medmambase.data.reading.images import read_image
from medmambase.files import write_bytes
from medmambase.run_folder import OVERLAYS, legal_name

LONGEST = 1024  # pixels of the longer side
_LONGEST_NAME = 80  # letters: some systems take no path of more than 260


def write_overlays(
    folder: Path, paths: Sequence[str], cams: Tensor, preprocessing: Preprocessing, progress: Progress
) -> list[Path]:
    """Write a PNG for each image, or frame, and return their paths; those of earlier images are
    removed. ``cams`` (n, s, s), 0 to 1, on the square that the network was given.

    Raises ImageError for a file that has gone, OSError where nothing can be written.
    """
    for old in folder.glob(OVERLAYS):
        old.unlink()
    written = []
    for number, path in enumerate(progress(paths, len(paths), "drawing overlays"), start=1):
        name = f"{number:03}_{legal_name(Path(path).stem)[:_LONGEST_NAME]}"
        png = folder / OVERLAYS.replace("*", name)
        write_bytes(png, _overlay(path, cams[number - 1], preprocessing))
        written.append(png)
    return written


def on_picture(cam: Tensor, height: int, width: int, resize: str) -> npt.NDArray[np.float32]:
    """Return the part of a map (s, s), 0 to 1, that lies on a picture of that height and width, and
    not on the bars beside it."""
    top, left, height, width = place(height, width, cam.shape[-1], resize)
    return cam[top : top + height, left : left + width].float().numpy()


def in_colour(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Return what to paint for a map (h, w), 0 to 1: colours (h, w, 3), 0 to 255, and how much they
    cover (h, w, 1), 0 to 1: nothing where the map is 0."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](values))[..., :3] * 255, np.clip(1.4 * values, 0, 0.65)[..., None]


def _overlay(path: str, cam: Tensor, preprocessing: Preprocessing) -> bytes:
    """The image with its map in colour: where the map is 0 the image stays as it is."""
    file, frame = file_and_frame(Path(path))
    picture = Image.fromarray(read_image(file, 3, preprocessing.high_depth, frame=frame or 0))
    part = Image.fromarray(on_picture(cam, picture.height, picture.width, preprocessing.resize))
    picture.thumbnail((LONGEST, LONGEST))
    colours, alpha = in_colour(np.asarray(part.resize(picture.size, Image.Resampling.BILINEAR)).clip(0, 1))
    blended = np.asarray(picture) * (1 - alpha) + colours * alpha
    stream = io.BytesIO()
    Image.fromarray(np.rint(blended).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
