"""``medmambase-evaluate``, ``-predict`` and ``-compare`` on a run: the same figures again, rows for
everything, and one line for what is wrong."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import leave_out_pictures
from PIL import Image

from medmambase import MedMambaSE
from medmambase.commands import compare, evaluate, predict, train
from medmambase.data import phantom
from medmambase.data.reading.images import load, normalise
from medmambase.evaluation.predictions import read_predictions
from medmambase.inference import predictor
from medmambase.inference.predictor import Predictor

SMALL = ["--model", "nano", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with other seeds, and one without squeeze-and-excitation; never changed."""
    runs = tmp_path_factory.mktemp("runs")
    for name, words in (("se", []), ("se", ["--seed", "1"]), ("plain", ["--se", "off"])):
        with pytest.MonkeyPatch.context() as patch:
            leave_out_pictures(patch, *([] if words else ["explanation.figures"]))
            assert train.main([str(images), "--runs", str(runs), "--name", name, *SMALL, *words]) == 0
    return runs


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "se-001", tmp_path / "lauf ü"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_recorded_figure_comes_out_of_the_predictions_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in (run / "test").iterdir()} | {
        run / "report.html": (run / "report.html").read_bytes()
    }
    recorded = {path: content for path, content in kept.items() if path.name not in ("predictions.csv", "mistakes.png")}
    for path in recorded:
        if path.suffix != ".json":
            path.unlink()
    assert evaluate.main([str(run)]) == 0
    assert "every metric matches the recorded one, to the last digit" in capsys.readouterr().out
    page = str(run.name).encode()
    assert all(path.read_bytes() == content for path, content in recorded.items() if path.name != "report.html")
    assert (run / "report.html").read_bytes().replace(page, b"") == kept[run / "report.html"].replace(b"se-001", b"")


def test_a_figure_that_was_changed_is_named_and_put_right(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "test" / "metrics.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"accuracy": 0.99, "macro": values["macro"] | {"f1": 0.98}}), encoding="utf-8")
    assert evaluate.main([str(run)]) == evaluate.DIFFERENT
    said = capsys.readouterr().out
    assert "metrics.json: accuracy" in said and "metrics.json: macro/f1" in said
    assert json.loads(path.read_text(encoding="utf-8")) == values


def test_a_table_of_another_program_has_its_figures_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text(
        "path,label,predicted,prob_a,prob_b\nx,a,a,0.9,0.1\ny,b,a,0.6,0.4\n", encoding="utf-8"
    )
    assert evaluate.main([str(tmp_path / "p.csv"), "--json", str(tmp_path / "m.json")]) == 0
    assert "accuracy 0.500" in capsys.readouterr().out
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert (found["per_class"][0]["ppv"], found["intervals"]["accuracy"]["method"]) == (0.5, "Wilson")


def test_the_networks_own_test_images_give_the_predictions_of_the_training_and_are_noted(
    run: Path, images: Path
) -> None:
    assert evaluate.main([str(run), str(images), "--device", "cpu"]) == 0
    again, first = (
        read_predictions(folder / "predictions.csv")
        for folder in (run / "evaluations" / f"{images.name}-001", run / "test")
    )
    assert again.names == first.names and np.abs(again.probabilities - first.probabilities).max() < 1e-5
    assert [row["images"] for row in rows(run / "test_access_log.csv")] == ["6", "6"]


def test_images_that_were_learned_from_are_told_apart_in_a_set_without_splits(
    run: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("brain", "femur"):
        shutil.copytree(images / "train" / name, tmp_path / "other" / name)
    shutil.copy(min((images / "test" / "brain").iterdir()), tmp_path / "other" / "brain" / "unseen.png")
    (tmp_path / "other" / "brain" / "broken.png").write_bytes(b"no picture")
    assert evaluate.main([str(run), str(tmp_path / "other"), "--name", "aux"]) == 0
    folder = run / "evaluations" / "run-aux-001"
    found = read_predictions(folder / "predictions.csv")
    assert [name for name, leaked in zip(found.names, found.leaked, strict=True) if not leaked] == ["brain/unseen.png"]
    assert set(found.classes) == set(phantom.CLASSES)
    assert json.loads((folder / "data_report.json").read_text(encoding="utf-8"))["skipped"][0]["path"].endswith(
        "broken.png"
    )


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
    ]
    assert {row["path"] for row in found} == {p.relative_to(source).as_posix() for p in source.rglob("*.png")}
    for row in found:
        if row["path"] == "broken.png":
            assert row["error"] and not row["predicted"] and not row["probability"]
            continue
        with torch.no_grad():
            wanted = (
                network(normalise(load(source / row["path"], network.preprocessing)[0][None], network.preprocessing))
                .double()
                .softmax(1)[0]
            )
        assert [float(row[f"prob_{name}"]) for name in network.classes] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert float(row["probability"]) == max(float(row[f"prob_{name}"]) for name in network.classes)
    assert not list(tmp_path.glob("*.part"))


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
    assert header.split() == ["path", "predicted", "probability", "called"]
    assert [line.split()[0] for line in lines[:20]] == [f"{number:02}.png" for number in range(20)]
    assert re.fullmatch(r"[01]\.\d\d", lines[1].split()[2]) and "more colour than the validation images" in lines[0]
    assert lines[20].startswith("... the first 20") and lines[21].endswith("-o out.csv")
    assert any(line.startswith("called brain from a probability of 0.") for line in lines[22:])
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


def test_where_nothing_can_be_read_the_exit_code_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "x" / name).write_bytes(bytes(128) + b"DICM" + bytes(64))
    monkeypatch.setitem(sys.modules, "pydicom.filereader", None)  # as where pydicom is not installed
    for words in ([], ["-o", str(tmp_path / "out.csv")]):
        assert predict.main([str(run), str(tmp_path / "x"), *words]) == 3
        assert capsys.readouterr().out.count("2 of them: a DICOM file; to read it: pip install") == 1
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


def test_runs_are_compared_one_with_one_and_seeds_with_a_pattern(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(trained / "plain-001"), str(trained / "se-001")]) == 0
    alone = capsys.readouterr().out
    assert (
        "6 test images; intervals at 95 %" in alone
        and re.search(r"No difference can be told from chance|is better than|cannot be said", alone)
        and "splits.csv --seed 1" in alone.splitlines()[-1]
        and "another seed may change the result" in alone
        and "McNemar: correct only in A" in alone
    )
    assert (
        compare.main([str(trained / "plain-*"), "--against", str(trained / "se-*"), "--json", str(tmp_path / "c.json")])
        == 0
    )
    assert "one side has only one run: its intervals" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert len(found["second"]) == 2 and found["figures"]["accuracy"]["difference"] == pytest.approx(
        np.mean(
            [
                json.loads((trained / f"se-00{i}" / "test" / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
                for i in (1, 2)
            ]
        )
        - json.loads((trained / "plain-001" / "test" / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    )


@pytest.mark.parametrize(
    ("main", "words", "code", "wanted"),
    [
        (
            evaluate.main,
            ["NOWHERE"],
            3,
            r"NOWHERE.*test.predictions\.csv: there is no such file; give the folder of a run",
        ),
        (evaluate.main, ["RUN", "NOWHERE"], 3, "NOWHERE: there is no such file or folder"),
        (
            evaluate.main,
            ["RUN", "STRANGE"],
            3,
            r"does not know class 'brian'; it knows 'abdomen', .*: did you mean 'brain'\?",
        ),
        (evaluate.main, ["RUN", "IMAGES", "--device", "cuda:9"], 2, "--device cuda:9 cannot be used"),
        (evaluate.main, ["BAD.csv"], 3, r"BAD\.csv: the first line is"),
        (
            predict.main,
            ["NOWHERE", "IMAGES", "-o", "o.csv"],
            3,
            "NOWHERE: there is no such folder; give the folder of a run",
        ),
        (predict.main, ["RUN", "NOWHERE", "-o", "o.csv"], 3, "NOWHERE: there is no such file or folder; give an image"),
        (predict.main, ["RUN", "EMPTY", "-o", "o.csv"], 3, "EMPTY: no images found"),
        (predict.main, ["RUN", "IMAGES", "-o", "EMPTY"], 2, "-o .*EMPTY cannot be written: it is a folder"),
        (
            predict.main,
            ["RUN", "IMAGES", "-o", "NOWHERE/o.csv"],
            2,
            "o.csv cannot be written: its folder does not",
        ),
        (predict.main, ["PLAIN", "IMAGES", "-o", "o.csv", "--calibrated"], 2, r"has no calibration\.json"),
        (predict.main, ["PLAIN", "IMAGES", "--at", "brain:sensitivity=0.9"], 2, "predictions of validation images"),
        (
            predict.main,
            ["RUN", "IMAGES", "--at", "brian:sensitivity=0.9"],
            2,
            "--at is 'brian:sensitivity=0.9'; wanted",
        ),
        (compare.main, ["RUN"], 2, "got 1 runs; give two"),
        (compare.main, ["RUN", "NOWHERE"], 2, "NOWHERE: no run has this name, and no file matches it"),
        (compare.main, ["RUN", "EMPTY"], 3, r"EMPTY.*predictions\.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    main: object, words: list[str], code: int, wanted: str, run: Path, images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip  # one argument list
    monkeypatch.chdir(tmp_path)
    for name in ("brian", "femur"):
        (tmp_path / "STRANGE" / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "STRANGE" / name / "x.png")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BAD.csv").write_text("a,b\n", encoding="utf-8")
    shutil.copytree(run / "best", tmp_path / "PLAIN")
    places = {"RUN": str(run), "IMAGES": str(images)}
    assert callable(main)
    assert main([places.get(word, word) for word in words]) == code
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1
    assert re.search(wanted, said.err)
    assert "Traceback" not in said.err and "medmambase-" in said.err
