"""Find images, their classes and their splits in a folder.

Layouts: ``root/train|val|test/<class>/**`` or ``root/<class>/**``. The person's files are only ever
read.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medmambase.data.manifest.labels import Label
from medmambase.data.reading.images import ImageError, is_dicom, unlisted
from medmambase.plural import count_of
from medmambase.run_folder import CROSSVAL, DESCRIPTION, HISTORY, LOG, PARTS

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".pgm",
    ".ppm", ".pbm", ".pnm", ".pfm",
     ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".dcm", ".dicom"}
)  # fmt: skip  # by format
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# Folders that archivers and network disks leave behind: they hold resource forks and thumbnails
# that look like images.
_LITTER = frozenset({"__macosx", "@eadir"})
_RUN_FILES = (
    frozenset({DESCRIPTION, HISTORY, LOG}),
    frozenset({CROSSVAL, PARTS}),
)  # what tells the folder of a run, and that of a cross-validation
_UNTEXT = re.compile("[\ud800-\udfff]")  # how Python shows the bytes of a file name that are no UTF-8


class DataError(Exception):
    """Data that cannot be trained on: the message names it and says what to do."""


@dataclass(frozen=True)
class Sample:
    """One image. ``label`` indexes the classes, or answers for each whether the image has it;
    ``split`` is train, val or test; ``name`` is the path below the root, with slashes.
    ``patient`` is "" where nobody said whose image it is; ``row`` is the image's place in a file
    that holds many, else None, and ``frame`` that of a frame which was chosen, from 0.
    """

    path: Path
    label: Label
    split: str
    name: str
    patient: str = ""
    row: int | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Every image of a source, in the order of the names; ``notes`` are one line each.

    ``classes`` are sorted as the folders of train are, or stand in the order that a published set
    gives them. ``method``: how the splits came about. ``unlisted``: folders among the images whose
    files cannot be listed. ``multi_label``: each image has any number of the classes.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    method: str = ""
    unlisted: tuple[ImageError, ...] = ()
    multi_label: bool = False

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of "train", "val" or "test"; empty where there is none."""
        return tuple(sample for sample in self.samples if sample.split == name)


def scan_folder(root: Path, runs: Path | None = None) -> Manifest:
    """Find the images below ``root`` with their class and, where the folders name one, their split;
    the others are in train.

    ``valid``, ``validation``, ``training`` and ``testing`` are understood, in any case.
    Pictures of earlier trainings are no data: ``runs``, the folder that new runs go to, and
    whatever is the folder of a run are left out.
    Raises DataError for a folder that cannot be trained on.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(
            f"{root}: there is no such folder; give the folder that holds train/, val/ and test/, or one folder for "
            f"each class"
        )
    if not root.is_dir():
        raise DataError(
            f"{root}: this is a file; give the folder that holds train/, val/ and test/, or one folder for each class"
        )
    notes: list[str] = []
    closed: list[ImageError] = []
    past = _PastRuns(root, runs)
    split_folders = _split_folders(root, notes, past)
    found = {split: _classes_in(root, folder, notes, closed, past) for split, folder in split_folders.items()}
    if past.met:
        notes.append(
            f"left out, since runs of earlier trainings lie there: "
            f"{', '.join(path.relative_to(root).as_posix() for path in past.met)}"
        )
    train = found["train"]
    classes = tuple(sorted(name for name, paths in train.items() if paths))
    if not any(found.values()):
        if loose := [path for folder in split_folders.values() for path in _loose(folder)]:
            lie = count_of(len(loose), "image lies", "images lie")
            raise DataError(
                f"{root}: {lie} there in no class folder, such as {loose[0].name}; put the images of each class into a "
                f"folder of its own, or give a CSV (path,label); medmambase-pretrain learns from images without classes"
            )
        raise DataError(
            f"{root}: no images found; put them in one folder for each class (png, jpg, bmp, gif, tif, webp, pgm, "
            f"jp2, dcm are read)"
        )
    if len(classes) == 1 and any(
        child.name.casefold() in SPLIT_NAMES for child in _subfolders(split_folders["train"] / classes[0])
    ):
        raise DataError(
            f"{root}: only one class found, {classes[0]!r}; give {split_folders['train'] / classes[0]} instead"
        )
    if len(classes) == 1 and (loose := _loose(split_folders["train"])):
        raise DataError(
            f"{root}: only one class folder found, {classes[0]!r}, and {count_of(len(loose), 'image')} directly in "
            f"{split_folders['train'].name}/, such as {loose[0].name}; put each class into a folder of its own"
        )
    check_classes(root, {split: folders.keys() for split, folders in found.items()})

    samples = [
        Sample(path, classes.index(name), split, path.relative_to(root).as_posix())
        for split, folders in found.items()
        for name, paths in folders.items()
        for path in paths
    ]
    samples.sort(key=lambda sample: sample.name)
    return Manifest(root, classes, tuple(samples), tuple(notes), unlisted=tuple(closed))


def list_unlabelled(root: Path, runs: Path | None = None) -> Manifest:
    """Find the images below ``root`` at any depth, whatever their folders are called, without
    classes. Where there is a folder ``train``, those of ``val`` and ``test`` have these splits; all
    others are in train. Pictures of earlier trainings are no data, as in ``scan_folder``.

    Raises DataError where there is none.
    """
    past = _PastRuns(root, runs)
    paths, met, closed = _images(root, past)
    splits = {folder.name: SPLIT_NAMES.get(folder.name.casefold(), "train") for folder in _subfolders(root)}
    divided = any(SPLIT_NAMES.get(name.casefold()) == "train" for name in splits)
    if not paths:
        raise DataError(f"{root}: no images found (png, jpg, bmp, gif, tif, webp, pgm, jp2, dcm are read)")
    notes = (f"left out, since runs of earlier trainings lie there: {', '.join(path.name for path in met)}",)
    samples = []
    for path in paths:
        within = path.relative_to(root)
        split = splits.get(within.parts[0], "train") if divided else "train"
        samples.append(Sample(path, 0, split, within.as_posix()))
    samples.sort(key=lambda sample: sample.name)
    return Manifest(root, (), tuple(samples), notes if met else (), unlisted=tuple(closed))


def check_classes(root: Path, found: Mapping[str, Collection[str]]) -> None:
    """Raise DataError where train lacks a class that another split has, or has only one. ``found``:
    split -> the classes that it has images of."""
    train = sorted(found.get("train", ()))
    if not train:
        raise DataError(f"{root}: there are no training images; put some into train, in one folder for each class")
    for split, names in found.items():
        for name in sorted(set(names) - set(train)):
            near = difflib.get_close_matches(name.casefold(), [known.casefold() for known in train], n=1, cutoff=0)[0]
            nearest = next(known for known in train if known.casefold() == near)
            raise DataError(
                f"{root}: {split} has class {name!r} but train has no images of it; the nearest name in train is "
                f"{nearest!r}: rename the class, "
                "or add images to train"
            )
    if len(train) == 1:
        raise DataError(f"{root}: only one class found, {train[0]!r}; a classifier needs at least two with images")


class _PastRuns:
    """Folders of earlier trainings among the data, which hold pictures that look like images of a
    class; ``met`` are those left out."""

    def __init__(self, root: Path, runs: Path | None) -> None:
        inside = runs is not None and runs.resolve().is_relative_to(root.resolve())
        self.runs = root / runs.resolve().relative_to(root.resolve()) if runs is not None and inside else None
        self.met: list[Path] = []

    def begin_at(self, folder: Path, files: Sequence[str]) -> bool:
        """Whether nothing from ``folder`` on is data. A folder of images stays one, even if a
        person has new runs put into it."""
        ours = any(names <= set(files) for names in _RUN_FILES)
        return ours or (folder == self.runs and not any(map(_is_image, files)))

    def are_in(self, folder: Path) -> bool:
        """The same for a folder that need not be walked: whether it is a run or the runs' folder,
        or has a run in it."""
        with suppress(OSError):  # of one that cannot be listed nobody knows
            return folder == self.runs or any(
                all((inner / name).is_file() for name in names)
                for names in _RUN_FILES
                for inner in (folder, *_listed(folder))
            )
        return False


def _split_folders(root: Path, notes: list[str], past: _PastRuns) -> dict[str, Path]:
    """Which folder is train, val and test; without any such folder the root itself is train."""
    folders = _subfolders(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.casefold())
        if split in splits:
            raise DataError(f"{root}: {splits[split].name}/ and {folder.name}/ both mean {split}; keep one of them")
        if split is not None:
            splits[split] = folder
    if not splits:
        return {"train": root}
    if "train" not in splits:
        raise DataError(
            f"{root}: there is {' and '.join(f.name + '/' for f in splits.values())} but no train/; add train/ with "
            f"one folder for each class"
        )
    others = [folder for folder in folders if folder not in splits.values()]
    past.met += filter(past.are_in, others)
    if ignored := [folder.name for folder in others if folder not in past.met]:
        notes.append(f"ignored beside the splits: {', '.join(ignored)}")
    return splits


def _classes_in(
    root: Path, folder: Path, notes: list[str], closed: list[ImageError], past: _PastRuns
) -> dict[str, list[Path]]:
    """Class name -> its image files at any depth; classes without any are named in a note, and in
    ``closed`` each folder that cannot be listed. Raises DataError where that is all of a class."""
    classes: dict[str, list[Path]] = {}
    empty = []
    for child in _subfolders(folder):
        paths, met, shut = _images(child, past)
        past.met += met if paths else [child] if met else []
        closed += shut
        if paths:
            classes[child.name] = paths
        elif shut:
            raise DataError(f"{shut[0]}, and so is class {child.name!r}; make it readable, or move it out of the data")
        elif not met:
            empty.append(child.name)
    if unspeakable := [name for name in classes if _UNTEXT.search(name)]:
        shown = unspeakable[0].encode("utf-8", "backslashreplace").decode("utf-8")
        raise DataError(
            f"{folder}: the name of class folder '{shown}' is not valid UTF-8, and classes are saved with the "
            f"network; rename the folder"
        )
    where = "" if folder == root else f" in {folder.name}/"
    if empty:
        notes.append(f"no images{where} in class folder {', '.join(empty)}")
    if loose := len(_loose(folder)):
        notes.append(
            f"{count_of(loose, 'image lies', 'images lie')} directly in {folder.name}/, in no class folder: ignored"
        )
    return classes


def _loose(folder: Path) -> list[Path]:
    """The images that lie directly in a folder."""
    return sorted(child for child in folder.iterdir() if _is_image(child.name) and child.is_file())


def _subfolders(folder: Path) -> list[Path]:
    """Folders in a folder. Raises DataError where it cannot be listed."""
    try:
        return _listed(folder)
    except OSError as error:
        raise DataError(f"{unlisted(folder, error)}; make it readable") from error


def _listed(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if _visible(child.name) and child.is_dir())


def _images(folder: Path, past: _PastRuns) -> tuple[list[Path], list[Path], list[ImageError]]:
    """Image files at any depth, the folders of runs that were not entered, and the folders that
    cannot be listed."""
    found: list[Path] = []
    met: list[Path] = []
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append):
        if past.begin_at(Path(parent), files):
            met.append(Path(parent))
            folders.clear()
            continue
        folders[:] = [name for name in folders if _visible(name)]
        found += [
            path for path in (Path(parent, name) for name in files) if _is_image(path.name) or _is_bare_dicom(path)
        ]
    return found, met, [unlisted(Path(error.filename), error) for error in closed]


def image_files(folder: Path) -> Iterator[Path]:
    """Yield every image file at any depth, sorted by folder; only the names of one folder at a time
    are kept. A single file yields itself, and so does a folder that cannot be listed: whoever reads
    it is told."""
    if not folder.is_dir():
        yield folder
        return
    closed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=closed.append):
        yield from (Path(error.filename) for error in closed)
        closed.clear()
        folders[:] = sorted(name for name in folders if _visible(name))
        yield from (
            path
            for path in (Path(parent, name) for name in sorted(files))
            if _is_image(path.name) or _is_bare_dicom(path)
        )
    yield from (Path(error.filename) for error in closed)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _LITTER


def _is_bare_dicom(path: Path) -> bool:
    """Whether it is one of the files that scanners write without any suffix, or may be one: a file
    that cannot be opened counts, so that whoever reads it is told."""
    try:
        return not path.suffix and _visible(path.name) and is_dicom(path)
    except PermissionError:
        return path.is_file()
    except OSError:
        return False


def _is_image(name: str) -> bool:
    return _visible(name) and Path(name).suffix.casefold() in SUFFIXES
