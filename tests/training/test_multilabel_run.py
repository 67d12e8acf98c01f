"""A training on images that may have several classes: from a table to the report, resumed to the
same bytes, evaluated, predicted; and what refuses such images."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows
from PIL import Image

import medmambase
from medmambase import MedMambaSE, ModelConfig, Predictor, Run
from medmambase.commands import check, crossval, evaluate, explain, predict, table, train
from medmambase.config import ConfigError, Preprocessing, TrainConfig
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.predictions import read_predictions
from medmambase.model.task import MULTI_LABEL
from medmambase.portable.metadata import metadata_of
from medmambase.serving.answers import Answers
from medmambase.training import session

CLASSES = ("left", "right", "top")
SMALL = {"model": "nano", "depths": (1, 1, 1, 1), "image_size": 32, "batch_size": 8, "device": "cpu"}


class EndedError(Exception):
    """Ends a training after an epoch."""


def write_images(folder: Path, count: int = 96) -> Path:
    """Grey pictures with up to three bright edges, two of each patient, who have the same edges but
    for one patient in six, and their table."""
    folder.mkdir(parents=True)
    rng, there = np.random.default_rng(0), np.zeros(3, dtype=bool)
    with (folder / "edges.csv").open("w", encoding="utf-8", newline="") as file:
        written = csv.writer(file)
        written.writerow(("path", *CLASSES, "patient"))
        for number in range(count):
            pixels, drawn = rng.integers(60, 140, (32, 32), np.uint8), rng.random(3) < (0.5, 0.4, 0.3)
            there = there if number % 2 and number % 12 > 1 else drawn
            for place, edge in zip(there, (np.s_[:, :6], np.s_[:, -6:], np.s_[:6, 8:24]), strict=True):
                if place:
                    pixels[edge] += 90
            Image.fromarray(pixels).save(folder / f"{number:02}.png")
            written.writerow((f"{number:02}.png", *there.astype(int), f"p{number // 2:02}"))
    return folder / "edges.csv"


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("multi") / "Kanten ü")


@pytest.fixture(scope="module")
def finished(edges: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run; never changed."""
    given = SMALL | {"epochs": 6, "lr": 3e-3, "balance": "weights", "laterality": True}
    return medmambase.train(edges, runs=tmp_path_factory.mktemp("runs"), **given)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "lauf ü"))


def test_a_network_learns_each_class_and_its_report_tells_them(finished: Run) -> None:
    found = finished.metrics
    assert isinstance(found, MultiLabelMetrics) and found.auc is not None and found.auc > 0.9
    assert found.patients and finished.network.task is MULTI_LABEL
    assert found.by_patient is not None and found.patients_left_out
    assert found.by_patient.images == found.patients - found.patients_left_out
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["multi_label"] is True and config["classes"] == [*CLASSES]
    predictions = read_predictions(finished.folder / "test" / "predictions.csv")
    thresholds = json.loads((finished.folder / "calibration.json").read_text(encoding="utf-8"))["thresholds"]
    for column, name in enumerate(CLASSES):
        assert (predictions.is_called(column) == (predictions.probabilities[:, column] >= thresholds[name])).all()
    page = finished.report.read_text(encoding="utf-8")
    for words in (
        "finds 3 classes in images, each of which may have several of them, or none", "AUC (macro)", "Hamming loss",
        "subset accuracy", "Confusion matrices", "A class is called where its probability", "val</th>",
        "explanations are of the one class that an image is called", "Counted in patients", "Left out: ",
        "A class is called where this mean reaches the threshold of the images",
    ):  # fmt: skip  # a list
        assert words in page, words
    assert "medmambase-explain RUN" not in page and "Cohen" not in page
    counts = json.loads((finished.folder / "data_report.json").read_text(encoding="utf-8"))
    assert sum(counts["images"].values()) == 96 and f'<td class="number">{counts["images"]["train"]}</td>' in page
    card = (finished.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Hamming loss |" in card
    assert "each of which may have several of 3 classes: left, right, top" in card and "- Hamming loss 0." in card
    assert "Each class from the threshold on that has the highest F1 score" in card
    log = (finished.folder / "train.log").read_text(encoding="utf-8")
    assert "multi-label: each image may have several of 3 classes" in log and "(guessing each class: 0.693)" in log


def test_every_figure_comes_out_of_the_predictions_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "every metric matches the recorded one, to the last digit" in said and "test: macro AUC" in said


def test_the_same_images_elsewhere_have_the_same_figures_and_others_are_refused(
    run: Path, edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), str(edges), "--name", "again", "--labels", "top,left,right"]) == 0
    again, first = (
        read_predictions(folder / "predictions.csv") for folder in (run / "evaluations/again-001", run / "test")
    )
    assert again.names == first.names and (again.labels == first.labels).all()
    assert again.probabilities == pytest.approx(first.probabilities, abs=1e-5)
    assert (run / "evaluations/again-001/report.html").is_file()
    capsys.readouterr()
    for labels, message in (("left,right", "the network knows class 'top'"),):
        assert evaluate.main([str(run), str(edges), "--labels", labels]) == 3
        assert message in capsys.readouterr().err
    plain = tmp_path / "plain.csv"
    files = sorted(edges.parent.glob("*.png"))[:4]
    plain.write_text("path,label\n" + "".join(f"{f},{'ab'[i % 2]}\n" for i, f in enumerate(files)), encoding="utf-8")
    assert evaluate.main([str(run), str(plain)]) == 3
    assert "has one class an image, and the network was trained on several classes an image" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_training_goes_on_to_the_same_bytes(edges: Path, tmp_path: Path) -> None:
    def end(row: dict[str, float]) -> None:
        raise EndedError

    given = SMALL | {"runs": tmp_path, "plain_patients": True, "epochs": 2, "label_smoothing": 0.1}
    whole = medmambase.train(edges, name="whole", **given)
    with pytest.raises(EndedError):
        medmambase.train(edges, name="cut", on_epoch=end, **given)
    cut = Run(tmp_path / "cut-001").resume()
    for name in ("metrics.csv", "last/model.safetensors", "test/predictions.csv", "test/metrics.json"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_a_prediction_has_a_probability_and_a_call_for_each_class(
    finished: Run, edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edges.parent
    plain, warm = (Predictor.load(finished, device="cpu", calibrated=value) for value in (False, True))
    assert plain.thresholds is not None and warm.temperature != 1
    for one, other in zip(plain(folder), warm(folder), strict=True):
        assert one.labels == other.labels and one.probability is None and one.probabilities is not None
        assert one.labels == tuple(n for n in CLASSES if one.by_class[n] >= plain.thresholds[CLASSES.index(n)])
        assert one.label == "; ".join(one.labels)
    out = tmp_path / "out.csv"
    assert predict.main([str(finished.folder), str(folder), "-o", str(out)]) == 0
    found = rows(out)
    of_classes = [f"{what}_{name}" for what in ("prob", "called") for name in CLASSES]
    assert [*found[0]] == ["path", "predicted", *of_classes, "error", "patient", "note", "unlike"]
    for row in found:
        assert row["predicted"] == "; ".join(name for name in CLASSES if row[f"called_{name}"] == "1")
    words = [str(finished.folder), str(folder), "--by-patient", "mean", "--group-regex", r"(\d)\d\.png"]
    assert predict.main([*words, "-o", str(out)]) == 0
    assert len(rows(out)) == 10 and {"predicted", "prob_left", "called_top", "images"} <= {*rows(out)[0]}
    capsys.readouterr()
    assert predict.main([str(finished.folder), str(folder), "--at", "top:sensitivity=0.9"]) == 0
    said = capsys.readouterr().out
    assert "not top" in said and "an image is called top if its uncalibrated probability" in said
    facts = Answers(finished.folder, torch.device("cpu")).facts()
    assert facts["multi_label"] and facts["thresholds"] == pytest.approx(warm.thresholds)
    told = metadata_of(finished.folder, finished.network, (warm.temperature,))
    assert [*json.loads(told["thresholds"]).values()] == pytest.approx(warm.thresholds)
    network = finished.network
    assert Predictor(network, device="cpu").thresholds.tolist() == [0.5] * 3
    with pytest.raises(ConfigError, match=r"thresholds is \{'left': 0.5\}; wanted one for each of left, right, top"):
        Predictor(network, device="cpu", thresholds={"left": 0.5})


def test_a_damaged_table_of_thresholds_is_told(run: Path) -> None:
    path = run / "calibration.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for wrong in ({}, {"thresholds": {"left": 0.5}}, {"thresholds": dict.fromkeys(CLASSES, 7)}, {"thresholds": 3}):
        path.write_text(json.dumps({k: v for k, v in values.items() if k != "thresholds"} | wrong), encoding="utf-8")
        with pytest.raises(DataError, match="contains no thresholds"):
            Predictor.load(run, device="cpu")


def test_the_check_counts_images_once_and_hands_the_columns_on(
    edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(edges), "--runs", str(tmp_path), "--labels", "left,top"]) == 0
    said = capsys.readouterr().out
    assert (
        "multi-label: each image may have several of 2 classes, or none: left, top; columns that are not used: right"
        in said
    )
    assert "--labels left,top" in said
    sizes = [int(line.split()[1]) for line in said.splitlines() if line.startswith(("train:", "val:", "test:"))]
    assert sum(sizes) == 96


def test_what_takes_one_class_an_image_is_refused_in_one_line(
    finished: Run, run: Path, edges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, runs, folder = str(edges), ["--runs", str(tmp_path / "runs")], str(finished.folder)
    (tmp_path / "soft.csv").write_text("path,label,predicted,prob_a\n", encoding="utf-8")
    for call, words, code, message in (
        (crossval.main, [data, *runs], 3, "is multi-label, .* a cross-validation takes one class an image"),
        (table.main, [data, "--models", "nano", *runs], 3, "is multi-label, .* a table compares networks of one class"),
        (train.main, [data, "--balance", "sampler", *runs], 2, "--balance is 'sampler', which takes one class"),
        (train.main, [data, "--soft-labels", str(tmp_path / "soft.csv"), *runs], 2, "--soft-labels is .*csv', which"),
        (explain.main, [folder, str(edges.parent)], 2, "calls several classes an image, and an explanation is of"),
    ):  # fmt: skip  # a table
        assert call(words) == code, message
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1, told
        assert re.search(message, told), told
    assert not (tmp_path / "runs").exists()


def test_a_start_of_one_class_an_image_gives_its_features_and_no_classifier(tmp_path: Path) -> None:
    config = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1, num_classes=3, state=2)
    before = MedMambaSE(config, classes=CLASSES, preprocessing=Preprocessing(size=16, channels=1))
    before.save(tmp_path / "network")
    found, model = session.start(tmp_path / "network", TrainConfig())
    said: list[str] = []
    for several in (True, False):
        network = session.begin(model, found, CLASSES, before.preprocessing, said.append, multi_label=several)
        assert network.task.multi_label == several
        assert torch.equal(network.head.weight, before.head.weight) == (not several)
        assert torch.equal(network.embedding.proj.weight, before.embedding.proj.weight)
    assert "the classifier starts anew: the weights and these images do not both have one class an image" in said
