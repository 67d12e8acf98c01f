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
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
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
_BLOCK = 1024


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


def read(path: Path) -> dict[str, str]:
    """Return look -> path of what ``write`` wrote; of equal looks the first path. Raises
    FileNotFoundError, and DataError where the file is damaged."""
    known: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if not _LOOK.fullmatch(look := row["look"]):
                    raise ValueError(f"{look!r} is not {BITS // 4} hex digits")
                known.setdefault(look, of_cell(row["path"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:  # what is no UTF-8 is a ValueError
        raise DataError(
            f"{path}: cannot be read ({error}); restore it: it tells how the images looked that the network was "
            f"trained on"
        ) from error
    return known


def nearest(facts: Sequence[Facts], known: Mapping[str, str]) -> dict[int, str]:
    """Return the rows of pictures that are near duplicates of what is ``known``, and of which: the
    path of the one that looks most like it. ``known``: as ``read`` returns it."""
    rows = [(row, look) for row, look in enumerate(looks(facts)) if look]
    if not (rows and known):
        return {}
    there, paths = _signs(list(known)), list(known.values())
    found: dict[int, str] = {}
    for place in range(0, len(rows), _BLOCK):
        block = rows[place : place + _BLOCK]
        alike, at = (_signs([look for _, look in block]) @ there.t()).max(dim=1)
        for (row, _), product, other in zip(block, alike.tolist(), at.tolist(), strict=True):
            if product >= BITS - 2 * MOST:
                found[row] = paths[other]
    return found


@cache
def _planes() -> Tensor:
    """torch.float32 (BITS, 32 * 32): the normals of the planes, of -1 and 1."""
    drawn = hashlib.shake_256(b"medmambase looks").digest(BITS * THUMBNAIL**2 // 8)
    return _plus_minus(np.frombuffer(drawn, np.uint8).reshape(BITS, -1))


def _signs(found: Sequence[str]) -> Tensor:
    """torch.float32 (n, BITS) of -1 and 1."""
    return _plus_minus(np.frombuffer(bytes.fromhex("".join(found)), np.uint8).reshape(len(found), -1))


def _plus_minus(packed: np.ndarray) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1)
