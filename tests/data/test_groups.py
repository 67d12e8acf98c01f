"""Patients found in names by a regular expression, which may have no end."""

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmambase.config import ConfigError
from medmambase.data.manifest import groups
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.groups import grouped, patients_of, told_by_files

NAMES = ("a/p1_0.png", "b/p2_肺.png", "b/p2_\udcff.png", "b/nobody.png")


def manifest(names: tuple[str, ...]) -> Manifest:
    samples = [Sample(Path(name), row % 2, "train", name) for row, name in enumerate(names)]
    return Manifest(Path("data"), ("a", "b"), tuple(samples), ("a note",))


@pytest.mark.parametrize(("regex", "wanted"), [(r"(p\d)_", ("p1", "p2", "p2", "")), (r"p\d", ("p1", "p2", "p2", ""))])
def test_the_first_group_is_the_patient_or_all_that_matches(regex: str, wanted: tuple[str, ...]) -> None:
    found = grouped(manifest(NAMES), regex)
    assert tuple(sample.patient for sample in found.samples) == wanted
    assert found.notes[0] == "a note" and "no patient in 1 name, such as b/nobody.png" in found.notes[1]
    before = [match[match.re.groups and 1] if (match := re.search(regex, name)) else "" for name in NAMES]
    assert tuple(before) == wanted


def test_where_the_expression_finds_nobody_a_table_or_the_dicom_file_tells_the_patient(tmp_path: Path) -> None:
    from dicom_files import write

    path = write(tmp_path / "scan.dcm", np.zeros((8, 8), dtype=np.uint8), PatientID="q9")
    there = write(tmp_path / "p3_x.dcm", np.zeros((8, 8), dtype=np.uint8), PatientID="q9")
    of_file, matched = Sample(path, 0, "train", "a/scan.dcm"), Sample(there, 0, "train", "a/p3_x.dcm")
    of_table = Sample(Path("t.png"), 0, "train", "a/t.png", "known")
    given = replace(manifest(NAMES), samples=(*manifest(NAMES).samples, of_file, matched, of_table))
    found = grouped(given, r"(p\d)_")
    assert [sample.patient for sample in found.samples] == ["p1", "p2", "p2", "", "q9", "p3", "known"]
    assert found.notes[1] == (
        "--group-regex finds no patient in 3 names, such as b/nobody.png: 2 of these images have the patient that a "
        "table or a DICOM file names, and each of the others counts as a patient of its own"
    )
    told = told_by_files(replace(given, samples=(of_file, of_table)))
    assert [sample.patient for sample in told.samples] == ["q9", "known"]


def test_one_image_without_a_patient_and_two_with_one_are_told_as_such() -> None:
    alone, both = grouped(manifest(("a/p1_x.png", "a/p1_y.png", "a/z.png")), r"(p\d)_").notes[-2:]
    assert alone.endswith("in 1 name, such as a/z.png: this image counts as a patient of its own")
    assert "finds the same patient, 'p1', in both names that it fits: if these images" in both


@pytest.mark.parametrize(
    ("regex", "said"),
    [
        (r"(p\d)_", ""),
        (
            r"(p)\d",
            "finds the same patient, 'p', in all 3 names that it fits: if these images are of several ",
        ),
        (
            r"(p\d_.)",
            "finds another patient in each of 3 names that it fits: if a patient has several images, it",
        ),
        ("肺", ""),
    ],
)
def test_an_expression_that_tells_no_patients_apart_or_every_image_is_told(regex: str, said: str) -> None:
    told = [note for note in grouped(manifest(NAMES), regex).notes if "wrong part of a name" in note]
    assert len(told) == bool(said) and said in "".join(told)


def test_an_expression_without_end_is_stopped_and_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "LIMIT", 0.5)
    endless = manifest(("a/p1.png", f"a/{'a' * 60}.png", "b/p2.png"))
    said: list[str] = []

    def act() -> None:
        with pytest.raises(DataError) as caught:
            grouped(endless, r"p\d|(a+)+b")
        said.append(str(caught.value))

    thread = threading.Thread(target=act)  # nothing of it needs the main thread
    thread.start()
    thread.join()
    assert said == [
        f"data: --group-regex 'p\\\\d|(a+)+b' does not come to an end within 0.5 s on a/{'a' * 60}.png; avoid a "
        f"repetition inside a repetition, such as (a+)+"
    ]


def test_many_names_are_one_conversation() -> None:
    many = manifest(tuple(f"{row:05}/patient{row // 3}.png" for row in range(3000)))
    found = grouped(many, r"(patient\d+)")
    assert found.samples == tuple(
        replace(sample, patient=f"patient{row // 3}") for row, sample in enumerate(many.samples)
    )


def test_what_finds_nothing_or_is_no_expression_is_an_error() -> None:
    with pytest.raises(DataError, match=r"finds nothing in any of 4 names, such as a/p1_0\.png"):
        grouped(manifest(NAMES), "zzz")
    with pytest.raises(ConfigError, match=r"--group-regex is '\(', which is not a valid regular expression"):
        grouped(manifest(NAMES), "(")


def test_the_patients_of_files_are_found_below_their_folder_and_nothing_is_nobody(tmp_path: Path) -> None:
    assert patients_of(tmp_path / "nowhere", "x") == patients_of(tmp_path, "x") == {}
    (tmp_path / "p1").mkdir()
    for name in ("p1/a.png", "b.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert patients_of(tmp_path, r"p\d") == {"p1/a.png": "p1"}
    assert patients_of(tmp_path / "p1" / "a.png", "([a-z])") == {"a.png": "a"}


def test_a_process_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_WORKER", "print('\"ready\"')")
    with pytest.raises(DataError, match="the process that looks for patients in names has ended"):
        grouped(manifest(NAMES), "p")
