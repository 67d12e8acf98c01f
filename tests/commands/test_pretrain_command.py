"""``medmambase-pretrain``: what it prints, and how it ends."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import interrupt_at
from PIL import Image

from medmambase import MedMambaSE, ModelConfig
from medmambase.commands import pretrain
from medmambase.commands.next_steps import pasted
from medmambase.config import PRESETS
from medmambase.model import starting
from medmambase.pretraining import unlabelled
from medmambase.pretraining.settings import PretrainSettings

pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that takes half a second."""
    for name in ("curves", "pictures"):
        monkeypatch.setattr(f"medmambase.evaluation.report.pretraining_figures.{name}", lambda *_: None)
    config = ModelConfig(dims=(4, 8), depths=(1, 1), state=2)
    network = MedMambaSE(config, features_only=True)
    starting.write(tmp_path / "tiny.safetensors", network.state_dict(), config, [], [])
    size = ["--image-size", "32", "--batch-size", "2", "--held-out", "2", "--steps", "2", "--workers", "0"]
    return ["--start", str(tmp_path / "tiny.safetensors"), "--runs", str(tmp_path / "runs"), "--device", "cpu", *size]


def test_drawn_pictures_are_learned_from_and_the_next_command_is_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--drawn", *words, "--targets", "echo", "--scenes", "heart"]
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert pretrain.main(command) == 130
    run = tmp_path / "runs" / "pretrain-drawn-001"
    said = capsys.readouterr().err
    assert f"interrupted: saved up to step 1; continue with medmambase-pretrain --resume {run}" in said
    assert pretrain.main([*command, "--resume", "auto"]) == 0
    said = capsys.readouterr().out
    assert "resuming after step 1 of 2" in said and "step      2  echo " in said
    assert f"medmambase-train DATA --start {run}" in said and (run / "weights.safetensors").is_file()
    assert pretrain.main([*command, "--resume", "auto"]) == 0
    assert "is finished: nothing is left to do" in capsys.readouterr().out
    assert (run / "command.txt").read_text(encoding="utf-8").startswith("medmambase-pretrain --drawn --start tiny.safe")


def test_images_that_nothing_was_left_out_of_are_not_proposed_to_train_and_test_on(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "all/a/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "splits.csv").write_text("path,label,split\ntrain/a/1.png,a,train\ntrain/b/2.png,b,test\n", "utf-8")

    def told(data: str | None, splits: str | None = None) -> list[str]:
        settings = PretrainSettings(data=data, drawn=data is None, splits=splits)
        manifest = unlabelled.find(settings) if data else None
        return [
            f"{words}: {line}" for words, line in pretrain._steps(settings, Path("w"), manifest, settings.network())
        ]

    whole, table = str(tmp_path), str(tmp_path / "splits.csv")
    assert told(None)[0] == "train from these weights: medmambase-train DATA --start w --image-size 96 --name started"
    assert pasted("medmambase-train", whole, "--start", "w", "--image-size", 96, "--name", "started") in told(whole)[0]
    assert (
        pasted(whole, "--splits", table, "--start", "none", "--model", "nano", "--image-size", 96, "--name", "anew")
        in told(whole, table)[1]
    )
    first, second, third = told(str(tmp_path / "all"))
    assert first.startswith("train from these weights, on other images in val and test than these: medmambase-train D")
    assert second == "train from none: medmambase-train DATA --start none --model nano --image-size 96 --name anew"
    assert third.endswith(pasted("medmambase-compare", "runs/anew-*", "--against", "runs/started-*"))


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        (PRESETS["small"], ("--model", "small"), ""),
        (replace(PRESETS["small"], se_hidden=PRESETS["small"].gate_widths(), odd="crop"), ("--model", "small"), ""),
        (replace(PRESETS["micro"], depths=(1, 1, 2, 1)), ("--model", "micro"), "with depths = [1, 1, 2, 1] in a file"),
        (ModelConfig(dims=(4, 8), depths=(1, 1)), (), "no --model has the shape"),
        (replace(PRESETS["nano"], block="medmamba"), (), "no --model has the shape"),
        (replace(PRESETS["tiny"], se_hidden_min=64), (), "no --model has the shape"),
    ],
)
def test_a_new_network_to_compare_with_has_the_shape_of_the_weights(
    model: ModelConfig, flags: tuple[str, ...], words: str
) -> None:
    told, found = pretrain._new_network(model)
    assert found == flags and words in told and bool(words) == bool(told)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "give a folder of images, or --drawn"),
        (["--drawn", "--scenes", "hart"], 2, "--scenes has 'hart'; the nearest is 'heart'"),
        (["--drawn", "--image-size", "64,31"], 2, "--image-size has 31; drawn pictures have at least 32 pixels"),
        (
            ["scans", "--image-size", "96,15"],
            2,
            "--image-size has 15; images have at least 16 pixels, since squares of 8",
        ),
        (["absent"], 3, "absent: there is no such file or folder"),
        (["--drawn", "--start", "notes.pth"], 3, "notes.pth: there is no such file or folder"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_made(
    more: list[str], code: int, message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*words, *more]) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("medmambase-pretrain: ") and message in said[0]
    assert not (tmp_path / "runs").exists()


def test_under_torchrun_a_pretraining_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pretrain.main(["--drawn", *words]) == 2
    assert "a pretraining runs in one process: start it without torchrun" in capsys.readouterr().err
