"""Read any image file into a tensor of fixed size, in the same way for training and for
prediction."""

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from medmambase.config import Preprocessing
from medmambase.data.reading.fitted import colourfulness, fit, in_channels, thumbnail
from medmambase.data.reading.frames import MOST_FRAMES, number_of
from medmambase.data.reading.upright import eight_bit
from medmambase.files import open_regular

# Formats are named, because Pillow would also try formats that start other programs (EPS runs
# Ghostscript).
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000
_LARGE = 16_000_000  # pixels; of images above it only one is decoded at a time, whatever the number of threads
_MOST_SCANS = 100  # of a progressive JPEG at MAX_PIXELS; smaller ones may have more

_LONGEST_REASON = 200


class ImageError(Exception):
    """A file that cannot be read as an image. ``str`` is one line: ``<path>: <reason>``."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        # A name may hold line breaks, or bytes that are no text: they are shown as escapes.
        path = re.sub(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
            lambda found: found[0].encode("unicode_escape").decode("ascii"),
            str(self.path),
        )
        return f"{path}: {self.reason}"


@dataclass(frozen=True)
class Facts:
    """What a file was before it was resized.

    ``digest``: 32 hex digits (BLAKE2b) of the upright 8-bit pixels at full size, with their shape;
    a grey picture saved as colour has the digest of the grey one. ``width``, ``height`` in pixels,
    upright. ``mode``: Pillow's name, or "DICOM MONOCHROME2" and its like.
    ``frames``: how many the file has, of a TIFF 10,000 at most.
    ``patient`` and ``modality``: DICOM's PatientID and Modality, else "". ``colour`` and
    ``thumbnail``: as ``fitted.py`` has them.
    """

    digest: str
    width: int
    height: int
    mode: str
    frames: int
    patient: str = ""
    modality: str = ""
    colour: float = 0.0
    thumbnail: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A frame of a file, upright: ``pixels``, uint8 (h, w) or (h, w, 3); the others as in
    ``Facts``."""

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    mode: str
    frames: int = 1
    patient: str = ""
    modality: str = ""


class _Silence:
    """Python's warnings switched off while at least one thread is inside.

    Pillow warns about odd metadata in files that it then reads well. ``warnings.catch_warnings``
    alone is not enough: two threads that leave it in another order than they entered would leave
    the program silent for good.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(kind, error, trace)


_silence = _Silence()
_large = threading.Lock()


def read_image(path: Path, channels: int, high_depth: str = "percentile", frame: int = 0) -> npt.NDArray[np.uint8]:
    """Read a frame of a file, by default the first, upright, as uint8 (h, w, channels);
    ``channels`` is 1 (grey, by luma) or 3 (RGB).

    Transparency is laid on black. 16-bit, 32-bit and float images become 8-bit: ``high_depth``
    "percentile" takes the image's own 0.1 and 99.9 percentiles as black and white; "range" takes 0
    and 65535, or 0 and 1 for floats that stay there, and the image's own extremes where the values
    leave these limits. NaN becomes black. 16-bit colour is known only to 8 bits (Pillow keeps no
    more), and then scaled in the same way.

    Raises ImageError for whatever cannot be read, a truncated file and one of more than MAX_PIXELS
    included.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; it must be 1 (grey) or 3 (RGB)")
    return in_channels(decode(path, high_depth, frame).pixels, channels)


def picture_pixels(picture: Image.Image, high_depth: str = "percentile") -> npt.NDArray[np.uint8]:
    """A Pillow image of any mode, upright, as uint8 (h, w) or (h, w, 3): the same pixels as those
    of a file that holds it. Raises ValueError, in one line, where it cannot be decoded."""
    try:
        with _silence:
            return eight_bit(picture, high_depth)
    except Exception as error:  # a damaged file that was opened lazily makes Pillow raise nearly every type there is
        raise ValueError(_reason(error)) from error


def is_dicom(path: Path) -> bool:
    """Return whether a file, of any name, begins as DICOM files do. Raises OSError for one that
    cannot be opened, and for what is no regular file."""
    with open_regular(path) as stream:
        return _begins_as_dicom(stream)


def load(
    path: Path, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8] | Decoded | None = None, frame: int = 0
) -> tuple[torch.Tensor, Facts]:
    """Load one file, or a ``frame`` of it, as torch.uint8 (c, size, size), with facts about the
    original. Raises ImageError.

    ``pixels``, uint8 (h, w) or (h, w, 3), are an image that is decoded already (a row of an array
    file), with what ``decode`` found out about its file or without: then ``path`` is not opened.
    """
    if pixels is None:
        found = decode(path, preprocessing.high_depth, frame)
    elif isinstance(pixels, Decoded):
        found = pixels
    elif pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; they must be uint8 (h, w) or (h, w, 3), not empty")
    else:
        found = Decoded(pixels, "L" if pixels.ndim == 2 else "RGB")
    pixels = found.pixels
    facts = Facts(
        _digest(pixels), pixels.shape[1], pixels.shape[0], found.mode, found.frames, found.patient, found.modality,
        colourfulness(pixels), thumbnail(pixels),
    )  # fmt: skip  # in the order of the fields
    image = fit(in_channels(pixels, preprocessing.channels), preprocessing.size, preprocessing.resize)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), facts


def normalise(batch: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalise torch.uint8 (b, c, s, s) to torch.float32 of the same shape: (value / 255 - mean) /
    std."""
    return batch.to(torch.float32).div_(255).sub_(preprocessing.mean).div_(preprocessing.std)


def _begins_as_dicom(stream: BinaryIO) -> bool:
    magic = stream.read(132)[128:]
    stream.seek(0)
    return magic == b"DICM"


def decode(source: Path | bytes, high_depth: str, frame: int = 0) -> Decoded:
    """Decode a file, or what a file holds, as ``read_image`` does, its channels as they are. Raises
    ImageError, whose ``path`` is empty where no file was given."""
    with closing(decode_frames(source, high_depth, (frame,))) as frames:
        found = next(frames)
    if isinstance(found, ImageError):
        raise found
    return found


def decode_frames(
    source: Path | bytes, high_depth: str, frames: Sequence[int]
) -> Generator[Decoded | ImageError, None, None]:
    """Decode these frames of a file, rising numbers from 0, each when it is asked for; the file is
    opened once. What cannot be decoded is an error in its place."""
    if high_depth not in ("percentile", "range"):
        raise ValueError(f"high_depth is {high_depth!r}; it must be 'percentile' or 'range'")
    left, path = list(frames), Path() if isinstance(source, bytes) else source
    try:
        with _silence, io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
            dicom = _begins_as_dicom(stream)
            found = _of_dicom(source, high_depth, frames) if dicom else _by_pillow(stream, high_depth, frames)
            for one in found:
                frame = left.pop(0)
                yield _error(path, one, frame) if isinstance(one, Exception) else one
    except Exception as error:  # noqa: BLE001  # damaged files make Pillow raise nearly every type there is
        yield from (_error(path, error, frame) for frame in left)


def count_frames(source: Path | bytes) -> int:
    """Return how many frames of a file, or of what a file holds, can be taken, 10,000 at most; 1
    where it cannot be read, which is said when it is decoded."""
    try:
        with _silence, io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream:
            if not _begins_as_dicom(stream):
                with Image.open(stream, formats=FORMATS) as image:
                    return min(number_of(image), MOST_FRAMES)
        from medmambase.data.reading import dicom

        return max(1, min(dicom.frames_of(source), MOST_FRAMES))
    except Exception:  # noqa: BLE001  # the same
        return 1


def _of_dicom(source: Path | bytes, high_depth: str, frames: Sequence[int]) -> Iterator[Decoded | Exception]:
    from medmambase.data.reading import dicom

    for frame in frames:
        try:
            found: Decoded | Exception = Decoded(*dicom.read(source, high_depth, room_for, frame))
        except Exception as error:  # noqa: BLE001  # the same
            found = error
        yield found


def _by_pillow(stream: BinaryIO, high_depth: str, frames: Sequence[int]) -> Iterator[Decoded | Exception]:
    with Image.open(stream, formats=FORMATS) as image:
        first = tuple(frames) == (0,)  # counted last: what is damaged behind it is then no matter
        count = 0 if first else number_of(image)
        for frame in frames:
            try:
                if not first:
                    image.seek(frame)
                with room_for(*image.size, _scans(image, stream)):
                    if image.format == "TIFF":  # a small one may be one huge tile
                        room_for(*(int(image.tag_v2.get(tag, 0)) for tag in (322, 323)))  # type: ignore[attr-defined]  # a TIFF has tags
                    mode = image.mode
                    found: Decoded | Exception = Decoded(eight_bit(image, high_depth), mode, count or number_of(image))
            except Exception as error:  # noqa: BLE001  # the same
                found = error
            yield found


def _error(path: Path, error: Exception, frame: int) -> ImageError:
    reason = _of_folder(path) if path != Path() and path.is_dir() else _reason(error)
    found = ImageError(path, f"frame {frame + 1}: {reason}" if frame else reason)
    found.__cause__ = error.with_traceback(None)  # which would hold the half-decoded image
    return found


def _of_folder(path: Path) -> str:
    try:
        next(path.iterdir(), None)
    except OSError as error:
        return unlisted(path, error).reason
    return "a folder, not an image"


def unlisted(path: Path, error: OSError) -> ImageError:
    """Return the error for a folder whose files cannot be listed, which may be images."""
    return ImageError(path, f"a folder that cannot be listed ({error.strerror or error}): whatever is in it is missing")


def room_for(width: int, height: int, scans: int = 1) -> AbstractContextManager[object]:
    """Return what to enter while such an image is decoded. Raises DecompressionBombError for more
    than MAX_PIXELS, OSError for what would take very long."""
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if (
        scans * width * height > _MOST_SCANS * MAX_PIXELS
    ):  # a small progressive JPEG may paint the same pixels for hours
        raise OSError(f"a JPEG of {scans} scans, which would take very long; save it again")
    return _large if width * height > _LARGE else nullcontext()


def _scans(image: Image.Image, stream: BinaryIO) -> int:
    if not image.info.get("progressive"):
        return 1
    place = stream.tell()
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")
    stream.seek(place)
    return scans


def _digest(pixels: npt.NDArray[np.uint8]) -> str:
    if (
        pixels.ndim == 3
        and np.array_equal(pixels[..., 0], pixels[..., 1])
        and np.array_equal(pixels[..., 0], pixels[..., 2])
    ):
        pixels = pixels[..., 0]
    digest = hashlib.blake2b(repr(pixels.shape).encode("ascii"), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


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
    text = text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
    return text if text and isinstance(error, OSError) else f"damaged ({type(error).__name__}: {text})"
