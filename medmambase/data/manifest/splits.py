"""Divide images into train, val and test where the source does not.

No patient is ever put into two parts. A part is drawn by a hash of seed and name, image by image,
or where patients are known as ``stratify.py`` does it: both depend on the names alone, not on the
order of files, the system or the moment.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import MappingProxyType

from medmambase.data.manifest.folders import SPLITS, DataError, Manifest, Sample
from medmambase.data.manifest.joined import Duplicates, joined
from medmambase.data.manifest.labels import Label, classes_in
from medmambase.data.manifest.multi_label import strata
from medmambase.data.manifest.stratify import stratified_parts
from medmambase.files import write_text
from medmambase.plural import count_of
from medmambase.tables import table

ALLOWED = "test results will be too good; training goes on because of --allow-leak"
_HELD_BACK = 0.15
_DRAWS = 8  # cuts, until one leaves no class out of a split: chance may, where few patients have it
_MOST_NAMES = 5
_TOGETHER = "patient or group of duplicates"  # what is not separated, beside "image" and "patient"


def complete(
    found: Manifest,
    seed: int = 0,
    *,
    folds: int = 0,
    fold: int = 0,
    allow_leak: bool = False,
    duplicates: Duplicates | None = None,
    val_in_turn: bool = False,
) -> Manifest:
    """Give every image a split: what is missing is taken from train, 15 % for val, and 15 % for
    test if there is no val either.

    With ``folds`` the images (of an official test split only the others) are cut into so many
    parts, of which ``fold``, counted from 0, is tested on, or validated on where there is an
    official test split; then, and else, 15 % of the rest are val. ``duplicates`` finds groups of
    images, none of which is then separated, nor are the patients in it. ``val_in_turn``: where no
    patients are known, the val of each fold comes from the test parts of those that follow it, so
    that of three folds or more some learns from every image; else it is nearly the same in all.
    Raises DataError for a patient in two splits, unless ``allow_leak``, and where there is too
    little to share out.
    """
    notes = list(found.notes)
    leaks = overlap((sample.patient, sample.split) for sample in found.samples)
    if leaks and not allow_leak:
        raise DataError(
            f"{found.root}: {describe_leaks(leaks)}: test results would be too good; put each patient into one split, "
            f"or continue with --allow-leak"
        )
    if leaks:
        notes.append(f"{describe_leaks(leaks)}: {ALLOWED}")
    present = {sample.split for sample in found.samples}
    official = "test" in present
    samples, by = found.samples, "patient" if any(sample.patient for sample in found.samples) else "image"
    known = by == "patient"
    with_patient = sum(bool(sample.patient) for sample in found.samples)
    partly = (
        f"patients are known for {with_patient} of {len(found.samples)} images"
        if 0 < with_patient < len(found.samples)
        else ""
    )
    if duplicates and "val" in present and not folds:
        notes.append("the data has its own splits, so --keep-duplicates-together changes nothing")
    elif duplicates:
        pool = [sample for sample in samples if sample.split != "test"]
        groups = duplicates(pool)
        unit_of = joined({sample.name: _patient(sample) for sample in pool}, groups)
        notes.append(_told(groups, unit_of, official))
        if groups:
            samples = tuple(replace(sample, patient=unit_of.get(sample.name, "")) for sample in samples)
            by = _TOGETHER
    if found.multi_label:  # what is divided alike is then no class
        kind_of = strata(samples)
        samples = tuple(replace(sample, label=kind_of[sample.name]) for sample in samples)
    if folds:
        if "val" in present:
            notes.append(
                "the images of the given val split are distributed over the folds, together with those of train"
            )
        target = "val" if official else "test"
        pool = [replace(sample, split="train") for sample in samples if sample.split != "test"]
        parts = _parts(pool, folds, seed, found.root, by)
        samples = _moved(samples, {sample.name: target if parts[sample.name] == fold else "train" for sample in pool})
        held = "the test set" if target == "test" else "the validation set; the test set is the one in the data"
        method = f"fold {fold} of {folds} by {by}, stratified, seed {seed}; this fold is {held}"
        if not official:
            turn = {name: (part - fold) % folds for name, part in parts.items()} if val_in_turn else {}
            samples = _hold_back(samples, ("val",), seed, found, by, turn)
            method += "; 15 % of the remainder is the validation set"
    elif "val" in present:
        method = found.method or "using the train/val/test split found in the data"
    else:
        wanted = ("val",) if official else ("val", "test")
        samples = _hold_back(samples, wanted, seed, found, by)
        shares = "85/15 into train and val" if official else "70/15/15 into train, val and test"
        kept = "; the test set is the one in the data" if official else ""
        method = f"split {shares} by {by}, stratified, seed {seed}{kept}"
        if not known:
            notes.append(
                "no patients are known: if a patient has several images, name the patients with --group-regex, so that "
                "each patient is in one split only"
            )
    if partly and ("val" not in present or folds):
        method += f"; {partly}"
        notes.append(
            f"{partly} only: if a patient whose name is not known has several images, they may be in several splits; "
            f"name all patients with --group-regex"
        )
    if not any(sample.split == "test" for sample in samples):
        notes.append("there is no test split, so there will be no test results")
    if by == _TOGETHER or found.multi_label:
        samples = _moved(found.samples, {sample.name: sample.split for sample in samples})
    counts = Counter((sample.split, number) for sample in samples for number in classes_in(sample.label))
    for split in SPLITS:
        absent = [name for label, name in enumerate(found.classes) if not counts[split, label]]
        if split == "train" and absent:
            named = ", ".join(absent)
            if "val" in present and not folds:
                raise DataError(f"{found.root}: the given train split has no images of {named}; put some into it")
            why = "because there are too few" if by == "image" else f"because too few {_many(by)} have any"
            advice = "add some, or choose fewer --folds" if folds else "add some"
            raise DataError(f"{found.root}: no images of {named} are left for train, {why}; {advice}")
        if 0 < len(absent) < len(found.classes):
            notes.append(f"{split} has no images of {', '.join(absent)}: its results say nothing about them")
    return replace(found, samples=tuple(samples), notes=tuple(notes), method=method)


def overlap(images: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Find patients who are in more than one split: patient -> how many of their images are in
    each. ``images``: (patient, split); "" is unknown."""
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for patient, split in images:
        if patient:
            splits[patient][split] += 1
    return {patient: found for patient, found in sorted(splits.items()) if len(found) > 1}


def describe_leaks(leaks: Mapping[str, Counter[str]]) -> str:
    """Describe an overlap in words."""

    def one(patient: str) -> str:
        counts = {split: leaks[patient][split] for split in SPLITS if leaks[patient][split]}
        told = (f"{split} ({count_of(count, 'image')})" for split, count in counts.items())
        return f"{patient} is in {' and '.join(told)}"

    patients = list(leaks)
    more = f"; and {len(patients) - _MOST_NAMES} more" if len(patients) > _MOST_NAMES else ""
    return f"patient {'; '.join(map(one, patients[:_MOST_NAMES]))}{more}"


def write_splits(path: Path, manifest: Manifest) -> None:
    """Write ``path,label,patient,split`` of every image, in one step; where it may have several
    classes, a column of 0 and 1 for each of them in the place of ``label``. Beside the data it is a
    manifest that gives the same splits again. Raises OSError."""
    columns = manifest.classes if manifest.multi_label else ("label",)
    rows = (
        (s.name, *((manifest.classes[s.label],) if isinstance(s.label, int) else s.label), s.patient, s.split)
        for s in manifest.samples
    )
    write_text(path, table(("path", *columns, "patient", "split"), rows))


def _told(groups: Sequence[Sequence[str]], unit_of: Mapping[str, str], official: bool) -> str:
    """Say how many groups of duplicates are kept together, and how many images at most, since folds
    become uneven where these are many. ``unit_of``: as ``joined`` returns it."""
    among = "the images outside the given test split" if official else "the images"
    if not groups:
        return f"there are no duplicates among {among} to keep together"
    images, most = count_of(sum(map(len, groups)), "image"), max(Counter(unit_of.values()).values())
    kept = ", the given test split left as it is" if official else ""
    are = count_of(len(groups), "group of duplicates is", "groups of duplicates are")
    return (
        f"{are} kept together, with all images of the same patients ({images}; the largest group has "
        f"{max(map(len, groups))}, and at most {count_of(most, 'image')} stay together){kept}"
    )


def _moved(samples: Iterable[Sample], splits: Mapping[str, str]) -> tuple[Sample, ...]:
    return tuple(replace(sample, split=splits.get(sample.name, sample.split)) for sample in samples)


def _ranked(samples: Iterable[Sample], label: Label, seed: int) -> list[Sample]:
    """The images of a class in the order of a hash: an image keeps its place when others come or go
    in another class."""

    def rank(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}/{sample.name}".encode("utf-8", "surrogatepass")).digest()

    return sorted((sample for sample in samples if sample.label == label), key=rank)


def _hold_back(
    samples: Sequence[Sample],
    wanted: Sequence[str],
    seed: int,
    found: Manifest,
    by: str,
    turn: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Sample, ...]:
    """Turn part of train into the ``wanted`` splits; single images whose ``turn`` comes first."""
    train = [sample for sample in samples if sample.split == "train"]
    moved = _images_held_back(train, wanted, seed, turn) if by == "image" else _patients_held_back(train, wanted, seed)
    if not moved:
        most = f"no class has more than {count_of(len(wanted), 'image')}"
        few = most if by == "image" else f"there are few {_many(by)}"
        why = f"{found.root}: {few}, too few to set some aside for validation"
        if by == "image":
            raise DataError(f"{why}; add images, or a val split")
        there = sorted({sample.patient or sample.name for sample in train})
        raise DataError(
            f"{why}: {', '.join(there[:_MOST_NAMES])} in {count_of(len(train), 'image')}; add images, or a val split, "
            f"or, if these are more patients, correct --group-regex or the column that names them"
        )
    return _moved(samples, moved)


def _images_held_back(
    train: Sequence[Sample], wanted: Sequence[str], seed: int, turn: Mapping[str, int]
) -> dict[str, str]:
    moved: dict[str, str] = {}
    for label in sorted({sample.label for sample in train}):
        ranked = sorted(_ranked(train, label, seed), key=lambda sample: turn.get(sample.name, 0))
        share = max(1, round(_HELD_BACK * len(ranked))) if len(ranked) > len(wanted) else 0
        for position, split in enumerate(wanted):
            moved |= {sample.name: split for sample in ranked[position * share : (position + 1) * share]}
    return moved


def _patients_held_back(train: Sequence[Sample], wanted: Sequence[str], seed: int) -> dict[str, str]:
    """Patients are cut into parts, of which those become ``wanted`` that leave no class out of a
    split, or the fewest."""
    patients_of: defaultdict[Label, set[str]] = defaultdict(set)
    for sample in train:
        patients_of[sample.label].add(_patient(sample))
    pinned = {
        patient for patients in patients_of.values() if len(patients) == 1 for patient in patients
    }  # a class's only patient is learned from
    pool = [sample for sample in train if _patient(sample) not in pinned]
    patients = len({_patient(sample) for sample in pool})
    if patients < max(2, len(wanted) + (not pinned)):
        return {}
    parts = min(round(1 / _HELD_BACK), patients)
    always = {sample.label for sample in train if _patient(sample) in pinned}
    best: tuple[tuple[int, int], dict[str, str]] | None = None
    for number in range(_DRAWS):
        part_of = _patient_parts(pool, parts, seed * _DRAWS + number)
        classes: defaultdict[int, set[Label]] = defaultdict(set)
        for sample in pool:
            classes[part_of[sample.name]].add(sample.label)
        for chosen in permutations(range(parts), len(wanted)):
            learned = always.union(*(classes[part] for part in range(parts) if part not in chosen))
            faults = len(patients_of) - len(learned), sum(len(patients_of) - len(classes[part]) for part in chosen)
            if best is None or faults < best[0]:
                split_of = dict(zip(chosen, wanted, strict=True))
                best = faults, {name: split_of[part] for name, part in part_of.items() if part in split_of}
        if best is not None and best[0] == (0, 0):
            break
    return best[1] if best else {}


def _parts(pool: Sequence[Sample], parts: int, seed: int, root: Path, by: str) -> dict[str, int]:
    """Which of so many parts, alike in size and classes, each image is in."""
    there = (
        max(Counter(sample.label for sample in pool).values(), default=0)
        if by == "image"
        else len({_patient(sample) for sample in pool})
    )
    if there < parts:
        many = f"there {'is' if there == 1 else 'are'} only {count_of(there, by, _many(by))}"
        only = f"no class has more than {count_of(there, 'image')}" if by == "image" else many
        raise DataError(f"{root}: --folds is {parts}, but {only}; choose fewer folds")
    if by != "image":
        return _patient_parts(pool, parts, seed)
    places: dict[str, int] = {}
    for label in {sample.label for sample in pool}:
        places |= {sample.name: place % parts for place, sample in enumerate(_ranked(pool, label, seed))}
    return places


def _patient_parts(pool: Sequence[Sample], parts: int, seed: int) -> dict[str, int]:
    patients = [_patient(sample) for sample in pool]
    labels = [sample.label for sample in pool if isinstance(sample.label, int)]  # which they all are here
    found = stratified_parts(labels, patients, parts, seed % 2**32)
    return {sample.name: part for sample, part in zip(pool, found, strict=True)}


def _many(by: str) -> str:
    return by.replace("patient", "patients").replace("group", "groups")


def _patient(sample: Sample) -> str:
    """Whose image it is; where nobody said, it is like one of a patient of its own."""
    return f"patient {sample.patient}" if sample.patient else f"image {sample.name}"
