"""A training from the weights that come with the package: they are taken, and all files say so."""

import json
from pathlib import Path

import pytest
import torch

import medmambase
from medmambase import packaged, run_folder
from medmambase.model import starting


@pytest.mark.usefixtures("no_pictures")
def test_a_training_from_drawn_weights_takes_them_says_so_and_no_image_was_among_them(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()
    said: list[str] = []
    run = medmambase.train(
        images, start="drawn", image_size=32, batch_size=16, epochs=1, freeze="backbone", ema=0.0, device="cpu",
        runs=tmp_path / "runs", say=said.append,
    )  # fmt: skip  # by idea
    assert sum("give './drawn' for that" in line for line in said) == 1
    came = starting.read(packaged.path_of("nano"))
    config = json.loads((run.folder / run_folder.DESCRIPTION).read_text(encoding="utf-8"))
    assert config["start"] == came.origin.sentence() and "no patient in them" in config["start"]
    for page in (run_folder.REPORT, run_folder.MODEL_CARD, run_folder.LOG):
        text = (run.folder / page).read_text(encoding="utf-8")
        assert "nano-drawn of medmambase, MIT licence" in text and "so there is no patient in them" in text
    settings = (run.folder / run_folder.CONFIG).read_text(encoding="utf-8")
    assert 'start = "drawn"' in settings and 'model = "nano"' in settings
    audit = json.loads((run.folder / run_folder.DATA_REPORT).read_text(encoding="utf-8"))["audit"]
    assert audit["seen"] == []
    kept = starting.read(run.folder / run_folder.BEST)
    assert kept.origin.learned == came.origin.learned
    same = [name for name in came.tensors if name.startswith("stages.") and came.tensors[name].dim() > 1]
    assert len(same) > 50 and all(torch.equal(kept.tensors[name], came.tensors[name].float()) for name in same)
