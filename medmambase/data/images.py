"""Any image file to a fixed-size tensor: the same way in training and in prediction.

Stop before: a path from ``data/folders.py`` or from a command line. Stop after: ``data/augment.py``, then the network.
"""

import re
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from medmambase.config import Preprocessing

# Formats are named, because Pillow would also try formats that start other programs (EPS runs Ghostscript).
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """A file that cannot be read as an image. ``str`` is one line: ``<path>: <reason>``."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        # A name may hold line breaks, or bytes that are no text: they are shown as escapes.
        path = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: found[0].encode("unicode_escape").decode("ascii"), str(self.path))
        return f"{path}: {self.reason}"


class _Silence:
    """Python's warnings switched off while at least one thread is inside.

    Pillow warns about odd metadata in files that it then reads well. ``warnings.catch_warnings`` alone is not enough:
    two threads that leave it in another order than they entered would leave the program silent for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(kind, error, trace)


_silence = _Silence()


def read_image(path: Path, channels: int, high_depth: str = "percentile") -> npt.NDArray[np.uint8]:
    """The first frame of a file, upright, as uint8 (h, w, channels); ``channels`` is 1 (grey, by luma) or 3 (RGB).

    Transparency is laid on black. 16-bit, 32-bit and float images become 8-bit: ``high_depth`` "percentile" takes the
    image's own 0.1 and 99.9 percentiles as black and white; "range" takes 0 and 65535, or 0 and 1 for floats that stay
    there, and the image's own extremes where the values leave these limits. NaN becomes black. 16-bit colour is known
    only to 8 bits (Pillow keeps no more), and then scaled in the same way.

    Raises ImageError for whatever cannot be read, a truncated file and one of more than MAX_PIXELS included.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; it must be 1 (grey) or 3 (RGB)")
    if high_depth not in ("percentile", "range"):
        raise ValueError(f"high_depth is {high_depth!r}; it must be 'percentile' or 'range'")
    try:
        with _silence, path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            deep_colour = re.search(r"\b(RGBA?|LA);16[BLN]", repr(image.tile)) is not None
            image.load()
            pixels = _eight_bit(_upright(image), high_depth, deep_colour)
            if pixels.ndim == 3 and channels == 1:
                return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
            return np.repeat(pixels[:, :, None], channels, axis=2) if pixels.ndim == 2 else pixels
    except Exception as error:  # damaged files make Pillow raise nearly every type there is
        raise ImageError(path, _reason(error)) from error


def fit(image: npt.NDArray[np.uint8], size: int, resize: str) -> npt.NDArray[np.uint8]:
    """uint8 (h, w, c) to (size, size, c), smoothed where it shrinks; "letterbox" adds black bars, "stretch" distorts."""
    height, width, channels = image.shape
    if resize == "letterbox":
        longest = max(height, width)
        new_height, new_width = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    elif resize == "stretch":
        new_height = new_width = size
    else:
        raise ValueError(f"resize is {resize!r}; it must be 'letterbox' or 'stretch'")
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((new_width, new_height), Image.Resampling.BILINEAR)).reshape(new_height, new_width, channels)
    fitted = np.zeros((size, size, channels), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    fitted[top : top + new_height, left : left + new_width] = resized
    return fitted


def load(path: Path, preprocessing: Preprocessing) -> torch.Tensor:
    """One file as torch.uint8 (c, size, size). Raises ImageError."""
    image = fit(read_image(path, preprocessing.channels, preprocessing.high_depth), preprocessing.size, preprocessing.resize)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def normalise(batch: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """torch.uint8 (b, c, s, s) to torch.float32 of the same shape: (value / 255 - mean) / std."""
    return batch.to(torch.float32).div_(255).sub_(preprocessing.mean).div_(preprocessing.std)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF (or XMP) says. Ask after ``load``: a PNG may hold it behind the pixels, a TIFF turns itself."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # a damaged EXIF block says nothing about the pixels, and raises nearly every type there is
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _eight_bit(image: Image.Image, high_depth: str, deep_colour: bool) -> npt.NDArray[np.uint8]:
    """A loaded image of any mode as uint8 (h, w) or (h, w, 3), transparency laid on black."""
    transparency = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        scaled = _scale(values, *_limits(values, high_depth))
        if isinstance(transparency, int):  # a PNG may name one 16-bit grey value as the transparent one
            scaled[values == transparency] = 0
        return scaled
    has_alpha = transparency is not None or image.mode in ("LA", "La", "RGBA", "RGBa", "PA")
    grey = image.mode in ("1", "L", "LA", "La")
    layers: npt.NDArray[np.uint8] = np.asarray(image.convert(("L" if grey else "RGB") + ("A" if has_alpha else "")))
    if has_alpha:
        alpha = layers[..., -1:].astype(np.uint16)
        layers = ((layers[..., :-1] * alpha + 127) // 255).astype(np.uint8)
    if deep_colour and high_depth == "percentile":
        layers = _scale(layers, *_limits(layers, high_depth))
    return layers[..., 0] if layers.shape[-1] == 1 and layers.ndim == 3 else layers


def _limits(values: npt.NDArray[Any], high_depth: str) -> tuple[float, float]:
    """The values that become black and white."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    if high_depth == "percentile":
        dark, bright = (float(v) for v in np.percentile(finite, (0.1, 99.9)))
        # Few bright dots on an even ground: both percentiles are the ground, and the dots are all there is to see.
        return (dark, bright) if dark < bright else (low, high)
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    return (0.0, full) if low >= 0 and high <= full else (low, high)


def _scale(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """``low`` to 0, ``high`` to 255, linear, clipped; all black where there is no contrast; NaN is black."""
    if not low < high:
        return np.zeros(values.shape, dtype=np.uint8)
    # float32 is exact for 8 and 16 bits; 32-bit values far from zero would lose their differences in it.
    scaled = np.subtract(values, low, dtype=np.float32 if values.dtype.itemsize <= 2 else np.float64)
    np.multiply(scaled, 255 / (high - low), out=scaled)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    eight_bit: npt.NDArray[np.uint8] = np.rint(scaled, out=scaled).astype(np.uint8)
    return eight_bit


def _reason(error: Exception) -> str:
    """One line that says what is wrong with the file."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller first"
    if isinstance(error, UnidentifiedImageError):
        return "empty, not a known image format, or damaged at its beginning"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError | ValueError) else f"damaged ({type(error).__name__}: {text})"
