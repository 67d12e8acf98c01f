"""The page of a run: complete, offline, escaped, small, and a sentence where something is
missing."""

import base64
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from html_page import Page
from PIL import Image

from medmambase.config import RECIPES, ModelConfig, Preprocessing
from medmambase.evaluation import calibration
from medmambase.evaluation.explanation import figures as explanation_figures
from medmambase.evaluation.explanation.maps import Recalibration
from medmambase.evaluation.metrics import evaluate
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.report import figures, performance_figures, results
from medmambase.evaluation.report.report import ReportError, write_report

CLASSES = ["Fetal brain", "<script>alert('x')</script>", 'Gebärmutter & "co"']


AUDITED = {
    "method": "split by patient <b>1</b>",
    "audit": {"findings": ["twins: a.png (train, x) and <b>b</b>.png (test, x): the same pixels"]},
}


def put(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def change(path: Path, **values: object) -> None:
    put(path, json.loads(path.read_text(encoding="utf-8")) | values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder, as training leaves it; never changed."""
    run = tmp_path_factory.mktemp("runs") / "fetal ü 001"
    for name in ("test", "explain"):
        (run / name).mkdir(parents=True)
    labels = np.repeat([0, 1, 2], [15, 10, 5])
    scores = np.eye(3)[labels] / 2 + np.random.default_rng(0).random((30, 3))
    names, patients = tuple(f"test/x/{row}.png" for row in range(30)), tuple(f"p{row // 2}" for row in range(30))
    predictions = Predictions(names, labels, scores / scores.sum(axis=1, keepdims=True), tuple(CLASSES), patients)
    results.write(run / "test", predictions, calibration.fit(predictions), published=False)
    performance_figures.mistakes(
        torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        predictions.rows(performance_figures.worst(predictions)[:3]),
        run / "test" / "mistakes.png",
    )
    results.note_opening(run, "D:\\my data", 30, "medmambase-train <b>x</b>")
    settings = {
        "model": ModelConfig(num_classes=3).to_dict(),
        "training": RECIPES["notebook"].to_dict(),
        "preprocessing": Preprocessing().to_dict(),
    }
    how = {
        "device": "cpu",
        "engine": "cpu: no NVIDIA GPU",
        "precision": "float32: the CPU",
        "parameters": 1234567,
        "best_epoch": 2,
        "best_score": 0.87654,
    }
    put(run / "config.json", settings | how | {"classes": CLASSES})
    counts = {
        split: dict(zip(CLASSES, row, strict=True))
        for split, row in (("train", (70, 71, 72)), ("val", (15, 15, 15)), ("test", (10, 10, 10)))
    }
    skipped = [{"path": "train/<i>x</i>.png", "reason": "image file is truncated"}]
    put(
        run / "data_report.json",
        {"root": "D:\\my data", "counts": counts, "skipped": skipped, "notes": ["val has no <b>Femur</b>"], **AUDITED},
    )
    put(run / "env.json", {"python": "3.12.1", "torch": "2.13.0+cpu"})
    curves = {"deletion": 0.25, "insertion": 0.75}
    put(
        run / "explain" / "faithfulness.json",
        {"cam": curves, "random": {"deletion": 0.5, "insertion": 0.5}, "verdict": "They mark what <b>counts</b>."},
    )
    (run / "command.txt").write_text('medmambase-train "D:\\my data" --recipe notebook\n', encoding="utf-8")
    (run / "metrics.csv").write_text("epoch,lr,train_loss\n1,0.1,2\n2,0.1,1\n", encoding="utf-8")
    figures.curves(run / "metrics.csv", run / "curves.png", 2)
    for name in ("sheet_01", "gates", "faithfulness"):
        shutil.copy(run / "curves.png", run / "explain" / f"{name}.png")
    for number in (1, 2):
        stage = Recalibration(number, torch.ones(1, 4, 4), torch.ones(1, 4, 4) / 2, torch.ones(1, 8) / 2)
        explanation_figures.recalibration(
            stage, torch.zeros(1, 1, 8, 8), ["brain"], run / "explain" / f"se_stage{number}.png"
        )
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def test_the_page_tells_what_was_trained_on_what_and_how_well(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    for name, key in (("balanced accuracy", "balanced_accuracy"), ("AUC (macro)", "auc"), ("accuracy", "accuracy")):
        assert f" {name}{metrics[key]:.3f}" in page.text
    for one in metrics["per_class"]:
        row = [
            (one[key], metrics["intervals"].get(f"{CLASSES.index(one['name'])}/{key}"))
            for key in ("sensitivity", "specificity", "ppv", "npv", "f1", "auc", "ap")
        ]
        text = "".join(
            f"{value:.3f}" + (f"{sure['low']:.3f}\u2013{sure['high']:.3f}" if sure else "") for value, sure in row
        )
        assert f"{one['support']}{text}" in page.text.replace(" ", "")
    calibrated = json.loads((run / "test" / "calibrated.json").read_text(encoding="utf-8"))
    wanted = [
        f"divided by {calibrated['temperature']:.3f}",
        "of 15 patients",
        "They mark what <b>counts</b>.",
        "looked at once",
        "TODO",
    ]
    wanted += [
        f"{point['threshold']:.3f}{point['test']['sensitivity']['figure']:.3f}" for point in calibrated["points"]
    ]
    assert [word for word in wanted if word not in page.text] == []
    wanted = [
        *CLASSES,
        "D:\\my data",
        "213",
        "45",
        "30",
        "image file is truncated",
        "val has no <b>Femur</b>",
        "medmambase-train",
        "2.13.0+cpu",
    ]
    wanted += [
        "1,234,567 parameters",
        "no NVIDIA GPU",
        "float32: the CPU",
        "epoch 2",
        "0.877",
        "2, 2, 2, 2",
        "96, 192, 384, 768",
        "fetal ü 001",
        "letterbox",
    ]
    assert [word for word in wanted if word not in page.text] == []
    assert page.text.count("How to read this") >= 6
    assert len(page.all("img")) == 11


def test_the_page_is_one_file_without_scripts_or_outside_references(run: Path) -> None:
    page = Page(write_report(run))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "form", "base", "i", "b"})
    addresses = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action"}
    ]
    assert len(addresses) == 12
    assert all(address.startswith("data:") for address in addresses)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    source = (run / "report.html").read_text(encoding="utf-8")
    assert re.search(r"https?://|@import|url\(", source) is None
    assert "default-src 'none'" in source
    assert len(source.encode()) < 5_000_000


def test_pictures_are_on_the_page_as_they_are_in_the_folder(run: Path) -> None:
    embedded = [
        base64.b64decode((attributes["src"] or "").removeprefix("data:image/png;base64,"))
        for attributes in Page(write_report(run)).all("img")
    ]
    names = [*(f"test/{name}.png" for name in ("confusion", "roc", "pr", "reliability", "mistakes")), "curves.png"]
    names += [f"explain/{name}.png" for name in ("sheet_01", "faithfulness", "gates", "se_stage1", "se_stage2")]
    assert embedded == [(run / name).read_bytes() for name in names]
    assert all(attributes["alt"] for attributes in Page(run / "report.html").all("img"))


@pytest.mark.parametrize(
    "place", ["class", "note", "path", "command", "root", "environment", "setting", "method", "finding"]
)
def test_every_name_is_escaped(run: Path, place: str) -> None:
    evil = "</td></style></pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    match place:
        case "class":
            labels = np.array([0, 1])
            put(run / "test" / "metrics.json", evaluate(labels, np.eye(2)[labels], ["a", evil]).to_dict())
            change(run / "data_report.json", counts={evil: {evil: 3}})
        case "note":
            change(run / "data_report.json", notes=[evil])
        case "path":
            change(run / "data_report.json", skipped=[{"path": evil, "reason": evil}])
        case "command":
            (run / "command.txt").write_text(evil, encoding="utf-8")
        case "root":
            change(run / "data_report.json", root=evil)
        case "method":
            change(run / "data_report.json", method=evil)
        case "finding":
            change(run / "data_report.json", audit={"findings": [evil]})
        case "environment":
            put(run / "env.json", {evil: evil})
        case "setting":
            change(run / "config.json", engine=evil, training={"recipe": evil, evil: [evil]})
    page = Page(write_report(run))
    assert evil in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.all("img")) == 11
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert re.search(r"(?<!\\)<", card) is None and evil not in card


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("test", "no test results"),
        ("explain", "no squeeze-and-excitation"),
        ("curves.png", "curves.png was not drawn"),
        ("test/confusion.png", "test/confusion.png was not drawn"),
        ("data_report.json", "cannot say what the network was trained on"),
        ("env.json", "environment was not recorded"),
        ("command.txt", "command was not recorded"),
    ],
)
def test_a_missing_piece_becomes_a_sentence(run: Path, gone: str, sentence: str) -> None:
    assert sentence not in Page(write_report(run)).text
    shutil.rmtree(run / gone) if (run / gone).is_dir() else (run / gone).unlink()
    assert sentence in Page(write_report(run)).text


def test_a_folder_with_nothing_but_its_settings_still_has_a_page(run: Path) -> None:
    for entry in run.iterdir():
        if entry.name != "config.json":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    page = Page(write_report(run))
    assert page.all("img") == []
    assert "1,234,567 parameters" in page.text


def test_undefined_figures_are_shown_as_such(run: Path) -> None:
    put(run / "test" / "metrics.json", evaluate(np.array([]), np.zeros((0, 2)), ["a", "b"]).to_dict())
    page = Page(write_report(run))
    assert page.text.count("n/a") >= 3 + 2 * 4
    assert "nan" not in page.text.lower().split()


def test_an_epoch_that_nothing_chose_is_not_called_chosen(run: Path) -> None:
    assert "chosen by validation accuracy (0.877)" in Page(write_report(run)).text
    change(run / "config.json", best_score=None)
    assert "epoch 2. There was no validation figure" in Page(write_report(run)).text


def _folder_without_config(run: Path) -> Path:
    (run / "config.json").unlink()
    return run


def _truncate(name: str) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])
        return run / name

    return plant


def _replace(name: str, content: bytes) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        (run / name).write_bytes(content)
        return run / name

    return plant


def _change(name: str, **values: object) -> Callable[[Path], Path]:
    def plant(run: Path) -> Path:
        change(run / name, **values)
        return run / name

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        _folder_without_config,
        _truncate("config.json"),
        _truncate("env.json"),
        _truncate("data_report.json"),
        _truncate("test/metrics.json"),
        _truncate("curves.png"),
        _truncate("test/confusion.png"),
        _truncate("explain/se_stage2.png"),
        _replace("curves.png", b""),
        _replace("curves.png", b"GIF89a not a PNG"),
        _replace("env.json", b"[1, 2]"),
        _replace("env.json", b"\xff\xfe"),
        _replace("env.json", b"[" * 100_000),
        _replace("command.txt", b"\xff"),
        _change("config.json", model=None),
        _change("config.json", training=[1]),
        _change("config.json", classes="abc"),
        _change("data_report.json", counts=[]),
        _change("data_report.json", audit=None),
        _change("data_report.json", audit={"findings": "many"}),
        _change("data_report.json", counts={"train": 5}),
        _change("data_report.json", counts={"train": {"a": "many"}}),
        _change("data_report.json", skipped=["a.png"]),
        _change("data_report.json", notes=None),
        _change("test/metrics.json", accuracy="high"),
        _change("test/metrics.json", per_class=None),
        _change("test/calibrated.json", before=None),
        _change("test/calibrated.json", temperature="warm"),
        _change("test/calibrated.json", points=[{"name": "a"}]),
        _change("explain/faithfulness.json", cam=[]),
        _change("explain/faithfulness.json", verdict=3),
        _truncate("test/calibrated.json"),
        _replace("openings.csv", b"\xff\xfe"),
    ],
)
def test_a_broken_piece_is_named_and_the_old_page_stays(run: Path, plant: Callable[[Path], Path]) -> None:
    before = write_report(run).read_bytes()
    broken = plant(run)
    with pytest.raises(ReportError) as caught:
        write_report(run)
    assert str(broken) in str(caught.value)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.part"))


def test_a_picture_with_any_bytes_changed_is_named_or_shown(run: Path) -> None:
    good = (run / "curves.png").read_bytes()
    chance = random.Random(0)
    named = 0
    for attempt in range(200):
        content = bytearray(good)
        for _ in range(chance.choice([1, 3, 30])):
            content[chance.randrange(len(content) if attempt % 2 else 200)] = chance.randrange(256)
        (run / "curves.png").write_bytes(content)
        try:
            write_report(run)
        except ReportError as error:
            named += "curves.png" in str(error)
        else:
            named += "curves.png was not drawn" not in (run / "report.html").read_text(encoding="utf-8")
    assert named == 200


def test_a_picture_of_another_kind_is_named(run: Path) -> None:
    Image.new("RGB", (8, 8)).save(run / "curves.png", format="JPEG")
    with pytest.raises(ReportError, match=r"curves\.png holds a picture of another kind"):
        write_report(run)


def test_pictures_beyond_the_limit_are_left_out_with_a_sentence(run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), dtype=np.uint8)
    for number in (1, 2):
        Image.fromarray(noise).save(run / "explain" / f"se_stage{number}.png")
    page = Page(write_report(run))
    assert (run / "report.html").stat().st_size < 5_000_000
    assert "explain/se_stage1.png in the run folder is too large" in page.text
    assert len(page.all("img")) == 9


def test_long_lists_are_cut_and_counted(run: Path) -> None:
    change(
        run / "data_report.json",
        skipped=[{"path": f"{number}.png", "reason": "broken"} for number in range(5000)],
        notes=["note"] * 201,
    )
    page = Page(write_report(run))
    assert "And 4800 more" in page.text
    assert "And 1 more" in page.text
    assert "199.png" in page.text
    assert "200.png" not in page.text


def test_a_name_that_is_no_unicode_is_shown_with_escapes(run: Path) -> None:
    change(run / "data_report.json", notes=["bad \udcfc name"])
    assert "bad \\udcfc name" in Page(write_report(run)).text


def test_the_same_folder_gives_the_same_bytes(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_twins_are_told_and_shown_and_results_without_them_stand_beside_those_with_them(run: Path) -> None:
    labels = np.repeat([0, 1, 2], 10)
    scores = np.full((30, 3), 0.2) + 0.4 * np.eye(3)[labels]
    scores[:4] = scores[:4, ::-1]
    clean = evaluate(labels[4:], scores[4:], CLASSES)
    put(run / "test" / "metrics.json", replace(evaluate(labels, scores, CLASSES), without_leaked=clean).to_dict())
    put(run / "test" / "medmnist.json", {"ACC": 0.875, "AUC": 0.9})
    assert (
        "the same pixels" in Page(write_report(run)).text
        and "How to read this: each row is one picture twice" not in Page(write_report(run)).text
    )
    (run / "audit").mkdir()
    shutil.copy(run / "curves.png", run / "audit" / "twins.png")
    page = Page(write_report(run))
    assert (
        "4 of 30 test images have a twin, or their patient, in train or val. Without them: balanced accuracy 1.000"
        in page.text
    )
    assert "ACC 0.875, AUC 0.900" in page.text
    assert (
        "How to read this: each row is one picture twice" in page.text
        and "How they were split: split by patient <b>1</b>." in page.text
    )
