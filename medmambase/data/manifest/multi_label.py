"""Find the columns of a table that say which of several classes an image has, each with 0 or 1; and
what is needed to learn and to divide such images."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from medmambase.data.manifest.folders import DataError, Manifest, Sample, check_classes
from medmambase.data.manifest.labels import classes_in
from medmambase.plural import count_of

_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # as spreadsheets and pandas write them
_FEWEST = 20  # images of a combination that is divided on its own: 15 % of them are 3
_MOST_NAMES = 20

Rows = Sequence[tuple[int, Sequence[str]]]


def asked_for(path: Path, names: Sequence[str], wish: str) -> list[int]:
    """Return the places of the columns that ``wish`` names, with commas between them. Raises
    DataError for one that is not there, or is named twice, and for fewer than two."""
    wanted = [name.strip() for name in wish.split(",")]
    for name in wanted:
        if names.count(name) != 1:
            many = "no column" if name not in names else f"{names.count(name)} columns"
            raise DataError(
                f"{path}: --labels is {wish!r}, and there is {many} {name!r}; its columns are {', '.join(names)}"
            )
    if len(set(wanted)) < max(2, len(wanted)):
        raise DataError(
            f"{path}: --labels is {wish!r}; wanted at least two columns, each once: a single class that is there or "
            f"not belongs into a column 'label', with the names of two classes"
        )
    return [names.index(name) for name in wanted]


def detected(path: Path, names: Sequence[str], rows: Rows, taken: Collection[int]) -> list[int]:
    """Return the places of all columns but those that are ``taken``, if they hold 0 and 1 alone; []
    if none does, so that nothing speaks for several classes an image.

    Nothing is guessed. Raises DataError where only some of them do, since the others may then be
    forgotten, and where each image has exactly one of the classes, since they may then exclude each
    other.
    """
    others = [place for place in range(len(names)) if place not in taken]
    found = [place for place in others if {row[place] for _, row in rows} <= _VALUES.keys()]
    if len(found) < 2:
        return []
    named = ",".join(names[place] for place in found)
    if len(found) < len(others):
        strange = next(place for place in others if place not in found)
        line, cell = next((line, row[strange]) for line, row in rows if row[strange] not in _VALUES)
        raise DataError(
            f"{path}: there is no column 'label', and not every other column holds 0 and 1: column {names[strange]!r} "
            f"has {cell!r} in line {line}; if an image may have several of the classes {named}, give --labels "
            f'"{named}"'
        )
    if all(sum(_VALUES[row[place]] for place in found) == 1 for _, row in rows):
        raise DataError(
            f"{path}: there is no column 'label', and each image has exactly one of {named}; if they exclude each "
            f"other, write the name of the one into a column 'label'; if an image may have several, give --labels "
            f'"{named}"'
        )
    return found


def answers(path: Path, line: int, names: Sequence[str], row: Sequence[str], places: Sequence[int]) -> tuple[int, ...]:
    """Return 0 or 1 for each class of a row. Raises DataError for any other cell."""
    for place in places:
        if row[place] not in _VALUES:
            raise DataError(
                f"{path}, line {line}: {names[place]} is {row[place]!r}; a column of --labels holds 0 or 1, so fill it "
                f"in, or delete the line"
            )
    return tuple(_VALUES[row[place]] for place in places)


def note(classes: Sequence[str], unused: Sequence[str] = ()) -> str:
    """Say that images may have several classes, and which columns are not looked at."""
    shown = ", ".join(classes[:_MOST_NAMES]) + (", ..." if len(classes) > _MOST_NAMES else "")
    more = f"; columns that are not used: {', '.join(unused)}" if unused else ""
    return f"multi-label: each image may have several of {len(classes)} classes, or none: {shown}{more}"


def checked(source: Path, found: Manifest) -> Manifest:
    """Return the same images, and whether each may have several classes. Raises DataError where the
    classes cannot be learned from those of train, as of an image with one class
    ``check_classes`` does."""
    if not any(isinstance(sample.label, tuple) for sample in found.samples):
        of_split: defaultdict[str, set[str]] = defaultdict(set)
        for sample in found.samples:
            of_split[sample.split].update(found.classes[number] for number in classes_in(sample.label))
        check_classes(source, of_split)
        return found
    training = found.split("train")
    if not training:
        raise DataError(f"{source}: there are no training images; put some into train")
    counts = Counter(number for sample in training for number in classes_in(sample.label))
    for number, name in enumerate(found.classes):
        if counts[number] in (0, len(training)):
            has = "none" if not counts[number] else "every one"
            raise DataError(
                f"{source}: of {count_of(len(training), 'training image')} {has} has {name!r}, so it cannot be "
                f"learned; add images, or leave the class out"
            )
    return replace(found, multi_label=True)


def refuse(found: Manifest, why: str) -> None:
    """Raise DataError, which says ``why``, where images may have several classes."""
    if found.multi_label:
        raise DataError(
            f"{found.root}: is multi-label, each image may have several of {', '.join(found.classes)[:80]}; {why}"
        )


def strata(samples: Sequence[Sample]) -> dict[str, int]:
    """Return a number for each image, by name: images of one number are divided alike. It is that
    of their combination of classes or, where fewer than 20 images have it, of its rarest class."""
    combined = Counter(sample.label for sample in samples)
    counts = Counter(number for sample in samples for number in classes_in(sample.label))

    def kind(sample: Sample) -> tuple[int, ...]:
        own = classes_in(sample.label)
        if combined[sample.label] >= _FEWEST or len(own) < 2:
            return own
        return (min(own, key=lambda number: (counts[number], number)),)

    kinds = {sample.name: kind(sample) for sample in samples}
    number = {one: place for place, one in enumerate(sorted(set(kinds.values())))}
    return {name: number[one] for name, one in kinds.items()}
