"""Find images of other data on which a trained network can be tested, and those that it has seen
before."""

import csv
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from medmambase.data.audit import seen_otherwise
from medmambase.data.decoded.image_set import ImageSet, Progress, clips, decode, modalities
from medmambase.data.looks import Known
from medmambase.data.manifest.class_names import advice
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.labels import classes_in, in_words
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.data.reading.images import ImageError
from medmambase.files import as_written
from medmambase.model.classifier import Classifier
from medmambase.model.starting import lost_origin, read_origin
from medmambase.plural import count_of
from medmambase.run_folder import IMAGES, LAST, LOOKS, PRIVATE, SPLITS, START, folds_of, setting_of
from medmambase.tables import of_cell

_MOST_NAMES = 5
ALIKE = "nearly the same as"


@dataclass(frozen=True)
class Examination:
    """Images to test on, the names of those that a network, or the weights it started from, was
    trained or selected on (or whose patient was, or a near duplicate), unreadable files, and notes
    of one line each."""

    images: ImageSet
    seen: frozenset[str]
    bad: tuple[ImageError, ...]
    notes: tuple[str, ...]


def examine(
    run: Path, network: Classifier, found: Manifest, progress: Progress, class_names: str | None = None
) -> Examination:
    """Decode the images of ``found`` to test on: its own test split; without one all of them, but
    where the run has learned from all others only those that were its test images (of a
    cross-validation those of all folds). ``class_names``: how the classes of ``found`` were renamed
    already.

    Raises DataError for a class that the network does not know, where there is no image, and where
    a file that tells what the network has seen is damaged; WeightsError where that is the one which
    tells what it started from.
    """
    runs = folds_of(run) or (run,)
    kept = Pseudonyms.of_run(runs[0])  # all folds have the same
    called = kept or Pseudonyms.new()
    found = called.of_manifest(found)
    if found.multi_label != network.task.multi_label:
        here, was = ("several classes", "one class") if found.multi_label else ("one class", "several classes")
        raise DataError(
            f"{found.root}: has {here} an image, and the network was trained on {was} an image; give images that are "
            f"labelled as those were"
        )
    if found.multi_label:
        found = _in_order_of(network, found)
    samples, which = found.samples, "all images"
    if any(sample.split == "test" for sample in samples):
        samples, which = found.split("test"), "its test split"
    number = {name: index for index, name in enumerate(network.classes)}
    if not found.multi_label and (
        unknown := sorted({found.classes[i] for s in samples for i in classes_in(s.label)} - number.keys())
    ):
        trained_with = setting_of(runs[0], "class_names")
        raise DataError(
            f"{found.root}: the network does not know class {unknown[0]!r}; it knows "
            f"{', '.join(map(repr, network.classes))}; "
            f"{advice(found, unknown, network.classes, class_names, trained_with)}, or leave out the class"
        )
    if not found.multi_label:
        samples = tuple(replace(s, label=number[in_words(found.classes, s.label)]) for s in samples)
    samples = tuple(replace(sample, split="test") for sample in samples)
    images, bad = decode(
        samples, network.preprocessing, lambda results, total: progress(results, total, "reading images")
    )
    images = replace(images, facts=called.of_facts(images.facts))
    if not len(images.labels):
        raise DataError(f"{found.root}: no image to test the network on{f'; {bad[0]}' if bad else ''}")
    learned = [learned_from(one) for one in runs]
    pixels, patients = (set[str]().union(*of_runs) for of_runs in zip(*learned, strict=True))
    if which == "all images" and (own := _own_test_images(runs, images, pixels)):
        images, which = (
            images.rows(own),
            "the images that were this run's test images, as it has learned from all others",
        )
    seen = frozenset(
        sample.name
        for sample, facts in zip(images.samples, images.facts, strict=True)
        if facts.digest in pixels or (sample.patient or facts.patient) in patients
    )
    at_start = {digest for one in runs if (origin := read_origin(one)) for digest in origin.seen}
    seen |= seen_otherwise(
        images, network.preprocessing, at_start, lambda results, total: progress(results, total, "comparing")
    )
    known = looks_of(runs)
    alike = {
        images.samples[row].name: path
        for row, (_, path) in (known.nearest(images.facts) if known else {}).items()
        if images.samples[row].name not in seen
    }
    notes = [
        f"tested on {which}: {count_of(len(images.labels), 'image')}",
        *found.notes,
        *modalities(images),
        *clips(images),
    ]
    if which == "all images" and pixels:
        notes.append(
            f"there is no {LOOKS}, so an image that the run has learned from is known by its pixels alone: one that "
            f"was resized, or saved again with losses, counts as new"
            if known is None
            else "an image that the run has learned from is also known where it was resized, made brighter or saved "
            "again; one that was mirrored, turned or cut counts as new"
        )
    if kept is None:
        notes.append(
            f"without {PRIVATE} the run cannot tell whether a patient of these images was in train or val, because "
            f"its files know patients by pseudonyms only"
        )
    notes += [
        f"{path} is not there, so it is not known {what}"
        for one in runs
        for path, what in (
            (one / LAST / IMAGES, "which of these images were in train or val"),
            (one / SPLITS, "whether a patient of these images was in train or val"),
        )
        if not path.is_file()
    ]
    notes += [
        f"{one / START} is not there, so it is not known which of these images its starting weights have learned from"
        for one in runs
        if lost_origin(one)
    ]
    if seen:
        also = ", or the pixels of one that its starting weights have seen" if any(map(read_origin, runs)) else ""
        notes.append(
            f"{count_of(len(seen), 'of these images has', 'of these images have')} the same pixels, or the same "
            f"patient, as an image in train or val{also}: results are given with and without such images"
        )
    if alike:
        named = "; ".join(f"{name}: {path}" for name, path in sorted(alike.items())[:_MOST_NAMES])
        notes.append(
            f"{count_of(len(alike), 'of these images is', 'of these images are')} {ALIKE} an image in train or val, as "
            f"after resizing, brightening or saving again ({named}{'; ...' if len(alike) > _MOST_NAMES else ''}): "
            f"results are given with and without such images"
        )
    return Examination(images, seen.union(alike), (*found.unlisted, *bad), tuple(notes))


def _in_order_of(network: Classifier, found: Manifest) -> Manifest:
    """The same images with their answers in the order of the network's classes. Raises DataError
    where the data have others."""
    for names, others, who in (
        (network.classes, found.classes, "the network knows class"),
        (found.classes, network.classes, "the network does not know class"),
    ):
        if missing := [name for name in names if name not in others]:
            raise DataError(
                f"{found.root}: {who} {missing[0]!r}, and the images are labelled with {', '.join(found.classes)}; the "
                f"network wants an answer for {', '.join(network.classes)}: name these columns with --labels"
            )
    columns = [found.classes.index(name) for name in network.classes]
    samples = (
        replace(s, label=tuple(s.label[column] for column in columns)) if isinstance(s.label, tuple) else s
        for s in found.samples
    )
    return replace(found, samples=tuple(samples), classes=network.classes)


def _own_test_images(runs: Sequence[Path], images: ImageSet, pixels: Set[str]) -> list[int]:
    """Return which of the images were the runs' test images, where the runs have learned from all
    others; else none, since images of other data may have the same names, and new ones may lie
    among them. ``pixels``: of the images that the runs have learned from."""
    tests = set.intersection(*(rows_of(one / SPLITS, "path", {"split": "test"}) for one in runs))
    own = [row for row, sample in enumerate(images.samples) if as_written(sample.name) in tests]
    others = {images.facts[row].digest for row in set(range(len(images.samples))).difference(own)}
    return own if others <= pixels else []


def learned_from(run: Path) -> tuple[set[str], set[str]]:
    """Return what tells the images in a run's train and val: their pixels, as a hash, and their
    patients, as the files of the run call them. Among the pixels are those that the weights it
    started from had learned from. Raises DataError or WeightsError for a damaged file."""
    pixels, patients = (
        rows_of(path, column, {"split": "train"}) | rows_of(path, column, {"split": "val"})
        for path, column in ((run / LAST / IMAGES, "pixels"), (run / SPLITS, "patient"))
    )
    origin = read_origin(run)
    return (pixels - {""}).union(origin.seen if origin else ()), patients - {""}


def looks_of(runs: Sequence[Path]) -> Known | None:
    """Return how all images in train and val of these runs look; None where one has lost, or never
    had, the list of them. Raises DataError for a damaged file."""
    files = [run / LOOKS for run in runs]
    return Known.read(files) if all(file.is_file() for file in files) else None


def rows_of(path: Path, column: str, where: dict[str, str]) -> set[str]:
    """Return the values of a column in a CSV file of a run, for rows that match; an empty set
    without that file. Raises DataError where it is damaged."""
    return {value for value, *others in columns_of(path, (column, *where)) if others == [*where.values()]}


def columns_of(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return columns of a CSV file of a run, row by row, "" where there is nothing; no rows without
    that file. Raises DataError where it is damaged."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [tuple(of_cell(row.get(name) or "") for name in columns) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); restore it: it tells which images the network was trained on"
        ) from error
