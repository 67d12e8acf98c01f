"""The page of a run: complete, offline, escaped, small, and a sentence where something is
missing."""

import base64
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from finished_run import CLASSES, change, finished_run, put
from house_source import ROOT
from html_page import Page
from PIL import Image

from medmambase import run_folder
from medmambase.evaluation.metrics import evaluate
from medmambase.evaluation.report import report
from medmambase.evaluation.report.glossary import GLOSSARY
from medmambase.evaluation.report.report import write_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def test_the_page_tells_what_was_trained_on_what_and_how_well(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    for name, key, guess in (
        ("balanced accuracy", "balanced_accuracy", 1 / 3), ("AUC (macro)", "auc", 0.5), ("accuracy", "accuracy", 0.5)
    ):  # fmt: skip  # a table
        sure = metrics["intervals"][key]
        assert f"{name}{metrics[key]:.3f}{sure['low']:.3f}\u2013{sure['high']:.3f}guessing: {guess:.3f}" in page.text
    assert "Better than guessing by" in page.text
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
        f"fitted on the validation images: {calibrated['temperature']:.3f}",
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
    assert len(page.all("img")) == 14


def test_the_page_is_one_file_without_scripts_or_outside_references(run: Path) -> None:
    page = Page(write_report(run))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "form", "base", "i", "b"})
    addresses = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "data", "action"}
    ]
    assert sum(address.startswith("data:") for address in addresses) == 15
    assert all(address.startswith(("data:", "#")) for address in addresses)
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
    names = [*(f"test/{name}.png" for name in ("confusion", "roc", "pr", "reliability", "mistakes"))]
    names += [*(f"test/by_patient/{name}.png" for name in ("confusion", "roc", "pr")), "curves.png"]
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
    assert len(page.all("img")) == (11 if place == "class" else 14)  # whose figures are those of images alone
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert re.search(r"(?<!\\)<", card) is None and evil not in card


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("test", "no test results"),
        ("explain", "The pictures were not drawn."),
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
    change(run / "config.json", selected_by="auc")
    page = Page(write_report(run)).text
    assert "chosen by validation AUC (0.877)" in page and "Epoch 2, by validation AUC." in page
    change(run / "config.json", best_score=None)
    assert "epoch 2. There was no validation figure" in Page(write_report(run)).text


def test_pictures_beyond_the_limit_are_left_out_with_a_sentence(run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), dtype=np.uint8)
    for number in (1, 2):
        Image.fromarray(noise).save(run / "explain" / f"se_stage{number}.png")
    page = Page(write_report(run))
    assert (run / "report.html").stat().st_size < 5_000_000
    assert "explain/se_stage1.png in the run folder is too large" in page.text
    assert len(page.all("img")) == 12


def test_pictures_share_the_room_that_there_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(run / "curves.png", run / name)
    monkeypatch.setattr(report, "PICTURE_BYTES", 2 * (run / "a.png").stat().st_size)  # of base64: more than one
    shown, left_out = report._album(run, ["a.png", "b.png"])
    assert (list(shown), left_out) == (["a.png"], ["b.png"])


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


@pytest.mark.parametrize("name", [run_folder.DUPLICATES, run_folder.DUPLICATES_BEFORE])
def test_duplicates_are_told_and_shown_and_results_without_them_stand_beside_those_with_them(
    run: Path, name: str
) -> None:
    labels = np.repeat([0, 1, 2], 10)
    scores = np.full((30, 3), 0.2) + 0.4 * np.eye(3)[labels]
    scores[:4] = scores[:4, ::-1]
    clean = evaluate(labels[4:], scores[4:], CLASSES)
    put(run / "test" / "metrics.json", replace(evaluate(labels, scores, CLASSES), without_leaked=clean).to_dict())
    put(run / "test" / "medmnist.json", {"ACC": 0.875, "AUC": 0.9})
    assert (
        "the same pixels" in Page(write_report(run)).text
        and "How to read this: each row is one picture twice" not in Page(write_report(run)).text
        and "details" not in {tag for tag, _ in Page(write_report(run)).tags}
    )
    (run / "audit").mkdir()
    shutil.copy(run / "curves.png", run / "audit" / name)
    page = Page(write_report(run))
    assert "4 of 30 test images are left out here and in the tables" in page.text
    assert "With them the balanced accuracy is 0.867: see" in page.text  # which is lower, so not too good
    assert "accuracy1.000guessing: 0.385" in page.text  # 10 of 26, and the image counts are those without leaked ones
    assert "balanced accuracy1.000n/a0.867" in page.text  # the table: without, with
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "- balanced accuracy 1.000; guessing gives 0.333" in card
    assert "4 of 30 test images are left out" in card and "With them: balanced accuracy 0.867" in card
    assert "Balanced accuracy 1.000 on 26 test images that are not leaked." in page.text
    (fold,) = page.all("details")
    assert "open" not in fold
    assert "ACC 0.875, AUC 0.900" in page.text
    assert (
        "How to read this: each row is one picture twice" in page.text
        and "How they were split: split by patient <b>1</b>." in page.text
    )


def test_the_page_answers_first_and_every_link_leads_to_its_place(run: Path) -> None:
    write_report(run)
    source = (run / "report.html").read_text(encoding="utf-8")
    places = ["<nav", 'class="cards"', "Better than guessing", 'id="results"', 'id="mistakes"', 'id="maps"']
    parts = ("training", "data", "gates", "next", "settings", "reviewers", "glossary")
    places += [f'id="{part}"' for part in parts]
    found = [source.index(place) for place in places]
    assert found == sorted(found)
    page = Page(run / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {(attributes["href"] or "") for attributes in page.all("a")}
    assert len(wanted) >= 20 and wanted <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_nothing_on_the_page_is_wider_than_a_phone(run: Path) -> None:
    """Each table has a box in which it is scrolled; one of many columns becomes a list with labels.
    A wide picture says that it is scrolled."""
    write_report(run)
    source = (run / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r'<div class="scroll( fold)?">\s*<table[^>]*>(.*?)</table>', source, re.DOTALL)
    assert len(tables) == source.count("<table") >= 8
    for folded, table in tables:
        rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert folded or max(len(re.findall("<t[hd]", row)) for row in rows) <= 4
        cells = re.findall(r"<td([^>]*)>([^<]*)", table)
        assert not folded or all("data-label" in one or "whole" in one or not text.strip() for one, text in cells)
    assert sum(bool(folded) for folded, _ in tables) == 7
    assert source.count('class="wide"') == source.count("scroll it sideways") > 0
    assert re.search(r'class="wide" src="[^"]*" width="\d+" height="\d+" alt="ROC', source)  # with a legend beside it
    for style in (
        "img { display: block; max-width: 100%",
        "figure { margin: 1rem 0; overflow-x: auto",
        ".fold thead { d",
        ".fold td[data-label]::before { content: attr(data-label); display: block",
        ".hint { display: block",
    ):
        assert style in source


def test_a_class_that_no_font_can_draw_is_named_where_pictures_show_its_number(run: Path) -> None:
    assert "is shown by its number" not in Page(write_report(run)).text
    labels = np.array([0, 1, 1])
    put(run / "test" / "metrics.json", evaluate(labels, np.eye(2)[labels], ["a", "\U00013080"]).to_dict())
    assert "Class 2, \U00013080, is shown by its number" in Page(write_report(run)).text


def test_a_network_without_gates_says_so(run: Path) -> None:
    shutil.rmtree(run / "explain")
    model = json.loads((run / "config.json").read_text(encoding="utf-8"))["model"]
    change(run / "config.json", model=model | {"block": "medmamba"})
    assert "This network was trained without squeeze-and-excitation." in Page(write_report(run)).text


def test_the_card_escapes_marks_and_nothing_else(run: Path) -> None:
    change(run / "data_report.json", root="Breast images-001 (x86_64) a*b* _c_ [d](e) `f` g|h ~~i~~ &amp; & j")
    write_report(run)
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    escaped = r"Breast images-001 (x86_64) a\*b\* \_c\_ \[d\](e) \`f\` g\|h \~\~i\~\~ \&amp; & j"
    assert f"Images from {escaped}." in card


def test_docs_explain_the_words_that_the_report_explains() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert len(GLOSSARY) >= 20
    told = re.findall(r"^\*\*(.+?)\.\*\*\n((?:.+\n)+)", page, re.MULTILINE)
    assert [(word, " ".join(meaning.split())) for word, meaning in told] == list(GLOSSARY.values())
