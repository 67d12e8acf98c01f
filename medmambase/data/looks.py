"""Keep how pictures look, in 256 bits each, and find near duplicates by it where the pictures are
no longer there: of other data among those that a run has learned from.

A look is what ``audit.py`` compares two pictures by, reduced to signs: on which side of each of 256
planes, the same for ever, the details of its thumbnail lie. Of two pictures whose details correlate
by c, the share arccos(c) / pi of the bits differs, give or take 2 % (Charikar, 2002).

Measured within each of four sets of ultrasound, 680 images together, and among 1,200 chest
radiographs of 28 pixels: of 96 pairs that the audit finds, looks find 91; of 818,564 others they
take 46, all of which correlate by more than 0.85. With 64 bits they would take 232.
"""

import csv
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmambase.data.audit import details
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.fitted import THUMBNAIL
from medmambase.data.reading.images import Facts
from medmambase.files import as_written, write_text
from medmambase.tables import of_cell, table

COLUMNS = ("path", "split", "look")
BITS = 256
MOST = 32  # bits in which near duplicates differ
_LOOK = re.compile(f"[0-9a-f]{{{BITS // 4}}}")


def looks(facts: Sequence[Facts]) -> list[str]:
    """Return the look of each picture, 64 hex digits; "" of one that has nothing to be known by, as
    an even one."""
    found = details([one.thumbnail for one in facts])
    bits = np.packbits((found @ _planes().t() > 0).numpy(), axis=1)
    return [row.tobytes().hex() if known else "" for row, known in zip(bits, found.any(dim=1).tolist(), strict=True)]


def write(path: Path, images: ImageSet) -> None:
    """Write ``path,split,look`` of each image of train and val that has a look. Raises OSError."""
    rows = zip(images.samples, looks(images.facts), strict=True)
    kept = ((as_written(sample.name), sample.split, look) for sample, look in rows if look and sample.split != "test")
    write_text(path, table(COLUMNS, kept))


@dataclass(frozen=True, eq=False)
class Known:
    """How pictures look that are known: ``bits``, uint16 (n, BITS / 16), and ``whose``: the split
    and the path of each."""

    bits: npt.NDArray[np.uint16]
    whose: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read what ``write`` wrote of one run, or of several; of equal looks one is kept, that of
        an image of train rather than of val. Raises FileNotFoundError, and DataError where a file
        is damaged."""
        rows = sorted((row for path in paths for row in _rows(path)), key=lambda row: row[1] == "train")
        known = {look: (split, path) for look, split, path in rows}
        return cls(_packed(known), tuple(known.values()))

    def nearest(self, facts: Sequence[Facts]) -> dict[int, tuple[str, str]]:
        """Return the rows of pictures that are near duplicates of what is known, and of which:
        split and path of the one that looks most like it. With 10,000 known, a picture takes a
        millisecond."""
        if not self.whose:
            return {}
        found: dict[int, tuple[str, str]] = {}
        for row, look in enumerate(looks(facts)):
            if look:
                differ = _ones()[self.bits ^ _packed([look])].sum(axis=1, dtype=np.uint16)
                if differ[at := int(differ.argmin())] <= MOST:
                    found[row] = self.whose[at]
        return found


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """Look, split and path of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = csv.DictReader(file)
            if not {*COLUMNS} <= {*(found.fieldnames or ())}:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            rows = [(row["look"] or "", row["split"] or "", of_cell(row["path"] or "")) for row in found]
        for look, split, _ in rows:
            if not _LOOK.fullmatch(look):
                raise ValueError(f"{look!r} is not {BITS // 4} hex digits")
            if split not in ("train", "val"):
                raise ValueError(f"split is {split!r}; it must be train or val")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # what is no UTF-8 is a ValueError
        raise DataError(
            f"{path}: cannot be read ({error}); restore it, or delete it: then near duplicates of the images that the "
            f"network was trained on are not noticed"
        ) from error
    return rows


@cache
def _planes() -> Tensor:
    """torch.float32 (BITS, 32 * 32): the normals of the planes, of -1 and 1."""
    drawn = hashlib.shake_256(b"medmambase looks").digest(BITS * THUMBNAIL**2 // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8).reshape(BITS, -1), axis=1)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


@cache
def _ones() -> npt.NDArray[np.uint8]:
    """(65536,): how many bits of each number are set."""
    return np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


def _packed(found: Collection[str]) -> npt.NDArray[np.uint16]:
    """uint16 (n, BITS / 16): the bits of looks."""
    return np.frombuffer(bytes.fromhex("".join(found)), np.uint16).reshape(len(found), BITS // 16)
