"""``medmambase-predict`` on a run: rows for everything, for images and for patients."""

import json
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows
from PIL import Image

from medmambase import MedMambaSE
from medmambase.commands import predict
from medmambase.data.reading.images import load, normalise
from medmambase.evaluation.predictions import read_predictions
from medmambase.inference import predictor
from medmambase.inference.limits import Limits
from medmambase.inference.predictor import Prediction, Predictor
from medmambase.inference.training_images import Duplicate


def test_predictions_of_a_folder_are_those_of_the_network_and_bad_files_are_rows(
    run: Path, images: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(images / "test", tmp_path / "Bilder 肺"))
    (source / "broken.png").write_bytes(b"no picture")
    (source / "Thumbs.db").write_bytes(b"x")
    Image.new("L", (40, 20), 90).save(source / "brain" / "grau.png")
    assert predict.main([str(run), str(source), "-o", str(tmp_path / "out.csv"), "--batch-size", "4"]) == 0
    found = rows(tmp_path / "out.csv")
    network = MedMambaSE.load(run / "best")
    assert list(found[0]) == [
        "path",
        "predicted",
        "probability",
        *(f"prob_{name}" for name in network.classes),
        "error",
        "patient",
        "note",
        "unlike",
        "set",
    ]
    assert {row["path"] for row in found} == {p.relative_to(source).as_posix() for p in source.rglob("*.png")}
    for row in found:
        if row["path"] == "broken.png":
            assert row["error"] and not row["predicted"] and not row["probability"]
            assert not row["unlike"] and not row["set"]
            continue
        with torch.no_grad():
            wanted = (
                network(normalise(load(source / row["path"], network.preprocessing)[0][None], network.preprocessing))
                .double()
                .softmax(1)[0]
            )
        assert [float(row[f"prob_{name}"]) for name in network.classes] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert row["unlike"] in ("yes", "no") and row["predicted"] in row["set"].split("|")
        assert float(row["probability"]) == max(float(row[f"prob_{name}"]) for name in network.classes)
    assert not list(tmp_path.glob("*.part"))


def test_an_image_unlike_the_training_images_is_told_of_and_a_run_without_limits_says_so(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(images / "val", tmp_path / "new"))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(source / "noise.png")
    assert predict.main([str(run), str(source), "-o", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().out
    unlike = [row["path"] for row in rows(tmp_path / "out.csv") if row["unlike"] == "yes"]
    assert unlike == ["noise.png"]  # the threshold of so few images lies beyond all of theirs
    assert (
        "unlike the training images (" in said and "images like the validation images are meant to be called so" in said
    )
    assert predict.main([str(run), str(source / "noise.png")]) == 0
    assert "unlike the training images" in capsys.readouterr().out
    old = Path(shutil.copytree(run, tmp_path / "old"))
    (old / "unlike.safetensors").unlink()
    (old / "conformal.json").unlink()
    assert predict.main([str(old), str(source), "-o", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().out
    assert not {"unlike", "set"} & set(rows(tmp_path / "out.csv")[0])
    assert "no unlike.safetensors of this version (it had too few images" in said and "no conformal.json" in said


def test_a_temperature_makes_a_prediction_less_or_more_sure_and_calls_it_the_same(
    run: Path, images: Path, tmp_path: Path
) -> None:
    change = json.loads((run / "calibration.json").read_text(encoding="utf-8")) | {"temperature": 3.0}
    (run / "calibration.json").write_text(json.dumps(change), encoding="utf-8")
    for name, words in (("raw", []), ("warm", ["--calibrated"])):
        assert predict.main([str(run), str(images / "test"), "-o", str(tmp_path / f"{name}.csv"), *words]) == 0
    raw, warm = rows(tmp_path / "raw.csv"), rows(tmp_path / "warm.csv")
    assert [row["predicted"] for row in raw] == [row["predicted"] for row in warm]
    assert all(float(one["probability"]) > float(other["probability"]) for one, other in zip(raw, warm, strict=True))


def test_without_a_file_the_first_rows_are_printed(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    first = min((images / "test" / "brain").iterdir())
    for number in range(22):
        shutil.copy(first, source / f"{number:02}.png")
    Image.new("RGB", (30, 30), (250, 20, 20)).save(source / "00.png")
    assert predict.main([str(run), str(source), "--digits", "2", "--at", "brain:sensitivity=1"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["path", "predicted", "probability", "called", "set"]
    assert [line.split()[0] for line in lines[:20]] == [f"{number:02}.png" for number in range(20)]
    assert re.fullmatch(r"[01]\.\d\d", lines[1].split()[2]) and "more colour than the validation images" in lines[0]
    assert lines[20].startswith("... these are the first 20") and lines[21].endswith("-o out.csv")
    assert any(line.startswith("an image is called brain if its uncalibrated probability") for line in lines[22:])
    assert lines[-1].startswith("  medmambase-explain ")


def test_the_threshold_is_of_the_same_kind_as_the_probabilities(run: Path, images: Path, tmp_path: Path) -> None:
    change = json.loads((run / "calibration.json").read_text(encoding="utf-8")) | {"temperature": 3.0}
    (run / "calibration.json").write_text(json.dumps(change), encoding="utf-8")
    called, thresholds = [], []
    for name, words in (("raw", []), ("warm", ["--calibrated"])):
        words = [*words, "--at", "brain:sensitivity=1", "-o", str(tmp_path / f"{name}.csv")]
        assert predict.main([str(run), str(images / "val"), *words]) == 0
        found = rows(tmp_path / f"{name}.csv")
        thresholds.append({float(row["threshold"]) for row in found}.pop())
        called.append([row["called"] for row in found])
        for row in found:  # but for images at the threshold, which frozen weights may move by a millionth
            away = float(row["prob_brain"]) - thresholds[-1]
            assert abs(away) < 1e-4 or row["called"] == ("brain" if away > 0 else "not brain")
    validation = read_predictions(run / "val" / "predictions.csv")
    column = validation.probabilities[:, validation.classes.index("brain")]
    brains = column[validation.labels == validation.classes.index("brain")]
    assert thresholds[0] == brains.min() and thresholds[1] != thresholds[0]


def test_a_row_for_each_patient_is_the_mean_of_the_images(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(images / "test", tmp_path / "Bilder 肺"))
    (source / "brain" / "broken_p9999.png").write_bytes(b"no picture")
    (source / "nobody.png").write_bytes(min((source / "brain").glob("p0*.png")).read_bytes())
    words = [str(run), str(source), "--group-regex", "p[0-9]{4}"]
    assert predict.main([*words, "-o", str(tmp_path / "all.csv")]) == 0
    assert predict.main([*words, "-o", str(tmp_path / "by.csv"), "--by-patient", "mean"]) == 0
    said = capsys.readouterr().out
    assert "1 image belongs to no known patient: each has its own row; --group-regex finds" in said
    every, found = rows(tmp_path / "all.csv"), {row["patient"]: row for row in rows(tmp_path / "by.csv")}
    assert list(found["nobody.png"])[:3] == ["patient", "predicted", "probability"]
    names = {row["patient"] for row in every} - {""}
    assert set(found) == names | {"nobody.png"} and "p9999" in names
    assert (found["p9999"]["images"], found["p9999"]["unread"], found["p9999"]["predicted"]) == ("0", "1", "")
    for name in names - {"p9999"}:
        own = [float(row["prob_brain"]) for row in every if row["patient"] == name]
        assert float(found[name]["prob_brain"]) == pytest.approx(np.mean(own), abs=1e-12)
        assert found[name]["images"] == str(len(own))
    assert predict.main(words) == 0
    said = capsys.readouterr().out
    assert said.split()[:4] == ["path", "predicted", "probability", "patient"]
    assert all(f"  {name}" in said for name in names)
    assert predict.main([*words, "--by-patient", "max"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "patient", "predicted", "probability", "images", "unread", "noted", "unlike",
    ]  # fmt: skip  # a line


def test_the_patient_of_a_dicom_file_without_a_picture_is_known(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    syntax = b"\x02\0\x10\0UI\x14\0" + b"1.2.840.10008.1.2.1\0"
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + syntax + b"\x10\0\x20\0LO\x04\0P 7 ")
    call = object.__new__(predict._Call)
    call.patients, call.root = {}, tmp_path
    assert call._patient(Prediction(0, tmp_path / "a.dcm", ("x",), None, "no picture")) == "P 7"
    call.patients = {"a.dcm": "q"}
    assert call._patient(Prediction(0, tmp_path / "a.dcm", ("x",), None, "no picture")) == "q"


def test_rows_are_counted_not_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of_patients() -> Iterator[predict.Row]:
        yield from (("p",), ("q",))
        raise KeyboardInterrupt

    call = object.__new__(predict._Call)
    call.options, call.out, call.good, call.bad = Namespace(batch_size=4), tmp_path / "out.csv", 9, 0
    assert call._write(("patient",), of_patients()) == 130
    assert "interrupted: the first 2 rows are in" in capsys.readouterr().err
    assert len(rows(tmp_path / "out.csv.part")) == 2


def test_the_first_file_of_each_reason_and_of_each_note_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    call = object.__new__(predict._Call)
    call.root, call.good, call.bad, call.problems, call.notes, call.unlike = Path(), 0, 0, {}, {}, {}
    of = [("a\n.png", "empty", ""), ("b.png", "no picture", ""), ("c.png", "empty", ""), ("d.png", None, "modality CT")]
    of += [(f"{number}.png", f"reason {number}", "") for number in range(predict.MOST)]
    found = [Prediction(0, Path(name), ("x",), None, why, note=note) for name, why, note in of]
    for name in ("e.png", "f.png"):
        same = Duplicate("nearly the same as a training image", f"a/{name}")
        found.append(Prediction(0, Path(name), ("x",), None, None, note=": ".join(same), duplicate=same))
    list(call._counted(iter(found)))
    call._tell()
    assert capsys.readouterr().out.splitlines() == [
        "2 files could not be read: empty (the first: a .png)",
        "1 file could not be read: no picture (b.png)",
        *(f"1 file could not be read: reason {number} ({number}.png)" for number in range(predict.MOST - 2)),
        "2 more files could not be read, for other reasons",
        "1 image has a note: modality CT (d.png)",
        "2 images have a note: nearly the same as a training image (the first: e.png)",
    ]


def test_the_threshold_has_as_many_digits_as_were_asked_for_and_stands_beside_what_was_called_alone() -> None:
    call = object.__new__(predict._Call)
    call.options, call.out, call.root, call.patients = Namespace(digits=3), Path("out.csv"), Path(), {}
    call.predictor, call.point = (
        Namespace(classes=("x", "y"), limits=Limits(), thresholds=None),
        Namespace(name="x", threshold=0.123456789),
    )
    read = Prediction(0, Path("a.png"), ("x", "y"), np.array([0.25, 0.75]), None)
    header, found = call._of_images([read, Prediction(1, Path("b.png"), ("x", "y"), None, "empty")])
    assert header[-2:] == ("called", "threshold")
    assert [row[-2:] for row in found] == [("x", "0.123"), ("", None)]


def test_where_nothing_can_be_read_the_exit_code_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "x" / name).write_bytes(bytes(128) + b"DICM" + bytes(64))
    monkeypatch.setitem(sys.modules, "pydicom.filereader", None)  # as where pydicom is not installed
    for words in ([], ["-o", str(tmp_path / "out.csv")]):
        assert predict.main([str(run), str(tmp_path / "x"), *words]) == 3
        assert capsys.readouterr().out.count("2 files could not be read: a DICOM file; to read it: pip install") == 1
    for number in range(predict.SHOWN):  # of images that were not looked at nothing is said
        (tmp_path / "x" / f"c{number:02}.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    assert predict.main([str(run), str(tmp_path / "x")]) == 0
    assert "could not be read" not in capsys.readouterr().out
    assert len(rows(tmp_path / "out.csv")) == 2


def test_a_stream_keeps_some_batches_in_memory_whatever_its_length(run: Path, images: Path) -> None:
    image, asked = min((images / "test" / "brain").iterdir()), [0]

    def endless() -> Iterator[Path]:
        while True:
            asked[0] += 1
            yield image

    predictions = Predictor.load(run, device="cpu")(endless(), batch_size=4)
    for taken, one in enumerate(predictions, start=1):
        assert one.path == image and one.index == taken - 1 and one.problem is None
        assert asked[0] - taken <= 4 * 4 + 4
        if taken == 100:
            break
    predictions.close()


def test_an_interrupted_prediction_keeps_its_rows(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = predictor.predict_stream

    def interrupted(*arguments: object) -> Iterator[object]:
        for count, found in enumerate(real(*arguments)):
            if count == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(predictor, "predict_stream", interrupted)
    (tmp_path / "out.csv").write_text("what was there", encoding="utf-8")
    assert predict.main([str(run), str(images / "test"), "-o", str(tmp_path / "out.csv")]) == 130
    assert (
        len(rows(tmp_path / "out.csv.part")) == 3
        and (tmp_path / "out.csv").read_text(encoding="utf-8") == "what was there"
    )
