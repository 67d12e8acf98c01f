"""The page and the card of a pretraining: the answer first, what next, and nothing that does not
hold."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import change, put
from html_page import Page
from PIL import Image

from fuzz_pretraining import whole_pretraining
from medmambase import run_folder
from medmambase.config import ModelConfig, Preprocessing
from medmambase.evaluation.report.pretraining_page import write_pretraining_page
from medmambase.evaluation.report.run_files import ReportError
from medmambase.pretraining.settings import PretrainSettings

AREAS = {"cyst": (0.9, 0.8, 0.95), "stone": (0.6, 0.4, 0.8), "text": (None, None, None)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished pretraining on drawn pictures, made without one."""
    config = {
        "model": ModelConfig().to_dict(), "pretraining": PretrainSettings(drawn=True).deciding(),
        "preprocessing": Preprocessing().to_dict(), "device": "cpu", "engine": "cpu", "precision": "float32",
        "parameters": 1234, "start": "none: new weights",
    }  # fmt: skip  # a table
    put(tmp_path / run_folder.DESCRIPTION, config)
    results = {
        "learned": ["64 drawn pictures (seed 0)"], "sha256": "ab12", "half": False, "images_seen": 0,
        "unrecorded": False, "held_out": 20, "losses": {"structures": 0.3, "echo": 0.125},
        "first_losses": {"structures": 0.4, "echo": 0.25}, "mean_auc": 0.75, "mean_low": 0.625, "mean_high": 0.875,
        "structures": [
            {"name": name, "auc": auc, "low": low, "high": high, "present": 5, "pictures": 20}
            for name, (auc, low, high) in AREAS.items()
        ],
    }  # fmt: skip  # a table
    put(tmp_path / run_folder.PRETRAINING, results)
    for name in (run_folder.CURVES, run_folder.PICTURES):
        Image.fromarray(np.zeros((20, 760), np.uint8)).save(tmp_path / name)
    return tmp_path


def of_images(run: Path, **values: Any) -> None:
    """Make it a pretraining on images."""
    change(run / run_folder.DESCRIPTION, pretraining=PretrainSettings(data="x").deciding())
    facts = {"losses": {"picture": 0.2}, "first_losses": {"picture": 0.4}, "mean_auc": None, "structures": []}
    change(run / run_folder.PRETRAINING, images_seen=21, held_out=1, **facts | values)


def test_the_page_answers_first_and_every_link_leads_to_its_place(run: Path) -> None:
    page = Page(write_pretraining_page(run))
    source = (run / run_folder.REPORT).read_text(encoding="utf-8")
    places = ["<nav", 'class="cards"', 'class="verdict"', 'id="next"', 'id="learned"', 'id="figures"']
    found = [source.index(place) for place in [*places, 'id="pictures"', 'id="settings"', 'id="glossary"']]
    assert found == sorted(found)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = {(attributes["href"] or "") for attributes in page.all("a")}
    assert len(ids) == len(set(ids)) and len(links) >= 7 and links <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert "mean AUC of the structures0.7500.625\u20130.875guessing: 0.500" in page.text
    assert "loss: echo0.125at first: 0.250" in page.text
    said = "1 of 2 structures is found better than by guessing: the 95 % interval of the AUC lies above 0.5."
    assert said in page.text and said in (run / run_folder.MODEL_CARD).read_text(encoding="utf-8")
    assert 'medmambase-compare "runs/anew-*" --against "runs/started-*"' in page.text
    assert "--name anew --start none --model nano\n" in source and "SIZE" not in source
    change(run / run_folder.DESCRIPTION, start="w.safetensors (SHA-256 00)")
    assert "--start none --model SIZE\n" in write_pretraining_page(run).read_text(encoding="utf-8")


def test_nothing_on_the_page_is_wider_than_a_phone(run: Path) -> None:
    write_pretraining_page(run)
    source = (run / run_folder.REPORT).read_text(encoding="utf-8")
    tables = re.findall(r'<div class="scroll">\s*<table>(.*?)</table>', source, re.DOTALL)
    rows = [row for table in tables for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
    assert len(tables) == source.count("<table") >= 6 and max(len(re.findall("<t[hd]", row)) for row in rows) == 3
    assert source.count('class="wide"') == source.count("scroll it sideways") == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "On pictures that were held out the loss has fallen since it was first measured."),
        (
            {"losses": {"picture": 0.4}},
            "the loss has not fallen since it was first measured: it has learned too little",
        ),
        (
            {"losses": {"echo": 1.0, "edges": 3.0}, "first_losses": {"echo": 2.0, "edges": 2.0}},
            "the loss of echo has fallen, that of edges has not.",
        ),
        (
            {"structures": [{"name": "gas", "auc": 0.5, "low": 0.4, "high": 0.6, "present": 1, "pictures": 2}]},
            "None of 1 structure is found better than by guessing: it has learned too little.",
        ),
    ],
)
def test_one_sentence_says_whether_anything_was_learned(run: Path, values: dict[str, Any], sentence: str) -> None:
    of_images(run, **values)
    assert sentence in Page(write_pretraining_page(run)).text


def test_what_a_pretraining_does_not_use_or_has_not_is_not_on_its_page(run: Path) -> None:
    drawn = Page(write_pretraining_page(run)).text
    assert "speckleTrue" in drawn and "noise0.3" not in drawn and "num_classes" not in drawn
    of_images(run)
    images = Page(write_pretraining_page(run)).text
    assert "noise0.3" in images and "speckleTrue" not in images
    for text in (images, (run / run_folder.MODEL_CARD).read_text(encoding="utf-8")):
        assert "1 of them was held out for the figures below." in text
    assert "Images that they have seen must not be in the validation or test split of DATA" in images


def test_figures_of_before_are_shown_without_an_interval_and_a_damaged_picture_is_named(run: Path) -> None:
    kept = json.loads((run / run_folder.PRETRAINING).read_text(encoding="utf-8"))
    put(run / run_folder.PRETRAINING, {name: kept[name] for name in kept if name not in ("mean_low", "mean_high")})
    assert "mean AUC of the structures0.750guessing: 0.500" in Page(write_pretraining_page(run)).text
    (run / run_folder.CURVES).write_bytes(b"no picture")
    with pytest.raises(ReportError, match=r"curves\.png is not a readable PNG picture"):
        write_pretraining_page(run)


def test_a_page_is_not_made_from_a_damaged_list_of_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = whole_pretraining(tmp_path)
    assert "x.png: no picture" in write_pretraining_page(folder).read_text(encoding="utf-8")
    for skipped in (3, ["x.png"], [{"path": 1}]):
        run_folder.write_json(folder / run_folder.DATA_REPORT, {"skipped": skipped})
        with pytest.raises(ReportError, match=r"data_report\.json: data_report\.skipped"):
            write_pretraining_page(folder)
