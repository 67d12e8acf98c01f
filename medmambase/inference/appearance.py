"""Notice images that look unlike those that a network was chosen on.

Compared are DICOM's modality, how much colour an image has, and the share of its thumbnail's pixels
at each of 16 grey levels, against the mean of the validation images: the distance is half the sum
of the differences, from 0 to 1, and one further away than any of them, by a quarter and 0.05, is
unlike them. An image without a note may be wrong all the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field, StrictFloat, StrictInt, with_config

from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.fitted import of_thumbnails
from medmambase.data.reading.images import Facts
from medmambase.files import read_json
from medmambase.validation import PART, check

FEWEST = 10  # images from which it is known what grey levels are usual
LEVELS = 16
_MORE_COLOUR = 0.1


@with_config(PART)
@dataclass(frozen=True)
class Appearance:
    """What so many ``images`` look like: ``modalities`` of those that are DICOM files, the largest
    ``colour``, mean ``levels`` of grey, and the largest ``distance`` from these."""

    images: Annotated[StrictInt, Field(ge=1, lt=2**63)]
    modalities: dict[str, StrictInt]
    colour: StrictFloat
    levels: tuple[StrictFloat, ...]
    distance: StrictFloat

    @classmethod
    def of(cls, facts: Sequence[Facts]) -> Self:
        """Return that of these images, at least one."""
        levels = _levels(facts)
        mean = levels.mean(axis=0)
        furthest = float((abs(levels - mean).sum(axis=1) / 2).max())
        modalities = Counter(one.modality for one in facts if one.modality)
        return cls(
            len(facts), dict(sorted(modalities.items())), max(one.colour for one in facts),
            tuple(round(share, 6) for share in mean.tolist()), round(furthest, 6),
        )  # fmt: skip  # in the order of the fields

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """Return that of the images of all parts together, at least one. No image is further from
        their mean than its part's distance and the way from that part's mean to theirs."""
        images = sum(one.images for one in parts)
        weights = np.array([one.images for one in parts]) / images
        mean = weights @ np.array([one.levels for one in parts])
        ways = abs(np.array([one.levels for one in parts]) - mean).sum(axis=1) / 2
        modalities = sum((Counter(one.modalities) for one in parts), Counter[str]())
        return cls(
            images, dict(sorted(modalities.items())), max(one.colour for one in parts),
            tuple(round(share, 6) for share in mean.tolist()),
            round(max(one.distance + way for one, way in zip(parts, ways.tolist(), strict=True)), 6),
        )  # fmt: skip  # in the order of the fields

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what ``to_dict`` was written to; None where there is no such file. Raises
        DataError."""
        try:
            values = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it, and images get no notes") from error
        found = cast(Self, check(f"{path}: appearance", values, cls, DataError))
        if len(found.levels) != LEVELS:
            raise DataError(
                f"{path}: levels are {len(found.levels)}; wanted {LEVELS}; delete it, and images get no notes"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values."""
        return asdict(self)

    def note(self, facts: Facts, grey: bool = True) -> str:
        """Return how an image is unlike these, in words; "" where it is not. ``grey``: whether its
        grey levels are looked at; not where ``unlike.py`` does, which would say something else."""
        notes = []
        if facts.modality and self.modalities and facts.modality not in self.modalities:
            notes.append(f"modality {facts.modality}, not {' or '.join(self.modalities)}")
        if facts.colour > self.colour + _MORE_COLOUR:
            notes.append("more colour than the validation images")
        away = float(abs(_levels([facts])[0] - np.array(self.levels)).sum() / 2) if grey else 0.0
        if self.images >= FEWEST and away > 1.25 * self.distance + 0.05:
            notes.append("grey levels unlike those of the validation images")
        return "; ".join(notes)


def _levels(facts: Sequence[Facts]) -> npt.NDArray[np.float64]:
    """(n, LEVELS): the share of each image's pixels at each level."""
    pictures = of_thumbnails([one.thumbnail for one in facts]).reshape(len(facts), -1)
    places = np.minimum((pictures * (LEVELS / 256)).astype(np.int64), LEVELS - 1)
    counts = np.apply_along_axis(np.bincount, 1, places, minlength=LEVELS)
    shares: npt.NDArray[np.float64] = counts / pictures.shape[1]
    return shares
