"""The folder of a run can be passed on: it says neither whose images it was trained on, nor whose
machine it was."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import leave_out_pictures, rows
from dicom_files import write

from medmambase.commands import check, compare, evaluate, explain, train
from medmambase.config import TrainConfig
from medmambase.data.manifest.folders import Manifest, Sample
from medmambase.data.pseudonyms import PSEUDONYM, Pseudonyms
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.predictions import Predictions, read_predictions
from medmambase.run_folder import RunFolderError, read_private
from medmambase.training import session
from medmambase.training.run import no_progress

ACCOUNT = "annegret"
PATIENTS = 12


def folder_of_dicom(folder: Path) -> Path:
    """Two classes; each patient has two images, which tell name and number."""
    rng = np.random.default_rng(0)
    for patient in range(PATIENTS):
        for image in range(2):
            path = folder / "ab"[patient % 2] / f"{patient}_{image}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            write(path, values, PatientID=f"HOSP-{patient:04d}", PatientName=f"Meier^Grete{patient}")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of an account, with DICOM files, a run on them, and one that names its patients."""
    place = tmp_path_factory.mktemp("home") / ACCOUNT
    data = folder_of_dicom(place / "studies" / "scans")
    (data / "a" / "broken.png").write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("getpass.getuser", lambda: ACCOUNT)
        patch.setattr(Path, "home", lambda: place)
        words = [str(data), "--runs", str(place / "runs"), "--model", "nano", "--epochs", "1", "--image-size", "32"]
        assert train.main([*words, "--cache", "disk"]) == 0
        assert evaluate.main([str(place / "runs" / "scans-001"), str(data)]) == 0
        assert explain.main([str(place / "runs" / "scans-001"), str(data), "--most", "2"]) == 0
        assert check.main([str(data), "--runs", str(place / "runs")]) == check.FOUND
        leave_out_pictures(patch)
        assert train.main([*words, "--plain-patients", "--name", "plain"]) == 0
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scans-001", "scans-check-001"])
def test_a_run_that_is_passed_on_names_no_patient_no_account_and_no_home(home: Path, name: str) -> None:
    found = []
    for path in (home / "runs" / name).rglob("*"):
        content = path.read_bytes() if path.is_file() and path.name != "do_not_share.toml" else b""
        content += path.relative_to(home).as_posix().encode()
        words = (ACCOUNT, str(home), str(home.parent), "HOSP-", "Meier", "Grete")
        found += [f"{path.relative_to(home)}: {word}" for word in words if word.casefold().encode() in content.lower()]
    assert found == []


@pytest.mark.slow
def test_the_report_and_the_card_hold_no_path_above_the_data(home: Path) -> None:
    run = home / "runs" / "scans-001"
    for name in ("report.html", "MODEL_CARD.md", "command.txt", "test_access_log.csv", "data_report.json"):
        assert "studies" not in (run / name).read_text(encoding="utf-8"), name
    assert (run / "command.txt").read_text(encoding="utf-8").startswith("medmambase-train scans --runs runs --model")
    assert json.loads((run / "data_report.json").read_text(encoding="utf-8"))["skipped"][0]["path"] == "a/broken.png"
    assert "skipped: a/broken.png: " in (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_must_not_be_passed_on_lies_in_one_file_that_says_so(home: Path) -> None:
    private = read_private(home / "runs" / "scans-001")
    assert private is not None and len(private["key"]) == 64
    assert (private["data"], private["runs"]) == (str(home / "studies" / "scans"), str(home / "runs"))
    text = (home / "runs" / "scans-001" / "do_not_share.toml").read_text(encoding="utf-8")
    assert text.startswith("# Do not pass this file on.") and "HOSP-" not in text
    plain = read_private(home / "runs" / "plain-001")
    assert plain is not None and "key" not in plain


@pytest.mark.slow
def test_patients_have_one_pseudonym_each_and_the_splits_are_those_of_their_names(home: Path) -> None:
    hidden, plain = (rows(home / "runs" / name / "splits.csv") for name in ("scans-001", "plain-001"))
    assert [(row["path"], row["split"]) for row in hidden] == [(row["path"], row["split"]) for row in plain]
    pairs = {(one["patient"], other["patient"]) for one, other in zip(hidden, plain, strict=True)}
    assert len(pairs) == len({pseudonym for pseudonym, _ in pairs}) == PATIENTS
    assert all(PSEUDONYM.fullmatch(pseudonym) and name.startswith("HOSP-") for pseudonym, name in pairs)
    tested = rows(home / "runs" / "scans-001" / "test" / "predictions.csv")
    assert {row["patient"] for row in tested} == {row["patient"] for row in hidden if row["split"] == "test"}


def test_the_pseudonyms_of_two_runs_have_nothing_in_common_but_nobody() -> None:
    one, other = Pseudonyms.new(), Pseudonyms.new()
    assert one.patient("x") != other.patient("x") and one.patient("") == other.patient("") == ""


@pytest.mark.slow
def test_a_run_with_other_pseudonyms_is_compared_all_the_same(home: Path) -> None:
    assert compare.main([str(home / "runs" / name) for name in ("scans-001", "plain-001")]) == 0


@pytest.mark.slow
def test_a_patient_of_other_data_is_known_again_with_the_key_and_without_it_a_note_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(home / "runs" / "scans-001", tmp_path / "passed on"))
    splits = {row["path"]: row["split"] for row in rows(run / "splits.csv")}
    learned = next(path for path, split in splits.items() if split == "train" and path.startswith("a/"))
    number = int(learned.removeprefix("a/").partition("_")[0])
    rng = np.random.default_rng(9)
    for label, patient in (("a", number), ("a", 77), ("b", 78)):
        target = tmp_path / "other" / label / f"new{patient}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, rng.integers(0, 256, (16, 16), dtype=np.uint8), PatientID=f"HOSP-{patient:04d}")
    assert evaluate.main([str(run), str(tmp_path / "other"), "--name", "known"]) == 0
    found = read_predictions(run / "evaluations" / "known-001" / "predictions.csv")
    assert [name for name, leaked in zip(found.names, found.leaked, strict=True) if leaked] == [f"a/new{number}.dcm"]
    (run / "do_not_share.toml").unlink()
    capsys.readouterr()
    assert evaluate.main([str(run), str(tmp_path / "other"), "--name", "blind"]) == 0
    assert "cannot tell whether a patient of these images was in train or val" in capsys.readouterr().out
    found = read_predictions(run / "evaluations" / "blind-001" / "predictions.csv")
    assert not found.leaked.any() and all(map(PSEUDONYM.fullmatch, found.patients))
    (run / "report.html").unlink()  # which comes last: without it the run is not finished
    assert train.main(["--resume", str(run), str(home / "studies" / "scans")]) == 4
    assert "do_not_share.toml: is not there, and the patients" in capsys.readouterr().err


def test_a_patient_in_two_splits_is_named_on_the_screen_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of_dicom(tmp_path / "scans")
    lines = ["path,label,patient,split"]
    for path in sorted(data.rglob("*.dcm")):
        patient, image = path.stem.split("_")
        lines.append(
            f"{path.relative_to(data).as_posix()},{path.parent.name},Nr {patient},{('train', 'test')[int(image)]}"
        )
    (data / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert check.main([str(data / "list.csv"), "--runs", str(tmp_path / "runs")]) == check.FOUND
    assert re.search(r"found: patients in two splits: patient Nr \d+ is in ", capsys.readouterr().out)
    folder = tmp_path / "runs" / "list-check-001"
    for name in ("check.log", "data_report.json", "splits.csv"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "Nr " not in text and "p-" in text
    assert check.main([str(data / "list.csv"), "--runs", str(tmp_path / "runs"), "--plain-patients"]) == check.FOUND
    text = (tmp_path / "runs" / "list-check-002" / "check.log").read_text(encoding="utf-8")
    assert "patients in two splits: patient Nr 0 is in " in text  # in the order of their names


def test_intervals_do_not_depend_on_the_key() -> None:
    rng = np.random.default_rng(0)
    names, owners = tuple(f"{row:03}.png" for row in rng.permutation(60)), [f"patient {row // 4}" for row in range(60)]
    labels, probabilities = rng.integers(0, 2, 60), rng.dirichlet((1, 1), 60)
    found = [
        evaluate_with_intervals(
            Predictions(names, labels, probabilities, ("a", "b"), tuple(map(called.patient, owners)))
        )
        for called in (Pseudonyms.new(), Pseudonyms.new())
    ]
    assert found[0] == found[1] and found[0].patients == 15


def test_images_that_a_table_names_by_absolute_paths_get_shorter_names(tmp_path: Path) -> None:
    inside, outside = tmp_path / "study" / "1.png", tmp_path / "archive" / "x" / "2.png"
    other = tmp_path / "archive" / "y" / "2.png"
    samples = tuple(
        Sample(path, 0, "train", name)
        for path, name in (
            (inside, inside.as_posix()),
            (outside, outside.as_posix()),
            (other, other.as_posix()),
            (tmp_path / "study" / "3.png", "3.png"),
        )
    )
    found = Pseudonyms.new().of_manifest(Manifest(tmp_path / "study", ("a",), samples, ()))
    assert [sample.name for sample in found.samples] == ["1.png", "<path>/x/2.png", "<path>/y/2.png", "3.png"]
    assert [sample.path for sample in found.samples] == [sample.path for sample in samples]


@pytest.mark.parametrize("line", ['key = "no key"', f"key = '{'0f' * 65}'", f"key = {'[' * 5000}"])
def test_a_damaged_key_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "do_not_share.toml").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"do_not_share\.toml: cannot be read .*; restore it"):
        Pseudonyms.of_run(tmp_path)


def test_a_run_without_patients_hides_those_of_other_data(tmp_path: Path) -> None:
    found = Pseudonyms.of_run(tmp_path)
    assert found is not None and PSEUDONYM.fullmatch(found.patient("x"))
    (tmp_path / "splits.csv").write_text("path,label,patient,split\na.png,a,x,train\n", encoding="utf-8")
    found = Pseudonyms.of_run(tmp_path)  # version 0.1.0 wrote names
    assert found is not None and found.patient("x") == "x"


def test_patients_whom_only_the_files_know_have_pseudonyms_too(tmp_path: Path) -> None:
    samples = []
    for row in range(4):  # no suffix of DICOM: the patient is known when the picture is read
        path = write(tmp_path / f"{row}.png", np.full((8, 8), 9 * row, np.uint8), PatientID=f"HOSP-{row // 2}")
        samples.append(Sample(path, row % 2, "train", path.name))
    called = Pseudonyms.new()
    manifest = Manifest(tmp_path, ("a", "b"), tuple(samples), ())
    intake = session.take_in(manifest, TrainConfig(image_size=16), "auto", tmp_path / "cache", no_progress, called)
    patients = [facts.patient for facts in intake.images.facts]
    assert all(map(PSEUDONYM.fullmatch, patients)) and len(set(patients)) == 2
    assert [called.shown(patient) for patient in patients] == ["HOSP-0", "HOSP-0", "HOSP-1", "HOSP-1"]
