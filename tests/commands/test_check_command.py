"""``medmambase-check``: what it says, what it leaves behind, and how it ends."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.commands import check
from medmambase.commands.next_steps import pasted
from medmambase.data import phantom
from medmambase.data.manifest.sources import read_manifest


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom(tmp_path_factory.mktemp("phantom"), images_per_class=6, seed=2)


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "my data ü"))


def run(data: Path, *words: str) -> tuple[int, Path]:
    runs = data.parent / "runs"
    return check.main([str(data), "--runs", str(runs), "--image-size", "64", *words]), runs / f"{data.stem}-check-001"


def test_a_clean_folder_ends_with_0_and_a_manifest_that_can_be_read(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run(data)
    said = capsys.readouterr().out
    assert (
        code == 0
        and "no problems found; details are in" in said
        and "checked:   no duplicates, and no patient in two splits" in said
    )
    assert (
        "sizes:     96 x 96 (36 images)" in said
        and "modes:     L (36 images)" in said
        and "train: 24 images (abdomen 4," in said
    )
    assert (folder / "check.log").read_text(encoding="utf-8").splitlines()[
        0
    ] == "data:      using the train/val/test split found in the data"
    assert not (folder / "audit").exists()
    shutil.copy(folder / "splits.csv", data / "splits.csv")
    assert len(read_manifest(data / "splits.csv", seed=0).samples) == 36


def test_everything_that_was_planted_is_named_and_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = min((data / "train" / "brain").iterdir())
    shutil.copy(first, data / "test" / "femur" / "twin $_{x.png")
    (data / "val" / "brain" / "broken.png").write_bytes(b"no picture")
    code, folder = run(data, "--group-regex", r"(p\d+)_")
    said = capsys.readouterr().out
    assert code == 1 and "\nproblems found; details are in" in said
    assert f"skipped: {data / 'val' / 'brain' / 'broken.png'}: " in said
    pair = f"train/brain/{first.name} (train, brain) and test/femur/twin $_{{x.png (test, femur): the same pixels"
    assert (
        f"found: duplicates of different classes: {pair}" in said
        and f"found: duplicates in different splits: {pair}" in said
    )
    with Image.open(folder / "audit" / "duplicates.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    assert report["audit"]["leaked"] == ["test/femur/twin $_{x.png"] and len(report["skipped"]) == 1


def test_a_page_says_what_was_found_and_proposes_how_to_find_the_patients(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(min((data / "train" / "brain").iterdir()), data / "test" / "femur" / "p9999_&b.png")
    code, folder = run(data)
    said, page = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    assert code == 1 and f"report: {(folder / 'report.html').resolve()}" in said
    assert "\nproblems found; details are in" in said and "Problems were found:" in page
    assert "next: 37 of 37 names seem to contain a patient (p0004 in test/abdomen/p0004_00.png; 6 in all)" in said
    by_patient = r"(p\d+)"
    lines = [line for line in said.splitlines() if line.startswith("  medmambase-")]
    wanted = ((program, data, "--group-regex", by_patient) for program in ("medmambase-check", "medmambase-train"))
    assert lines == [f"  {pasted(*words)}" for words in wanted]
    assert "1 pair of duplicates of different classes" in page and "data:image/png;base64," in page
    assert "p9999_&amp;b.png" in page and "p9999_&b" not in page and "<script" not in page
    assert str(data.parent) not in page
    again, _ = run(data, "--group-regex", by_patient)
    assert again == 1 and "seem to contain a patient" not in capsys.readouterr().out


def test_duplicates_within_one_split_and_class_are_told_as_such(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = min((data / "train" / "brain").iterdir())
    shutil.copy(first, first.with_name("p0001_99.png"))
    code, folder = run(data)
    said, page = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    assert code == 1 and "\nduplicates found, but none in two splits or classes; details are in" in said
    assert "next: each group of duplicates lies in one split and one class, so no test image is known" in said
    assert "delete copies all the same: in the test set they count twice" in said
    assert "Duplicates were found, but none in two splits or classes:" in page and "Problems were" not in page
    assert "and another split may separate them, unless it is drawn with --keep-duplicates-together" in said
    run(data, "--keep-duplicates-together")
    said = capsys.readouterr().out
    assert "note: the data has its own splits, so --keep-duplicates-together changes nothing" in said
    assert "another split" not in said
    flags = ("--keep-duplicates-together", "--group-regex", r"(p\d+)")
    assert said.splitlines()[-1] == f"  {pasted('medmambase-train', data, *flags)}"


def test_the_proposed_lines_choose_the_images_and_splits_that_were_checked(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ["path,split", *(f"{p.relative_to(data).as_posix()},train" for p in sorted(data.rglob("*.png")))]
    (data.parent / "s.csv").write_text("\n".join([*table, ""]), encoding="utf-8", newline="\n")
    words = ["--class-names", "brain=head", "--splits", str(data.parent / "s.csv"), "--split-seed"]
    run(data, *words[:-1], "--seed", "3")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  medmambase-")]
    words += [3, "--group-regex", r"(p\d+)"]
    wanted = ((program, data, *words) for program in ("medmambase-check", "medmambase-train"))
    assert lines == [f"  {pasted(*words)}" for words in wanted]


def test_of_a_clip_it_is_said_that_one_frame_is_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(np.full((9, 9), 20 * n, dtype=np.uint8)) for n in range(6)]
    frames[0].save(data / "train" / "brain" / "clip.gif", save_all=True, append_images=frames[1:])
    run(data)
    said = capsys.readouterr().out
    assert "note: 1 file has several frames (train/brain/clip.gif: 6): only the first frame of each is read" in said


def test_several_modalities_are_a_problem_in_verdict_exit_code_page_and_next_step(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "modalities", lambda images: ("the DICOM files are of several modalities",))
    code, folder = run(data)
    said, page = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    assert code == 1 and "\nproblems found; details are in" in said
    assert "next: remove the images whose modality does not belong to this task; otherwise they are learned" in said
    assert "Problems were found:" in page and "The DICOM files are of several modalities." in page
    assert "thead th { overflow-wrap: normal; }" in page  # no head of a table breaks within a word


def test_a_patient_in_two_splits_is_told_not_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(min((data / "train" / "brain").iterdir()), data / "test" / "brain" / "p0000_99.png")
    code, _ = run(data, "--group-regex", r"(p\d+)_")
    said = capsys.readouterr().out
    assert (
        code == 1
        and "found: patients in two splits: patient p0000 is in train (" in said
        and "1 patient in two splits" in said
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 3, "medmambase-check: nowhere: there is no such file or folder; give a folder"),
        (["DATA", "--image-size", "0"], 2, "--image-size is '0'; it must be at least 1"),
        (["DATA", "--image-size", "many"], 2, "--image-size is 'many'; it must be a whole number"),
        (["DATA", "--group-regex", "("], 2, "--group-regex is '(', which is not a valid regular expression"),
        (["DATA", "--group-regex", "zzz"], 3, "finds nothing in any of 36 names"),
        (["DATA", "--runs", "FILE"], 4, "cannot create a folder there"),
    ],
)
def test_bad_input_ends_in_a_code_and_a_sentence(
    words: list[str], code: int, said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data.parent / "file").write_text("", encoding="utf-8")
    words = [{"DATA": str(data), "FILE": str(data.parent / "file")}.get(word, word) for word in words]
    if "--runs" not in words:
        words += ["--runs", str(data.parent / "runs")]
    assert check.main(words) == code
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_folder_without_one_readable_image_is_data_that_cannot_be_used(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    code, _ = run(data)
    assert code == 3 and "no image can be read; see" in capsys.readouterr().err


def test_ctrl_c_ends_in_a_sentence(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "read_manifest", interrupted)
    assert run(data)[0] == 130 and "interrupted" in capsys.readouterr().err
