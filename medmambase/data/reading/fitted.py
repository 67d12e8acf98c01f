"""Make a picture square, and describe it in a few numbers: a thumbnail, and how much colour it has.

The thumbnail is the same whatever size, channels and way of resizing a network asks for: so what is
found by it, such as duplicates, does not depend on them.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL = 32  # pixels along a side
LEVELS = 4080  # what white is in a thumbnail: sixteen steps to a grey level
_ENOUGH = 128  # pixels of the longer side that a thumbnail needs
_SAMPLED = 64  # places along a side at which colour is looked for


def fit(image: npt.NDArray[np.uint8], size: int, resize: str) -> npt.NDArray[np.uint8]:
    """Resize uint8 (h, w, c) to (size, size, c), smoothing where it shrinks; "letterbox" adds black
    bars, "stretch" distorts."""
    channels = image.shape[2]
    top, left, height, width = place(image.shape[0], image.shape[1], size, resize)
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, channels)
    fitted = np.zeros((size, size, channels), dtype=np.uint8)
    fitted[top : top + height, left : left + width] = resized
    return fitted


def place(height: int, width: int, size: int, resize: str) -> tuple[int, int, int, int]:
    """Return where ``fit`` puts a picture of that height and width: top, left, height, width."""
    if resize == "stretch":
        return 0, 0, size, size
    if resize != "letterbox":
        raise ValueError(f"resize is {resize!r}; it must be 'letterbox' or 'stretch'")
    longest = max(height, width)
    height, width = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    return (size - height) // 2, (size - width) // 2, height, width


def in_channels(pixels: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """uint8 (h, w) or (h, w, 3) to (h, w, channels): grey by luma, colour by repetition."""
    if pixels.ndim == 3 and channels == 1:
        return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    return np.repeat(pixels[:, :, None], channels, axis=2) if pixels.ndim == 2 else pixels


def thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return uint8 (h, w) or (h, w, 3) as a grey picture of 32 x 32 pixels with black bars: the
    means of areas, uint16 from 0 to LEVELS, little endian, row by row."""
    longest = max(pixels.shape[:2])
    top, left, height, width = place(pixels.shape[0], pixels.shape[1], THUMBNAIL, "letterbox")
    grey = Image.fromarray(in_channels(pixels, 1)[:, :, 0])
    if longest >= 2 * _ENOUGH:  # as numbers with a fraction a large one would fill the memory
        grey = grey.reduce(longest // _ENOUGH)
    how = Image.Resampling.BOX if longest >= THUMBNAIL else Image.Resampling.BILINEAR
    small = np.zeros((THUMBNAIL, THUMBNAIL), dtype=np.float32)
    small[top : top + height, left : left + width] = np.asarray(grey.convert("F").resize((width, height), how))
    return np.rint(small * (LEVELS / 255)).astype("<u2").tobytes()


def of_thumbnails(thumbnails: list[bytes]) -> npt.NDArray[np.float32]:
    """Return thumbnails as grey levels, float32 (n, 32, 32) from 0 to 255; black where one is
    empty."""
    blank = bytes(2 * THUMBNAIL**2)
    levels = np.frombuffer(b"".join(one or blank for one in thumbnails), dtype="<u2")
    return levels.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32) * np.float32(255 / LEVELS)


def colourfulness(pixels: npt.NDArray[np.uint8]) -> float:
    """Return by how much the channels of uint8 (h, w) or (h, w, 3) differ, from 0 (grey) to 1: the
    mean of highest less lowest, at some thousand places."""
    if pixels.ndim == 2:
        return 0.0
    height, width = pixels.shape[:2]
    some = pixels[:: -(-height // _SAMPLED), :: -(-width // _SAMPLED)]
    return round(float((some.max(axis=2) - some.min(axis=2)).mean()) / 255, 4)
