"""``medmambase-train``: bad input, interrupts and failures end in an exit code and one sentence."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medmambase import MedMambaSE
from medmambase.commands import train
from medmambase.config import PRESETS
from medmambase.data import phantom
from medmambase.evaluation.drawing import FigureError
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report.report import ReportError

QUICK = ["--model", "nano", "--image-size", "32", "--epochs", "2", "--batch-size", "8"]


def empty(folder: Path) -> list[str]:
    folder.mkdir()
    return [str(folder)]


def one_class(folder: Path) -> list[str]:
    (folder / "brain").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "brain" / "a.png")
    return [str(folder)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (lambda folder: [str(folder / "nowhere")], 3, "there is no such file or folder; give a folder"),
        (empty, 3, "no images found"),
        (one_class, 3, "only one class found, 'brain'"),
        (lambda folder: ["--demo", "--lr", "0"], 2, "--lr is '0'; it must be above 0"),
        (lambda folder: ["--demo", "--device", "cuda:7"], 2, "--device cuda:7 cannot be used"),
        (lambda folder: ["--demo", "--device", "toaster"], 2, "--device toaster cannot be used"),
        (lambda folder: ["--demo", "--device", "meta"], 2, "--device meta cannot be used"),
        (lambda folder: ["--demo", "--seed", "-1"], 2, "--seed is '-1'; it must be at least 0"),
        (lambda folder: ["--demo", "--seed", str(10**23)], 2, "--seed is '1000"),
        (lambda folder: ["--demo", "--lr", "inf"], 2, "--lr is 'inf'; it must be a finite number"),
        (lambda folder: ["--demo", "--lr", "nan"], 2, "--lr is 'nan'; it must be a finite number"),
        (
            lambda folder: ["--demo", "--batch-size", "1", "--image-size", "32"],
            2,
            "batch_size is 1, and images of 32 px shrink to maps of 1x1",
        ),
        (lambda folder: [], 2, "give a folder of images, a CSV or a MedMNIST .npz, or --demo"),
        (lambda folder: ["x", "--demo"], 2, "DATA is 'x', but --demo makes its own images"),
        (
            lambda folder: ["x", "--weights", "y.pth", "--model", "nano"],
            2,
            "--model is 'nano', but the weights define the size of their network",
        ),
        (lambda folder: ["--demo", "--model", "huge"], 2, "--model is 'huge'; it must be one of 'nano',"),
        (lambda folder: ["--demo", "--seed", "1e23"], 2, "--seed is '1e23'; it must be a whole number"),
        (lambda folder: ["--demo", "--config", str(folder)], 2, "there is no such file; give a TOML file of settings"),
        (lambda folder: ["--resume", str(folder)], 2, "there is no such folder; give the folder of a run"),
        (
            lambda folder: ["--demo", "--name", "x" * 300],
            4,
            "has 300 letters, too many for a folder; choose a shorter one with --name",
        ),
    ],
)
def test_bad_input_ends_in_a_code_and_a_sentence(
    arguments, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*arguments(tmp_path / "x"), "--runs", str(tmp_path / "runs")]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_an_unknown_flag_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(["--demo", "--epoch", "3"])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == "medmambase-train: there is no flag --epoch; the nearest is --epochs; medmambase-train --help lists "
        "everything\n"
    )


def test_weights_that_are_no_checkpoint_end_in_a_sentence(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.pth").write_text("hello", encoding="utf-8")
    assert train.main([str(images), "--weights", str(tmp_path / "notes.pth"), "--runs", str(tmp_path), *QUICK[2:]]) == 3
    said = capsys.readouterr().err
    assert "notes.pth: is no PyTorch checkpoint of tensors alone, or is damaged" in said and "weights_only" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.pth"]  # nothing was begun


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_network(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(images), "--runs", str(tmp_path), "--name", "nan", "--recipe", "readme", "--lr", "1e30", *QUICK]
    assert train.main(arguments) == 1
    assert "the loss is" in capsys.readouterr().err
    folder = tmp_path / "nan-001"
    if (folder / "last").exists():
        assert all(
            torch.isfinite(t).all()
            for t in load_file(folder / "last" / "model.safetensors").values()
            if t.is_floating_point()
        )


def raising(error: BaseException):
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("make_plan", "interrupted before a run folder was created"),
        ("loop.train", "interrupted before the first step was saved"),
    ],
)
def test_an_interrupt_promises_only_what_there_is(
    place: str,
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(f"medmambase.training.run.{place}", raising(KeyboardInterrupt()))
    assert train.main([str(images), "--runs", str(tmp_path / "runs"), *QUICK]) == 130
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MetricsError("the labels\nare odd"), 3, "the labels are odd"),
        (FigureError("no column"), 4, "no column"),
        (ReportError("not a report"), 4, "not a report"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            4,
            "full-001: No space left on device; free some space there, or choose another place with --runs",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "some/file"),
            4,
            "some/file: No space left on device; free some space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "some/file"), 4, "some/file: Permission denied"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nlong story"),
            4,
            "not enough memory (CUDA out of memory. Tried); halve --batch-size and double",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            4,
            "not enough memory (DefaultCPUAllocator",
        ),
    ],
)
def test_each_failure_has_its_code_and_one_line(
    error: Exception,
    code: int,
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "train_run", raising(error))
    assert train.main([str(images), "--runs", str(tmp_path), "--name", "full"]) == code
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_weights_that_contradict_the_recipe_are_found_before_anything_is_made(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MedMambaSE(replace(PRESETS["nano"], block="notebook")).save(tmp_path / "best")
    assert (
        train.main(
            [str(images), "--weights", str(tmp_path / "best"), "--recipe", "readme", "--runs", str(tmp_path / "runs")]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        "best has blocks of type 'notebook', but --recipe readme trains 'medmambase'" in said
        and "(ultrasound, notebook)" in said
    )
    assert not (tmp_path / "runs").exists()


def test_unreadable_validation_images_are_noted_and_a_diverged_epoch_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = phantom.write_phantom(tmp_path / "data", images_per_class=5, size=32)
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    assert (
        train.main(
            [
                str(data),
                "--runs",
                str(data / "runs"),
                *QUICK,
                "--epochs",
                "1",
                "--batch-size",
                "30",
                "--recipe",
                "readme",
                "--lr",
                "1e25",
            ]
        )
        == 1
    )
    captured = capsys.readouterr()
    assert "can be read: the last epoch is kept as the best" in captured.out
    assert "non-finite after epoch 1" in captured.err or "are non-finite after epoch 1" in captured.err
    assert "no epoch was finished, so no network was saved; try a smaller --lr\n" in captured.err
    notes = json.loads((data / "runs" / "data-001" / "data_report.json").read_text(encoding="utf-8"))["notes"]
    assert sum("images of val can be read" in note for note in notes) == 1
