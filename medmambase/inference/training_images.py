"""Recognise an image that a network has learned from, or one that is nearly the same: what is said
of it says nothing about new images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from medmambase.data.looks import Known
from medmambase.data.reading.images import Facts
from medmambase.inference.held_out import ALIKE, columns_of, looks_of
from medmambase.lines import one_line
from medmambase.run_folder import IMAGES, LAST, folds_of

_KINDS = {"train": "a training image", "val": "a validation image"}


class Duplicate(NamedTuple):
    """What an image is, such as "nearly the same as a training image", and the ``name`` of that
    image, in one line."""

    what: str
    name: str


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """The images in train and val of a run, or of all folds of a cross-validation: split and name
    of each by the digest of its ``pixels``, and how they look."""

    pixels: Mapping[str, tuple[str, str]]
    looks: Known

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """Read those of a run; None where it has not kept how they look. Raises DataError for a
        damaged file."""
        runs = folds_of(run) or (run,)
        if (looks := looks_of(runs)) is None:
            return None
        rows = [row for one in runs for row in columns_of(one / LAST / IMAGES, ("pixels", "split", "name"))]
        rows = sorted((row for row in rows if row[0] and row[1] in _KINDS), key=lambda row: row[1] == "train")
        return cls({digest: (split, name) for digest, split, name in rows}, looks)

    def duplicate(self, facts: Facts) -> Duplicate | None:
        """Return of which of them an image is a duplicate; None where of none."""
        if (same := self.pixels.get(facts.digest)) is not None:
            return _duplicate("the same pixels as", *same)
        if alike := self.looks.nearest([facts]):
            return _duplicate(ALIKE, *alike[0])
        return None


def _duplicate(how: str, split: str, name: str) -> Duplicate:
    return Duplicate(f"{how} {_KINDS[split]}", one_line(name))
