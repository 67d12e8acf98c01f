"""Find duplicate images, duplicates with different labels, and patients in two splits.

Two pictures are duplicates if their pixels are equal at full size, or if what is left of their
thumbnails (32 x 32, the same whatever size a network asks for) after taking away the brightness
around each pixel (so the shape of the fan, which all pictures of a probe share, counts little)
correlates by at least 0.94. Measured, at various sizes: a picture and itself resized to 50-200 %,
0.7 or 1.3 times as bright, 40 levels brighter, at gamma 0.7 or 1.4, or as a JPEG of quality 50
reach 0.944 to 1.000 on drawn images and lung ultrasound; the nearest of different pictures 0.87 on
2,004 drawn ones and 0.92 on 5,856 chest radiographs of 28 pixels. Of such tiny pictures some
duplicates are missed (0.885 at half the size); so are pictures that are mirrored, turned or cut.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import SPLITS, Manifest
from medmambase.data.manifest.labels import in_words
from medmambase.data.manifest.splits import describe_leaks, overlap
from medmambase.data.reading.fitted import THUMBNAIL, of_thumbnails
from medmambase.data.reading.images import Facts
from medmambase.plural import count_of

ALIKE = 0.94
_AROUND = 4  # pixels of a thumbnail: how far "around" reaches
_FLAT = 1.0  # grey levels: a picture with less in it has nothing to be known by
_BLOCK = 1024
_MOST_LINES = 10
KINDS = {
    "exact": ("group of exact duplicates", "groups of exact duplicates"),
    "near": ("group of near duplicates", "groups of near duplicates"),
    "across": ("pair of duplicates in different splits", "pairs of duplicates in different splits"),
    "conflicts": ("pair of duplicates of different classes", "pairs of duplicates of different classes"),
    "patients": ("patient in two splits", "patients in two splits"),
    "seen": (
        "image of val or test that the starting weights have learned from",
        "images of val or test that the starting weights have learned from",
    ),
}  # a kind of finding -> one of it, several
_MOST_SIZES = 12
_EIGHT_BITS = ("1", "L", "P", "PA", "CMYK", "YCbCr")  # modes of which no file has more


@dataclass(frozen=True)
class Duplicate:
    """A pair of images that are identical or nearly so: their names, splits, classes and
    correlation."""

    names: tuple[str, str]
    splits: tuple[str, str]
    classes: tuple[str, str]
    likeness: float
    exact: bool

    def line(self) -> str:
        """The pair in one line of text."""
        one, other = (
            f"{name} ({split}, {label})"
            for name, split, label in zip(self.names, self.splits, self.classes, strict=True)
        )
        return f"{one} and {other}: {'the same pixels' if self.exact else f'correlation {self.likeness:.3f}'}"


@dataclass(frozen=True)
class Audit:
    """What was found. ``exact``: groups of names whose pixels are equal. ``near``: groups linked by
    likeness, of more than one content.

    ``across``: duplicates in different splits; ``conflicts``: duplicates of different classes; of a
    group one pair for each two splits, or classes. ``patients`` who are in two splits -> split ->
    images. ``leaked``: the test images that have a duplicate, or images of their patient, in train
    or val. ``sizes``, ``modes``: files by what they were before they were made to fit. ``seen``:
    images of val and test that the weights to start from have learned from.
    """

    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    across: tuple[Duplicate, ...]
    conflicts: tuple[Duplicate, ...]
    patients: dict[str, Counter[str]]
    leaked: frozenset[str]
    sizes: Counter[str]
    modes: Counter[str]
    seen: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The findings as text, one a line, the worst first; empty if there are none."""
        found: list[str] = []
        if self.seen:
            shown = ", ".join(self.seen[:_MOST_LINES]) + (", ..." if len(self.seen) > _MOST_LINES else "")
            found.append(f"images of val or test that the starting weights have learned from: {shown}")
        if self.patients:
            found.append(f"patients in two splits: {describe_leaks(self.patients)}")
        for kind, pairs in (
            ("duplicates of different classes", self.conflicts),
            ("duplicates in different splits", self.across),
        ):
            found += [f"{kind}: {pair.line()}" for pair in pairs[:_MOST_LINES]]
            if len(pairs) > _MOST_LINES:
                found.append(f"{kind}: {len(pairs) - _MOST_LINES} more")
        groups = (*self.exact, *self.near)
        if groups:
            images = count_of(len({name for group in groups for name in group}), "image")
            harmless = "" if self.across or self.conflicts else ", each in one split and of one class"
            found.append(f"duplicates in all: {images} in {count_of(len(groups), 'group')}{harmless}")
        return found

    def counted(self) -> str:
        """Return how many findings there are of each kind, in words; "" where there are none."""
        return counted({kind: getattr(self, kind) for kind in KINDS})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values, every finding included."""
        return {
            "findings": self.lines(), "exact": [list(group) for group in self.exact],
            "near": [list(group) for group in self.near], "across": [asdict(pair) for pair in self.across],
            "conflicts": [asdict(pair) for pair in self.conflicts],
            "patients": {patient: dict(splits) for patient, splits in self.patients.items()},
            "leaked": sorted(self.leaked), "seen": list(self.seen), "sizes": dict(self.sizes.most_common(_MOST_SIZES)),
            "other_sizes": sum(count for _, count in self.sizes.most_common()[_MOST_SIZES:]),
            "modes": dict(self.modes.most_common()),
        }  # fmt: skip  # the file's content


def counted(found: Mapping[str, Collection[object]]) -> str:
    """Return how many there are of each kind of finding, in words; "" where there are none.
    ``found``: those of ``Audit.to_dict`` that have a name in KINDS."""
    return ", ".join(
        f"{len(found[kind])} {one if len(found[kind]) == 1 else many}"
        for kind, (one, many) in KINDS.items()
        if found.get(kind)
    )


def duplicate_groups(facts: Sequence[Facts]) -> list[list[int]]:
    """Return the rows of each group of duplicates: images that are linked, exactly or nearly,
    directly or through others."""
    contents, links = _compared(facts)
    links += [(i, i, 1.0) for i, rows in enumerate(contents) if len(rows) > 1]
    return _rows_of(contents, links)


def audit(images: ImageSet, manifest: Manifest, seen: Collection[str] = ()) -> Audit:
    """Look for duplicates among decoded images, for patients in two splits, and for images of val
    and test among those, known by their digests, that other weights have ``seen``. Time and memory
    for the comparison grow with the square of the number of images: 12,400 take seconds."""
    contents, links = _compared(images.facts)
    look = _Look(images, manifest.classes)
    # Frames of one file resemble each other, and stay together anyway.
    same = [rows for rows in contents if len(rows) > 1 and not look.of_one_file(rows)]
    links = [link for link in links if not look.of_one_file([*contents[link[0]], *contents[link[1]]])]
    across, conflicts, leaked = [], [], set[int]()
    pairs: Iterable[tuple[Sequence[int], Sequence[int], float, bool]] = [(rows, rows, 1.0, True) for rows in same]
    for one, other, likeness, exact in [
        *pairs,
        *((contents[i], contents[j], likeness, False) for i, j, likeness in links),
    ]:
        across += look.pairs(one, other, look.splits, likeness, exact)
        conflicts += look.pairs(one, other, look.labels, likeness, exact)
        for here, there in ((one, other), (other, one)):
            if any(look.splits[row] != "test" for row in there):
                leaked.update(row for row in here if look.splits[row] == "test")
    known = [sample.patient or facts.patient for sample, facts in zip(images.samples, images.facts, strict=True)]
    patients = overlap(zip(known, look.splits, strict=True))
    leaked.update(row for row, patient in enumerate(known) if patient in patients and look.splits[row] == "test")
    near = _rows_of(contents, links)

    def worst(pair: Duplicate) -> tuple[bool, float, tuple[str, str]]:
        return "test" not in pair.splits, -pair.likeness, pair.names

    return Audit(
        look.names(same), look.names(near), tuple(sorted(across, key=worst)), tuple(sorted(conflicts, key=worst)),
        patients, frozenset(images.samples[row].name for row in leaked),
        Counter(f"{facts.width} x {facts.height}" for facts in images.facts),
        Counter(facts.mode for facts in images.facts), _met(images, frozenset(seen)),
    )  # fmt: skip  # in the order of the fields


def seen_otherwise(
    images: ImageSet,
    preprocessing: Preprocessing,
    seen: Collection[str],
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> set[str]:
    """Return the names of images whose digests, read with the other ``high_depth``, are ``seen``.

    A digest is that of 8-bit pixels, and those of a file of 16 bits, or of floats, depend on how it
    was read. ``preprocessing``: as these were read; those that may have more than 8 bits are
    decoded again, and not kept. ``progress(results, total)`` may wrap that.
    """
    deep = [
        sample
        for sample, facts in zip(images.samples, images.facts, strict=True)
        if facts.mode not in _EIGHT_BITS and facts.digest not in seen
    ]
    if not (deep and seen):
        return set()
    by_range = preprocessing.high_depth == "percentile"
    other = replace(preprocessing, high_depth="range" if by_range else "percentile")
    again, _ = decode(deep, other, progress, keep=False)
    return {sample.name for sample, facts in zip(again.samples, again.facts, strict=True) if facts.digest in seen}


def _met(images: ImageSet, seen: frozenset[str]) -> tuple[str, ...]:
    """The names of images of val and test whose contents are among those seen; nobody is to be
    tested on, or chosen by, what the weights began with."""
    rows = zip(images.samples, images.facts, strict=True)
    return tuple(sorted(sample.name for sample, facts in rows if sample.split != "train" and facts.digest in seen))


class _Look:
    """Rows to what a person knows them by."""

    def __init__(self, images: ImageSet, classes: Sequence[str]) -> None:
        self.samples, self.classes = images.samples, classes
        self.splits, self.labels = (
            [sample.split for sample in images.samples],
            [sample.label for sample in images.samples],
        )

    def of_one_file(self, rows: Sequence[int]) -> bool:
        """Whether these are frames of a single file."""
        frames = all(self.samples[row].frame is not None for row in rows)
        return frames and len({self.samples[row].path for row in rows}) == 1

    def names(self, groups: Iterable[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(sorted(tuple(sorted(self.samples[row].name for row in group)) for group in groups))

    def pairs(
        self, one: Sequence[int], other: Sequence[int], kinds: Sequence[object], likeness: float, exact: bool
    ) -> list[Duplicate]:
        """Of two contents one pair for each two different ``kinds`` of row, and kind by kind the
        same in any order of the rows."""
        first, second = (
            {kinds[row]: row for row in sorted(rows, key=lambda row: self.samples[row].name, reverse=True)}
            for rows in (one, other)
        )
        chosen = combinations(first.values(), 2) if exact else product(first.values(), second.values())
        return [self._duplicate(*pair, likeness, exact) for pair in chosen if kinds[pair[0]] != kinds[pair[1]]]

    def _duplicate(self, one: int, other: int, likeness: float, exact: bool) -> Duplicate:
        place = {split: number for number, split in enumerate(SPLITS)}
        rows = sorted((one, other), key=lambda row: (place[self.splits[row]], self.samples[row].name))
        a, b = (self.samples[row] for row in rows)
        return Duplicate(
            (a.name, b.name), (a.split, b.split),
            (in_words(self.classes, a.label), in_words(self.classes, b.label)), likeness, exact,
        )  # fmt: skip  # in the order of the fields


def _compared(facts: Sequence[Facts]) -> tuple[list[list[int]], list[tuple[int, int, float]]]:
    """The rows of each content, and each two contents that are alike, by how much."""
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(facts):
        rows_of[one.digest].append(row)
    contents = list(rows_of.values())
    return contents, list(_alike(details([facts[rows[0]].thumbnail for rows in contents])))


def _rows_of(contents: Sequence[Sequence[int]], links: Iterable[tuple[int, int, float]]) -> list[list[int]]:
    """The rows of what is linked, directly or through others."""
    return [sorted(row for content in group for row in contents[content]) for group in _groups(len(contents), links)]


def details(thumbnails: list[bytes]) -> Tensor:
    """Return what the surroundings of each pixel of a thumbnail do not tell, torch.float32 (n, 32 *
    32), each of length 1; zeros where there is nothing."""
    found = []
    for place in range(0, len(thumbnails), _BLOCK):
        small = torch.from_numpy(of_thumbnails(thumbnails[place : place + _BLOCK]))[:, None]
        around = F.avg_pool2d(F.pad(small, (_AROUND,) * 4, mode="replicate"), 2 * _AROUND + 1, 1)
        detail = (small - around).flatten(1)
        detail = detail - detail.mean(1, keepdim=True)
        length = detail.norm(dim=1, keepdim=True)
        found.append(torch.where(length > _FLAT * THUMBNAIL, detail / length, 0.0))
    return torch.cat(found) if found else torch.zeros(0, THUMBNAIL**2)


def _alike(details: Tensor) -> Iterator[tuple[int, int, float]]:
    """Each two that are alike, and by how much."""
    for place in range(0, len(details), _BLOCK):
        likeness = details[place : place + _BLOCK] @ details[place:].t()
        for i, j in (likeness >= ALIKE).nonzero().tolist():
            if i < j:
                yield place + i, place + j, min(1.0, round(likeness[i, j].item(), 4))


def _groups(count: int, links: Iterable[tuple[int, int, float]]) -> list[list[int]]:
    """What is linked, directly or through others."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array([(i, j) for i, j, _ in links], dtype=np.int64).reshape(-1, 2)
    if not len(ends):
        return []
    _, group_of = connected_components(
        coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count)), directed=False
    )
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for content in sorted(set(ends.ravel().tolist())):
        groups[int(group_of[content])].append(content)
    return list(groups.values())
