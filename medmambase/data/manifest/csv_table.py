"""Read a CSV manifest, as people write it or a spreadsheet saves it: images, classes, patients and
splits."""

import csv
import difflib
import os
from dataclasses import replace
from pathlib import Path

from medmambase.data.manifest import multi_label
from medmambase.data.manifest.folders import SPLIT_NAMES, DataError, Manifest, Sample
from medmambase.data.manifest.labels import Label
from medmambase.tables import of_cell

# What a column is called, in any case and with blanks or hyphens for underscores; the first is how
# a run writes it.
COLUMNS = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "image_name",
        "img",
    ),
    "label": ("label", "class", "class_name", "diagnosis", "category", "target"),
    "patient": (
        "patient",
        "patient_id",
        "patientid",
        "patient_num",
        "subject",
        "subject_id",
        "case",
        "case_id",
        "group",
    ),
    "split": ("split", "set", "subset", "partition"),
}
_ADVICE = "wanted path,label and, if you know them, patient,split"


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the column names, and each row that is not empty with the line that it ends on. Commas,
    semicolons or tabs; UTF-8. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it again as UTF-8 (in Excel: 'CSV UTF-8')") from error
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such file; give a table (CSV), such as the splits.csv of a run"
        ) from error
    except OSError as error:
        if path.is_dir():  # which systems tell in different words
            raise DataError(f"{path}: is a folder; give a table (CSV), such as the splits.csv of a run") from error
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        lines = [
            (reader.line_num, [of_cell(cell.strip()) for cell in row]) for row in reader if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); {_ADVICE}") from error
    if not lines:
        raise DataError(f"{path}: is empty; {_ADVICE}")
    (_, names), *rows = lines
    if not rows:
        raise DataError(f"{path}: names its columns, and has no line for an image; {_ADVICE}")
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(
                f"{path}, line {line}: has {len(row)} cells, and the first line names {len(names)} columns; put a "
                f"name with commas in quotes"
            )
        if "\0" in "".join(row):
            raise DataError(
                f"{path}, line {line}: holds a NUL character, which no file's name has; delete it, or the line"
            )
    return names, rows


def read_table(
    path: Path,
    names: list[str],
    rows: list[tuple[int, list[str]]],
    group_column: str | None = None,
    labels: str | None = None,
) -> Manifest:
    """Build a manifest from the rows of ``read_rows``, with paths relative to the CSV's folder; an
    image without a split is in train. ``group_column`` names the column of the patient.
    ``labels`` names columns of 0 and 1, one a class, of which an image may have several; so do,
    where there is no column of labels, all columns but those of path, patient and split.

    Raises DataError naming file and line.
    """
    several = [] if labels is None else multi_label.asked_for(path, names, labels)
    rest = ["" if place in several else name for place, name in enumerate(names)]  # a class may be called "case"
    columns = {role: _column(path, rest, role) for role in COLUMNS}
    if group_column is not None:
        columns["patient"] = _asked_for(path, rest, group_column)
    if columns["label"] is None and columns["path"] is not None and not several:
        taken = [place for place in columns.values() if place is not None]
        several = multi_label.detected(path, names, rows, taken)
    for role in ("path",) if several else ("path", "label"):
        if columns[role] is None:
            raise DataError(f"{path}: there is no column {role!r}; its columns are {', '.join(names)}; {_ADVICE}")

    def cell(row: list[str], role: str) -> str:
        place = columns[role]
        return "" if place is None else row[place]

    split_of_nothing = {cell(row, "split") for _, row in rows} <= {""}
    first_line: dict[str, int] = {}
    found: list[tuple[str, str, str, str]] = []
    answers: dict[str, tuple[int, ...]] = {}  # of images that may have several classes
    for line, row in rows:
        name, label, split = cell(row, "path").replace("\\", "/"), cell(row, "label"), cell(row, "split")
        if several:
            answers[name] = multi_label.answers(path, line, names, row, several)
        if not name or not (label or several):
            raise DataError(
                f"{path}, line {line}: has no {'label' if name else 'path'}; fill it in, or delete the line"
            )
        if name in first_line:
            raise DataError(
                f"{path}, line {line}: {name} stands in line {first_line[name]} already; delete one of them"
            )
        if not split_of_nothing and split.casefold() not in SPLIT_NAMES:
            raise DataError(f"{path}, line {line}: split is {split!r}; it must be train, val or test")
        first_line[name] = line
        found.append(
            (name, label, "train" if split_of_nothing else SPLIT_NAMES[split.casefold()], cell(row, "patient"))
        )
    if several:
        classes = tuple(names[place] for place in several)
    else:
        labels_found = {label for _, label, _, _ in found}
        numbers = all(label.isdecimal() and len(label) < 20 for label in labels_found)
        classes = tuple(sorted(labels_found, key=int if numbers else None))  # so that 10 comes after 9
    number = {name: place for place, name in enumerate(classes)}
    made = manifest_of(
        path,
        classes,
        [
            (path.parent / name, answers.get(name, number.get(label, 0)), split, patient, name)
            for name, label, split, patient in sorted(found)
        ],
    )
    if not several:
        return made
    used = {*several, columns["path"], columns["split"], columns["patient"]}
    unused = [name for place, name in enumerate(names) if place not in used]
    return replace(made, notes=(multi_label.note(classes, unused),))


def read_splits(path: Path) -> dict[str, tuple[str, str]]:
    """Read the split and the patient ("" where it is not said) of each image that a table names.
    Raises DataError naming file and line."""
    names, rows = read_rows(path)
    places = {role: _column(path, names, role) for role in ("path", "split", "patient")}
    of_path, of_split, of_patient = places.values()
    if of_path is None or of_split is None:
        lacking = "path" if of_path is None else "split"
        raise DataError(
            f"{path}: there is no column {lacking!r}; its columns are {', '.join(names)}; wanted path,split and, if "
            f"you know it, patient"
        )
    found: dict[str, tuple[str, str]] = {}
    for line, row in rows:
        name, split = row[of_path].replace("\\", "/"), row[of_split]
        if split.casefold() not in SPLIT_NAMES:
            raise DataError(f"{path}, line {line}: split is {split!r}; it must be train, val or test")
        if name in found:
            raise DataError(f"{path}, line {line}: {name} is named twice; delete one of the lines")
        found[name] = SPLIT_NAMES[split.casefold()], "" if of_patient is None else row[of_patient]
    return found


def manifest_of(path: Path, classes: tuple[str, ...], rows: list[tuple[Path, Label, str, str, str]]) -> Manifest:
    """Build a manifest of (file, label, split, patient, name). Raises DataError where none of the
    files exists, or the classes cannot be learned."""
    if not any(os.path.isfile(file) for file, *_ in rows):  # noqa: PTH113  # Path raises for a name that is too long
        raise DataError(
            f"{path}: none of its {len(rows)} images exists, such as {rows[0][0]}; paths are relative to the "
            f"folder of the CSV; if it only divides images that lie elsewhere, give these, and it with --splits"
        )
    samples = tuple(Sample(file, label, split, name, patient) for file, label, split, patient, name in rows)
    return multi_label.checked(path, Manifest(path.parent, classes, samples, ()))


def _plain(name: str) -> str:
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _column(path: Path, names: list[str], role: str) -> int | None:
    """The place of the column of that role: under the name that a run would write, or under the
    only other that can be meant."""
    plain = [_plain(name) for name in names]
    if plain.count(role) == 1:
        return plain.index(role)
    meant = [place for place, name in enumerate(plain) if name in COLUMNS[role]]
    if len(meant) > 1:
        raise DataError(
            f"{path}: {' and '.join(names[place] for place in meant)} could both be the {role}; call the one that is "
            f"meant {role!r}"
        )
    return meant[0] if meant else None


def _asked_for(path: Path, names: list[str], wanted: str) -> int:
    plain = [_plain(name) for name in names]
    if _plain(wanted) not in plain:
        nearest = difflib.get_close_matches(wanted, names, n=1, cutoff=0)[0]
        raise DataError(
            f"{path}: --group-column is {wanted!r}, and there is no such column; the nearest is {nearest!r}"
        )
    return plain.index(_plain(wanted))
