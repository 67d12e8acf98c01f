"""``medmambase-evaluate`` and ``-compare`` on a run: the same figures again; and one line for what
is wrong, of ``-predict`` too."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import rows
from PIL import Image

from medmambase.commands import compare, evaluate, predict
from medmambase.data import phantom
from medmambase.evaluation.predictions import read_predictions


def test_every_recorded_figure_comes_out_of_the_predictions_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in (run / "test").iterdir()} | {
        run / "report.html": (run / "report.html").read_bytes()
    }
    measured = ("predictions.csv", "distances.csv", "mistakes.png")
    recorded = {path: content for path, content in kept.items() if path.name not in measured}
    for path in recorded:
        if path.suffix != ".json":
            path.unlink()
    written = run / "written.json"
    assert evaluate.main([str(run), "--json", str(written)]) == 0
    assert written.read_bytes() == (run / "test" / "metrics.json").read_bytes()
    said = capsys.readouterr().out
    assert "every metric matches the recorded one, to the last digit" in said and "guessing" in said
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
    said = capsys.readouterr().out
    assert "accuracy 0.500" in said and "guessing" in said and "note: the table has no patients" in said
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert (found["per_class"][0]["ppv"], found["intervals"]["accuracy"]["method"]) == (0.5, "Wilson")


def test_the_networks_own_test_images_give_the_predictions_of_the_training_and_are_noted(
    run: Path, images: Path
) -> None:
    written = run / "written.json"
    assert evaluate.main([str(run), str(images), "--device", "cpu", "--json", str(written)]) == 0
    results = run / "evaluations" / f"{images.name}-001"
    assert written.read_bytes() == (results / "metrics.json").read_bytes()
    again, first = (read_predictions(folder / "predictions.csv") for folder in (results, run / "test"))
    assert again.names == first.names and np.abs(again.probabilities - first.probabilities).max() < 1e-5
    assert [row["images"] for row in rows(run / "test_access_log.csv")] == ["6", "6"]


def test_images_that_were_learned_from_are_told_apart_in_a_set_without_splits(
    run: Path, images: Path, tmp_path: Path
) -> None:
    for name in ("brain", "femur"):
        shutil.copytree(images / "train" / name, tmp_path / "other" / name)
    shutil.copy(min((images / "test" / "brain").iterdir()), tmp_path / "other" / "brain" / "unseen.png")
    (tmp_path / "other" / "brain" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "other" / "femur").rename(tmp_path / "other" / "1")
    words = ["--name", "aux", "--class-names", "1=femur"]
    kept = {name: (run / name).read_bytes() for name in ("MODEL_CARD.md", "report.html")}
    assert evaluate.main([str(run), str(tmp_path / "other"), *words]) == 0
    folder = run / "evaluations" / "run-aux-001"
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = " ".join(re.sub("<[^>]*>", "", source).split())
    assert "What was trained in se-001, tested on images of other. For" in page.replace(run.name, "se-001")
    assert "Skipped: brain/broken.png: " in page and "tested on all images: " in page
    assert "the same pixels, or the same patient, as an image in train or val" in page
    assert "No patients are known, so each image counts" in page and "What reviewers ask" not in page
    assert set(re.findall('href="#([^"]*)"', source)) <= set(re.findall('id="([^"]*)"', source))
    pictures = ("confusion", "roc", "pr", "reliability", "mistakes", "answered")
    drawn = sum((folder / f"{name}.png").is_file() for name in pictures)
    assert source.count("<img") == drawn >= 4
    assert kept == {name: (run / name).read_bytes() for name in kept}  # those of the training
    found = read_predictions(folder / "predictions.csv")
    assert [name for name, leaked in zip(found.names, found.leaked, strict=True) if not leaked] == ["brain/unseen.png"]
    assert set(found.classes) == set(phantom.CLASSES)
    assert json.loads((folder / "data_report.json").read_text(encoding="utf-8"))["skipped"][0]["path"].endswith(
        "broken.png"
    )


@pytest.mark.slow
def test_a_network_without_its_run_is_tried_and_has_a_page_too(run: Path, images: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "best", tmp_path / "network"))
    for folder, name in ((alone, "network"), (run / "best", run.name)):
        assert evaluate.main([str(folder), str(images / "test"), "--name", "x", "--device", "cpu"]) == 0
        source = (folder / "evaluations" / "x-001" / "report.html").read_text(encoding="utf-8")
        assert f"What was trained in <code>{name}</code>" in source
        assert ("<h3>Recipe</h3>" in source) == (folder is not alone)


def test_runs_are_compared_one_with_one_and_seeds_with_a_pattern(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(trained / "plain-001"), str(trained / "se-001")]) == 0
    alone = capsys.readouterr().out
    assert (
        "6 test images; intervals at 95 %" in alone
        and re.search(r"No difference can be told from chance|is better than|cannot be said", alone)
        and ["config.toml --split-seed 0 --seed 1" in alone.splitlines()[-2], alone.endswith("--seed 2\n")]
        == [True] * 2
        and "\nA and B differ in: se off / on\n" in alone
        and "the intervals do not include the variation between seeds" in alone
        and "Each side is one set of predictions only, and another training may change the result" in alone
        and "McNemar: correct only in A" in alone
    )
    written = ["--json", str(tmp_path / "c.json"), "-o", str(tmp_path / "c.html")]
    assert compare.main([str(trained / "plain-*"), "--against", str(trained / "se-*"), *written]) == 0
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "plain-001" in page and "se-001, se-002" in page and str(trained) not in page
    said = capsys.readouterr().out
    assert "one side has only one run: its intervals" in said and "\nspread between seeds (standard" in said
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert (found["first"], found["second"]) == (["plain-001"], ["se-001", "se-002"])
    assert found["differ_in"]["se"] == [["off"], ["on"]] and found["differ_in"]["seed"] == [["0"], ["0", "1"]]
    assert found["classes"] == list(phantom.CLASSES) and found["units"]["intervals"] == "images"
    assert found["conclusion"].endswith("compare 3 seeds of each.") and set(found["tests"]) == {
        "figures", "delong", "mcnemar",
    }  # fmt: skip  # one list
    assert found["figures"]["accuracy"]["interval"]["method"] == "bootstrap, and the variance between seeds of B"
    assert "Method of the intervals: bootstrap, and the variance between seeds of B." in page
    assert found["figures"]["accuracy"]["difference"] == pytest.approx(
        np.mean(
            [
                json.loads((trained / f"se-00{i}" / "test" / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
                for i in (1, 2)
            ]
        )
        - json.loads((trained / "plain-001" / "test" / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
    )
    one_seed = [str(trained / name) for name in ("plain-001", "se-001")]  # which differ in another setting
    assert compare.main([*one_seed, "--against", str(trained / "se-002"), *written]) == 0
    assert "\nspread between runs (standard deviation)" in capsys.readouterr().out
    assert "bootstrap, and the variance between runs of A" in (tmp_path / "c.json").read_text(encoding="utf-8")


def test_a_table_is_called_like_its_run_and_patients_are_counted_where_all_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, patients in (("a-001", "pppq"), ("b-001", "pp "), ("c-001", "pp ")):
        (tmp_path / run / "test").mkdir(parents=True)
        lines = [f"{n},x,x,{patient.strip()},0.9,0.1" for n, patient in enumerate(patients.ljust(4))]
        table = "\n".join(["path,label,predicted,patient,prob_x,prob_y", *lines, ""])
        (tmp_path / run / "test" / "predictions.csv").write_text(table, encoding="utf-8", newline="\n")
    monkeypatch.chdir(tmp_path / "b-001")
    for first, said in (("a-001", " of 2 patients"), ("c-001", "")):
        words = [f"../{first}/test/predictions.csv", ".", "--json", "../c.json"]
        assert compare.main(words) == 0
        assert f"\n4 test images{said}; intervals at 95 %, over patients\n" in capsys.readouterr().out
        found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
        assert (found["first"], found["second"]) == ([first], ["b-001"])
        assert found["patients"] == (2 if said else None)


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
            r"does not know class 'brian'; it knows 'abdomen', .*; give --class-names brian=brain, if that is what",
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
        (predict.main, ["RUN", "IMAGES", "--group-regex", "("], 2, "which is not a valid regular expression"),
        (
            predict.main,
            ["RUN", "IMAGES", "--by-patient", "max", "--at", "brain:sensitivity=1"],
            2,
            "leave out --at, or take --by-patient mean",
        ),
        (
            evaluate.main,
            ["RUN", "--class-names", "0=x"],
            2,
            "--class-names is '0=x', but it describes the images of DATA",
        ),
        (
            evaluate.main,
            ["RUN", "--group-column", "x"],
            2,
            "--group-column is 'x', but it describes the images of DATA",
        ),
        (
            evaluate.main,
            ["BAD.csv", "IMAGES", "--group-regex", "x"],
            2,
            "DATA is .*, but BAD.csv is a table of predictions, .*; give the folder of its run, or leave out DATA",
        ),
        (evaluate.main, ["BAD.csv", "--group-regex", "x"], 2, "--group-regex is 'x', but it describes the images"),
        (evaluate.main, ["RUN", "--name", "x"], 2, "--name is 'x', but it names the folder of results on the images"),
        (evaluate.main, ["RUN", "--json", "EMPTY"], 2, "--json EMPTY cannot be written: it is a folder"),
        (evaluate.main, ["RUN", "IMAGES", "--group-regex", "("], 2, "which is not a valid regular expression"),
        (evaluate.main, ["RUN", "STRANGE", "--class-names", "brian=femur"], 2, "calls two classes 'femur'"),
        (compare.main, ["RUN", "RUN", "-o", "EMPTY"], 2, "-o EMPTY cannot be written: it is a folder"),
        (
            predict.main,
            ["RUN", "IMAGES", "-o", "EMPTY"],
            2,
            "-o .*EMPTY cannot be written: it is a folder; give the name of a file",
        ),
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
        (compare.main, ["RUN", "RUN"], 2, "is given twice, and would count as two trainings; give each run once"),
        (compare.main, ["RUN"], 2, "two runs are compared, and 1 was given; give two"),
        (compare.main, ["RUN", "NOWHERE"], 2, "NOWHERE: no run has this name, and nothing matches it"),
        (compare.main, ["RUN", "EMPTY"], 3, r"EMPTY: has no test/predictions\.csv; give the folders of runs"),
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
