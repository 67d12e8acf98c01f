"""The tool that damages files finds what it is made to find, and today's readers stand it."""

import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fuzz_inputs
from fuzz_inputs import Job, counted, damaged, outcome, whole_files
from fuzz_readers import KINDS


def whole_image(folder: Path) -> Path:
    """A folder with one image."""
    folder.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "safetensors"])
def test_damaged_files_are_read_or_told_in_a_line(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, 15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_damaged_files_of_each_kind_are_read_or_told_in_a_line(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, 100)


def attack(kind: str, folder: Path, count: int) -> None:
    """Read so many damaged files. Of none anything is let through, and most are refused."""
    if kind == "dicom":
        pytest.importorskip("pydicom")
        pytest.importorskip("imagecodecs")
    job, kinds = Job(kind, 5, None, 0), set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = whole_files(job, folder)
        for number in range(count):
            case, content = damaged(whole, job, number)
            before = case.path.read_bytes()
            case.path.write_bytes(content)
            kinds.add(outcome(case))
            case.path.write_bytes(before)
    assert len(kinds) > 3


def test_a_damaged_file_can_be_made_again_from_its_number(tmp_path: Path) -> None:
    job = Job("csv", 1, None, 0)
    whole = whole_files(job, tmp_path)
    made, again, other = (
        [damaged(whole, one, number)[1] for number in range(200)] for one in (job, job, replace(job, seed=2))
    )
    assert made == again != other
    assert len(set(made)) > 150


@pytest.mark.slow
def test_the_tool_reports_a_process_that_dies_a_file_that_hangs_and_an_error_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_image(tmp_path / "whole")
    asked = ["images", "--images", str(folder), "--count", "12", "--workers", "1", "--keep", str(tmp_path / "kept")]
    assert fuzz_inputs.main(asked) == 0
    assert "12 files in" in capsys.readouterr().out and not (tmp_path / "kept").exists()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(fuzz_inputs, "_work", misbehave)
    now, wait = [0.0], fuzz_inputs.wait

    def until_told_or_hung(wires: list[Any], timeout: float) -> list[Any]:
        while True:
            hung = (tmp_path / "hung").exists()
            ready = wait(wires, timeout=0 if hung else 0.05)
            if hung and not ready:  # no second passes but for the file that hangs
                (tmp_path / "hung").unlink()
                now[0] += 1000
            if hung or ready:
                return list(ready)

    monkeypatch.setattr(fuzz_inputs, "wait", until_told_or_hung)
    # The tool's clock alone: with everybody's standing still, waiting for a moment would never end.
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(fuzz_inputs, "time", clock)
    assert fuzz_inputs.main([*asked, "--seconds", "2"]) == 1
    told = capsys.readouterr()
    assert "DIED with 9" in told.out and "HUNG for 2 s" in told.out and "LET THROUGH" in told.out
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        f"images-0-{number}-0.bin" for number in (3, 5, 7)
    ]
    assert fuzz_inputs.main(["images", "--images", str(tmp_path / "none")]) == 3


def misbehave(job: Job, numbers: range, wire: Any) -> None:
    """In the tool's process: dies of file 3, stops at file 5, lets an error of file 7 through."""
    assert job.images is not None
    for number in numbers:
        if number == 3:
            import os

            os._exit(9)
        if number == 5:
            (job.images.parent / "hung").touch()
            threading.Event().wait()
        wire.send((number, "LET THROUGH KeyError: 'a'" if number == 7 else "image", 0.01, 1))


def test_what_became_of_the_files_is_counted() -> None:
    kinds = Counter({"settings": 3, "ConfigError: : is not TOML": 4, "DataError: : x": 1, "DIED with 1": 2})
    kinds |= {"LET THROUGH": 5, "HUNG for 20 s": 6}
    assert counted(kinds) == ("21 mutated, 5 refused in one line, 3 accepted, 5 tracebacks, 6 hangs, 2 processes died")
