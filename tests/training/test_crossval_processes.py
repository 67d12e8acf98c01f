"""Folds in processes of their own: some at a time, each told what it needs, and asked to end when
the others' process does. A small program stands in the place of the training."""

import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE

from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_images, read_manifest
from medmambase.data.manifest.splits import complete, write_splits
from medmambase.settings import Settings, resolve
from medmambase.training import run as runs
from medmambase.training.crossval import fold as program
from medmambase.training.crossval import processes
from medmambase.training.crossval.processes import places, train_folds

PROGRAM = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "told.json").write_text(json.dumps(sys.argv[2:]), encoding="utf-8")
if folder.name == "fold-1":
    print("much before", file=sys.stderr)
    raise OSError("data: ü cannot be read")
if folder.name == "fold-2":
    sys.exit(7)
if (folder / "wait").exists():
    assert os.read(0, 1) == b""
    (folder / "ended").touch()
"""


@pytest.fixture
def folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    (tmp_path / "fold_that_stands_in.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(processes, "FOLD", "fold_that_stands_in")
    found = [tmp_path / "läufe 1" / f"fold-{number}" for number in range(4)]
    for fold in found:
        fold.mkdir(parents=True)
    return found


def settings(**given: object) -> Settings:
    return resolve({"data": "scans ü", "folds": 4, **given})


def test_a_fold_that_fails_is_told_with_its_last_line_and_the_others_go_on(folds: list[Path]) -> None:
    ended: dict[str, str | None] = {}
    train_folds(
        folds, settings(cache="disk"), (None, "cuda:1"), "the command",
        lambda fold, problem: ended.setdefault(fold.name, problem),
    )  # fmt: skip  # one argument list
    assert ended == {
        "fold-0": None,
        "fold-1": "data: ü cannot be read",
        "fold-2": "its process ended with exit code 7",
        "fold-3": None,
    }
    told = [json.loads((fold / "told.json").read_text(encoding="utf-8")) for fold in folds]
    changed = [json.loads(one[0]) for one in told]
    assert {one[1] for one in told} == {"the command"}
    assert all(one["data"] == "scans ü" and one["cache"] == "disk" for one in changed)
    assert [one["device"] for one in changed[:2]] == [None, "cuda:1"]


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (1, "{0}medmambase.b.CError: out of range\nSet a variable to see more.\n", "out of range"),
        (1, "{0}KeyError: 1\n\nDuring handling of this, another\n\n{0}OSError: disk\nat exit: a leak", "disk"),
        (1, "{0}medmambase.DataError: x\x1b[2J.png: no picture", "x [2J.png: no picture"),
        (1, "{0}OSError: \n", "OSError:"),
        (3, "a warning\nthe end\n", "the end"),
        (3, "", "its process ended with exit code 3"),
        (0, "a warning\n", None),
    ],
)
def test_the_reason_is_the_message_of_the_last_error_whatever_is_said_after_it(
    code: int, said: str, told: str | None
) -> None:
    text = said.format("Traceback (most recent call last):\n  File one, line 1\n    raise One: two\n")
    process = SimpleNamespace(returncode=code)
    assert processes._Work(Path(), 0, process, io.BytesIO(text.encode())).problem() == told


@pytest.mark.parametrize("said", ["KeyError: 'x'", "AssertionError", "a.b.CudaError: out of range"])
def test_of_an_error_that_nobody_expects_the_fold_keeps_where_it_came_from(said: str, tmp_path: Path) -> None:
    text = (
        f'Traceback (most recent call last):\n  File "/home/anna/m/loop.py", line 3, in train\n    a\n{said}\nMore.\n'
    )
    work = processes._Work(tmp_path, 0, SimpleNamespace(returncode=1), io.BytesIO(text.encode()))
    kept = tmp_path / "failure.log"
    assert work.problem() == f"{said} ({kept} says where in the program)"
    written = kept.read_text(encoding="utf-8")
    assert "line 3, in train" in written and f"{said}\n" in written and "anna" not in written


@pytest.mark.parametrize(
    "said", ["torch.OutOfMemoryError: CUDA out of memory. Tried", "RuntimeError: can't allocate memory", "MemoryError"]
)
def test_a_fold_that_lacks_memory_says_what_needs_less(said: str, tmp_path: Path) -> None:
    text = f"Traceback (most recent call last):\n  a\n{said}\n"
    told = processes._Work(tmp_path, 0, SimpleNamespace(returncode=1), io.BytesIO(text.encode())).problem()
    assert told and told.startswith("not enough memory (") and "fewer --jobs need less, or halve --batch-size" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_a_fold_that_the_system_killed_says_so() -> None:
    process = SimpleNamespace(returncode=-signal.SIGKILL)
    told = processes._Work(Path(), 0, process, io.BytesIO(b"a warning")).problem()
    assert told and "the system killed its process" in told and "fewer --jobs" in told


def test_whatever_ends_the_first_process_the_others_are_asked_to_end_and_waited_for(
    folds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for fold in folds:
        (fold / "wait").touch()
    at_once: list[int] = []

    def sleep(seconds: float) -> None:
        at_once.append(sum((fold / "told.json").is_file() for fold in folds))
        if at_once[-1] == 2:
            raise KeyboardInterrupt
        time.sleep(seconds)

    monkeypatch.setattr(processes, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        train_folds([folds[0], folds[3], folds[2]], settings(), (None, None), "", lambda fold, problem: None)
    assert [(fold / "ended").is_file() for fold in folds] == [True, False, False, True]
    assert max(at_once) == 2 and not (folds[2] / "told.json").exists()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("ends", [True, False])
def test_a_fold_ends_as_one_that_is_asked_to_when_its_input_does(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def read(*_: object) -> bytes:
        if not ends:
            threading.Event().wait(PATIENCE)
        return b""

    @contextmanager
    def started(*_: object, patience: float) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE
        while ends and time.monotonic() < deadline:
            time.sleep(0.01)
        yield

    monkeypatch.setattr(program, "own_input", lambda: 0)
    monkeypatch.setattr(program, "os", SimpleNamespace(read=read))
    monkeypatch.setattr(program, "of_run", lambda *_: None)
    monkeypatch.setattr(program, "started", started)
    monkeypatch.setattr(program, "train_run", lambda run, command, *_: trained.append(command))
    assert program.main([str(tmp_path), "{}", "the command"]) == (130 if ends else 0)
    assert trained == ([] if ends else ["the command"])


def test_what_a_fold_loads_and_starts_finds_an_empty_input() -> None:
    """What is in the pipe is not read by others."""
    before, (ours, theirs) = os.dup(0), os.pipe()
    try:
        os.dup2(ours, 0)
        taken = program.own_input()
        os.write(theirs, b"x")
        assert os.read(0, 1) == b""
        assert os.read(taken, 1) == b"x"
        os.close(taken)
    finally:
        os.dup2(before, 0)
        for file in (before, ours, theirs):
            os.close(file)


def test_a_fold_has_the_images_of_its_table_however_the_data_changed_and_without_one_those_of_before(
    tmp_path: Path,
) -> None:
    data, fold = tmp_path / "scans ü", tmp_path / "fold-1"
    for name in ("cyst", "solid"):
        (data / name).mkdir(parents=True)
        for number in range(12):
            (data / name / f" {number}.png").touch()
    fold.mkdir()
    given = replace(settings(), data=str(data), runs=str(tmp_path / "runs"), folds=4, fold=1)
    before = runs._manifest(given, no_progress, fold)
    assert before == runs._manifest(given, no_progress, None) == read_manifest(data, seed=0, folds=4, fold=1)
    cut = complete(read_images(data), folds=4, fold=1, val_in_turn=True)
    assert {sample.name for sample in cut.split("val")} != {sample.name for sample in before.split("val")}
    write_splits(fold / "fold_splits.csv", cut)
    (data / "cyst" / "new.png").touch()
    found = runs._manifest(replace(given, keep_duplicates_together=True), no_progress, fold)
    assert found.samples == cut.samples
    assert found.method == "fold 1 of 4 of a cross-validation, using the splits of fold_splits.csv"
    assert [note for note in found.notes if "1 image is not named in fold_splits.csv: left out" in note]
    for gone, said in (
        ("val", r"fold_splits\.csv: names no image of val, and a fold has some; restore it"),
        ("cyst", r"no images of cyst.*; these images are divided by .*fold_splits\.csv: if it was ch"),
    ):
        kept = [s for s in cut.samples if s.split != gone and (s.split, cut.classes[s.label]) != ("train", gone)]
        write_splits(fold / "fold_splits.csv", replace(cut, samples=tuple(kept)))
        with pytest.raises(DataError, match=said):
            runs._manifest(given, no_progress, fold)


def test_folds_share_processors_or_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cpu, gpu, plain = torch.device("cpu"), torch.device("cuda"), settings()
    chosen = replace(plain, device="cuda:1")
    assert places(plain, cpu, None) == [None] * 3 and places(plain, cpu, 9) == [None] * 4
    assert places(plain, gpu, None) == ["cuda:0", "cuda:1"] and places(chosen, gpu, None) == [None]
    assert places(plain, gpu, 3) == ["cuda:0", "cuda:1", "cuda:0"] and places(chosen, gpu, 2) == [None] * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert places(plain, gpu, None) == [None]
