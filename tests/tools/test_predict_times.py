"""The command that predicts the operators' times, run as a person runs it: what it prints says that
it is predicted, and leaves no part of a time out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import predict_times
from kernel_launches import kernels_of
from machine_code import disassembler
from wanted_times import IMAGES_KERNEL

triton = pytest.importorskip("triton")
TOOL = Path(predict_times.__file__)
needs_machine_code = pytest.mark.skipif(disassembler() is None, reason="this Triton's machine code cannot be read")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True, text=True, encoding="utf-8", env=environment, check=False,
    )  # fmt: skip  # one call


def _rows(batch: int, passes: str, dtype: str = "float32", operator: str = "selective_scan") -> list[dict[str, object]]:
    return [
        {"operator": operator, "dtype": dtype, "stage": stage, "batch": batch, "height": size,
         "width": size, "channels": channels, "passes": passes, "predicted_ms": 0.1 * stage, "kernels_ms": 0.06,
         "pytorch_ms": 0.03, "launches_ms": 0.01, "ours": [["scan_forward.forward", 768, 0.06]], "pytorch": 3}
        for stage, size, channels in ((1, 32, 96), (2, 16, 192), (3, 8, 384), (4, 4, 768))
    ]  # fmt: skip  # entries of the file


def test_the_table_has_a_line_for_each_batch_and_pass_and_says_that_it_is_predicted() -> None:
    lines = predict_times.table([*_rows(2, "forward"), *_rows(1, "forward+backward")], detail=False)
    assert lines[0].startswith("PREDICTED") and "nothing was measured" in lines[0]
    assert lines[2].split() == [
        "selective_scan,",
        "float32",
        *["96", "ch.", "32x32", "192", "ch.", "16x16", "384", "ch.", "8x8", "768", "ch.", "4x4"],
    ]
    assert lines[3].split() == ["batch", "2", "forward", "0.100", "0.200", "0.300", "0.400"]
    assert lines[4].split()[:3] == ["batch", "1", "forward+backward"] and len(lines) == 5


@pytest.mark.parametrize("passes", ["forward", "forward keeping states"])
def test_the_times_wanted_stand_under_the_predicted_ones_and_those_missed_at_the_end(passes: str) -> None:
    rows = _rows(64, passes)
    for row, ms in zip(rows, (0.25, 0.1201, 0.06, 0.0), strict=True):
        row["predicted_ms"] = ms
    lines = predict_times.table(rows, detail=False)
    assert lines[4].split() == [
        "wanted", "at", "most", "met", "0.250", "MISSED", "0.120", "met", "0.060", "met", "0.040",
    ]  # fmt: skip  # words of a line
    assert lines[6].startswith("3 of 4 wanted times are met")
    assert lines[7].split(", ")[2:] == [f"batch  64 {passes}", "192 ch.: 0.1201 instead of 0.1200"] and len(lines) == 8


def test_16_bits_may_take_little_longer_than_float32() -> None:
    rows = [*_rows(1, "forward+backward"), *_rows(1, "forward+backward", "bfloat16")]
    for row in rows[4:]:
        row["predicted_ms"] *= 1.16
    lines = predict_times.table(rows, detail=False)
    assert lines[4] == "" and lines[5].startswith("selective_scan, bfloat16")
    assert lines[7].split()[3::2] == ["MISSED"] * 4 and lines[7].split()[4] == "0.115"


def test_of_the_scan_of_images_the_forward_kernel_alone_is_wanted() -> None:
    rows = _rows(64, "forward", operator="selective_scan_2d")  # 0.06 ms are the kernel's
    rows[1]["ours"] = [["image_pack.pack", 9, 0.2], ["scan_forward.forward", 768, 0.111]]
    lines = predict_times.table(rows, detail=False)
    assert lines[3].split()[:3] == ["batch", "64", "forward"] and lines[4].split()[6:] == [
        "0.060",
        "0.111",
        *["0.060"] * 2,
    ]
    assert lines[5].split() == ["wanted", "at", "most", "met", "0.250", "MISSED", "0.110"]


def test_the_kernel_of_the_scan_of_images_exists() -> None:
    """Of another name no time would be found, and 0 ms would meet any wish."""
    module, kernel = IMAGES_KERNEL.split(".")
    assert kernel in kernels_of(module)


def test_detail_names_every_part_of_a_time() -> None:
    detail = predict_times.table(_rows(64, "forward"), detail=True)[4]
    for part in ("scan_forward.forward 768 programs 60.0 us", "PyTorch's 3 kernels 30.0 us", "launches 10.0 us"):
        assert part in detail


@pytest.mark.slow
@needs_machine_code
def test_the_command_predicts_an_operator_at_stages_of_tiny(tmp_path: Path, kept: str) -> None:
    file = tmp_path / "predicted ü.json"
    done = _run("--operator", "selective_scan", "squeeze_excite", "--batch", "64", "--dtype", "float32",
                "--stages", "3", "4", "--passes", "forward", "forward+backward", "--jobs", "2", "--cache", kept,
                "--json", str(file))  # fmt: skip  # flags
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PREDICTED")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["predicted_ms"] == pytest.approx(row["kernels_ms"] + row["pytorch_ms"] + row["launches_ms"])
        assert row["kernels_ms"] == pytest.approx(sum(ms for _, _, ms in row["ours"])) and row["ours"]
        assert 0.002 < row["predicted_ms"] < 1, row  # a launch; a hundredth of a second would be a wrong unit
    scans = [row for row in rows if row["operator"] == "selective_scan"]
    for forward, both in zip(scans[:2], scans[2:], strict=True):
        assert both["predicted_ms"] > forward["predicted_ms"]


@pytest.mark.slow
@needs_machine_code
def test_other_launches_are_predicted_beside_the_chosen_one(kept: str) -> None:
    done = _run("--operator", "selective_scan_2d", "--batch", "1", "--dtype", "float32", "--stages", "4",
                "--passes", "forward", "--candidates", "--jobs", "2", "--cache", kept)  # fmt: skip  # flags
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("PREDICTED")
    times = [line.split()[0] for line in lines if "Launch(" in line]
    assert len(times) >= 6 and all(0.002 < float(ms) < 1 for ms in times), done.stdout
    assert sum("chosen" in line for line in lines) == 1


@pytest.mark.slow
def test_an_operator_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = _run("--operator", "scan")
    assert done.returncode == 2
    assert "got scan, wanted some of selective_scan, selective_scan_2d" in done.stderr
