"""Keep decoded images on disk, so that the next run decodes nothing.

The person's files are only ever read.

A shard is a file of records, all of one size. Each run that decodes something appends to a shard of
its own, under a name that nobody else has.
A record carries its key and a checksum over all of it, and only what passes is believed: so a
writer killed in the middle, a full disk, two runs at once and a flipped bit cost a record each and
no more. Nothing is locked, replaced or mapped: a file that shrinks while it is mapped would end the
process, and Windows replaces no file that is open.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from medmambase.config import Preprocessing
from medmambase.data.reading.fitted import THUMBNAIL
from medmambase.data.reading.images import Facts, ImageError
from medmambase.files import open_regular

_KEY = _CHECKSUM = 16  # bytes
_FACTS = 512  # bytes of a record up to its thumbnail: key, checksum, and the facts as JSON, filled up with zeros
_HEADER = _FACTS + 2 * THUMBNAIL**2  # bytes of a record before its pixels
_SPARE = 2**30  # bytes that are left free on the disk: the run itself writes networks and pictures
_LARGEST = 2**32  # bytes of a file that is kept: a sparse one may claim so many that to read it takes hours
Image = tuple[torch.Tensor, Facts]


class Cache:
    """A folder of decoded images, made when it is needed. It can be deleted whenever no run is
    being started; ``notes`` say what it could not do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def shelf(self, preprocessing: Preprocessing, images: int) -> "Shelf":
        """Open the images decoded with this preprocessing; ``images`` is about how many are asked
        for. Use it in a ``with`` statement."""
        asked = preprocessing
        name = f"{asked.size}-{asked.channels}-{asked.resize}-{asked.high_depth}-{_code_version()}"
        return Shelf(self.folder / name, preprocessing, images, self.notes)


class Shelf:
    """The records of one ``Preprocessing``, from any number of threads. Whatever is wrong here is
    no error: the image is then decoded."""

    def __init__(self, folder: Path, preprocessing: Preprocessing, images: int, notes: list[str]) -> None:
        self.folder, self.channels, self.size, self.images, self.notes = (
            folder,
            preprocessing.channels,
            preprocessing.size,
            images,
            notes,
        )
        self.recipe = folder.name.encode("ascii")
        self.lock = threading.Lock()
        self.open_shards: list[_Shard] = []
        self.writers: dict[int, BinaryIO] = {}
        self.written: set[bytes] = set()
        self.may_write = True
        self.places: dict[bytes, list[tuple[_Shard, int]]] = {}

    def __enter__(self) -> "Shelf":
        for path in _listed(self.folder):
            try:
                shard = _Shard(path, self.size)
                self.open_shards.append(shard)
                for row, key in enumerate(shard.keys()):
                    self.places.setdefault(key, []).append((shard, row))
            except (OSError, ValueError):  # it cannot be read, or is none of ours
                continue
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            for shard in self.open_shards:
                shard.close()
            self.may_write = False
            try:
                for file in self.writers.values():
                    file.close()
            except OSError as full:
                self._give_up(full)

    def fetch(self, path: Path, pixels: npt.NDArray[np.uint8] | None, decode: Callable[[], Image]) -> Image:
        """Return what ``decode()`` returns for this file, or for these ``pixels``, from the shelf
        if it is there. Raises what ``decode`` raises."""
        try:
            before = _stamp(path)
            if before[0] > _LARGEST and pixels is None:
                return decode()
            key = _key(self.recipe, path) if pixels is None else _key_of_pixels(self.recipe, pixels)
        except (OSError, ValueError):  # no file has a NUL in its name, which is a ValueError
            return decode()  # which says what is wrong with the file
        if (found := self._kept(key)) is not None:
            return found
        image, facts = decode()
        with suppress(OSError):  # the file is gone by now
            if pixels is not None or before == _stamp(path):  # else it changed between the two readings
                self._write(key, image, facts)
        return image, facts

    def fetch_frames(
        self, path: Path, frames: Sequence[int], decode: Callable[[Sequence[int]], Iterable[Image | ImageError]]
    ) -> list[Image | ImageError]:
        """Return what ``decode(frames)`` yields for these frames of a file, those from the shelf
        that are there: the file is read once to know it, and once more if some are not."""
        try:
            before = _stamp(path)
            if before[0] > _LARGEST:
                return list(decode(frames))
            whole = _key(self.recipe, path)
        except (OSError, ValueError):
            return list(decode(frames))  # which says what is wrong with the file
        keys = {frame: _key_of_frame(whole, frame) for frame in frames}
        found: dict[int, Image | ImageError] = {
            frame: kept for frame, key in keys.items() if (kept := self._kept(key)) is not None
        }
        missing = [frame for frame in frames if frame not in found]
        for frame, one in zip(missing, decode(missing) if missing else (), strict=True):
            found[frame] = one
            with suppress(OSError):
                if not isinstance(one, ImageError) and before == _stamp(path):
                    self._write(keys[frame], *one)
        return [found[frame] for frame in frames]

    def _kept(self, key: bytes) -> Image | None:
        for shard, row in self.places.get(key, ()):
            found = shard.read(key, row)
            if found is not None:
                image, facts = found
                return image.expand(self.channels, -1, -1), facts
        return None

    def _write(self, key: bytes, image: torch.Tensor, facts: Facts) -> None:
        told = {name: value for name, value in asdict(facts).items() if name != "thumbnail"}
        described = json.dumps(told, separators=(",", ":")).encode("ascii").ljust(_FACTS - _KEY - _CHECKSUM, b"\0")
        described += facts.thumbnail
        if len(described) != _HEADER - _KEY - _CHECKSUM:
            return
        # Three equal channels are stored once: whether a set is grey is known only when all of it
        # has been read.
        grey = len(image) == 1 or (torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]))
        stored = (image[:1] if grey else image).contiguous().numpy().tobytes()
        record = key + _checksum(key, described, stored) + described + stored
        with self.lock:
            if key in self.written or not self.may_write:
                return
            try:
                self._writer(1 if grey else 3).write(record)
                self.written.add(key)
            except OSError as error:
                self._give_up(error)

    def _writer(self, channels: int) -> BinaryIO:
        if channels not in self.writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            need = self.images * (_HEADER + self.channels * self.size**2)
            free = shutil.disk_usage(self.folder).free
            if free < need + _SPARE:
                raise OSError(
                    errno.ENOSPC,
                    f"{free / 1e9:.1f} GB are free there; they take up to {need / 1e9:.1f} GB, and 1 GB is left to "
                    f"the run",
                )
            self.writers[channels] = (self.folder / f"{uuid.uuid4().hex}-{channels}.shard").open("xb")
        return self.writers[channels]

    def _give_up(self, error: OSError) -> None:
        """No more is written, and the room that this run took is given back: a full disk would cost
        it its networks."""
        self.may_write = False
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space there" if full else "make the folder writable"
        self.notes.append(
            f"{self.folder.parent}: decoded images are not kept on disk ({error.strerror or error}), so the next run "
            f"decodes them again; {advice} to keep them"
        )
        for file in self.writers.values():
            with suppress(OSError):  # what was still to be written does not fit either
                file.close()
            with suppress(OSError):  # another run may be reading it, and Windows deletes nothing that is open
                Path(file.name).unlink(missing_ok=True)
        self.writers.clear()


class _Shard:
    """One file of records, open for reading until ``close``."""

    def __init__(self, path: Path, size: int) -> None:
        self.channels = int(path.stem.rpartition("-")[2])
        if self.channels not in (1, 3):
            raise ValueError(f"{path}: no shard of ours")
        self.size = size
        self.record = _HEADER + self.channels * size**2
        self.lock = threading.Lock()
        self.file = path.open("rb", buffering=0)

    def keys(self) -> list[bytes]:
        """The key of each whole record; a last one that is cut short is left out."""
        keys = []
        for row in range(os.fstat(self.file.fileno()).st_size // self.record):
            self.file.seek(row * self.record)
            keys.append(self.file.read(_KEY))
        return keys

    def read(self, key: bytes, row: int) -> Image | None:
        """torch.uint8 (channels, size, size) and its facts; None where a byte of the record is not
        what was written."""
        try:
            with self.lock:
                self.file.seek(row * self.record)
                record = self.file.read(self.record)
        except OSError:
            return None
        described, pixels = record[_KEY + _CHECKSUM : _HEADER], record[_HEADER:]
        if len(record) < self.record or record[: _KEY + _CHECKSUM] != key + _checksum(key, described, pixels):
            return None
        image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(self.channels, self.size, self.size)
        told, thumbnail = record[_KEY + _CHECKSUM : _FACTS], record[_FACTS:_HEADER]
        return image, Facts(**json.loads(told.rstrip(b"\0")), thumbnail=thumbnail)

    def close(self) -> None:
        with self.lock:
            self.file.close()


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.shard"))
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _key(recipe: bytes, path: Path) -> bytes:
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(recipe, digest_size=_KEY)).digest()


def _key_of_pixels(recipe: bytes, pixels: npt.NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(recipe + repr(pixels.shape).encode("ascii"), digest_size=_KEY)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def _key_of_frame(whole: bytes, frame: int) -> bytes:
    return hashlib.blake2b(whole + f"frame {frame}".encode("ascii"), digest_size=_KEY).digest()


def _checksum(key: bytes, described: bytes, pixels: bytes) -> bytes:
    digest = hashlib.blake2b(key, digest_size=_CHECKSUM)
    digest.update(described)
    digest.update(pixels)
    return digest.digest()


def _code_version() -> str:
    """Twelve hex digits of whatever turns bytes into pixels: the code itself, so that no one needs
    to remember to raise a number."""
    digest = hashlib.blake2b(digest_size=6)
    for source in sorted(files("medmambase.data.reading").iterdir(), key=lambda source: source.name):
        digest.update(source.read_bytes() if source.name.endswith(".py") else b"")
    for library in ("pillow", "pydicom", "medmambase"):
        try:
            digest.update(f"{library} {version(library)}\n".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()
