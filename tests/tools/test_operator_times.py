"""The time of an operator is the sum of what it launches: tools/kernels/operator_times.py on
launches and kernels that are made up."""

from pathlib import Path

import pytest
import torch

import operator_times
from compiled_kernel import Usage
from kernel_launches import Launch
from machine_code import Instruction, count
from operator_times import LAUNCH, START, STREAM, TURNED, Work, predict_all, resident, seconds_of, turns
from sm_model import H200

CODE = [Instruction("FFMA R1, R2, R3, R4", 4)] * 100  # one warp: 4 cycles each
USAGE = Usage(128, 0, 0, (count(CODE), count(CODE[:50])))
TILE = {"STEPS": 4, "N": 16, "BD": 32, "CHUNK": 32}


def launch(kernel: str, programs: int, constants: dict[str, object], **sizes: int) -> Launch:
    options: dict[str, object] = {"num_warps": 1}
    return Launch("scan", kernel, "float32", "", {}, TILE | constants, [], options, programs, sizes, 0)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_times, "compile_launch", lambda launch, arch, cached: USAGE)


@pytest.mark.parametrize(
    ("kernel", "constants", "sizes", "expected"),
    [
        ("forward", {"MODE": 0}, {"height": 10, "width": 10}, (25,)),
        ("forward", {"MODE": 0, "PAIR": 2}, {"height": 10, "width": 10}, (25, 25)),
        ("forward", {"MODE": 0, "EVEN": True}, {"length": 256}, (256,)),  # in groups of four steps
        ("forward", {"MODE": 0, "EVEN": False}, {"length": 1023}, (256,)),
        ("forward", {"MODE": 2, "EVEN": False}, {"length": 1023}, (8,)),  # a chunk
        ("adjoint_ends", {}, {"height": 4, "width": 4}, (4,)),  # shorter than a chunk
        ("carry", {}, {"chunks": 7}, (7,)),
        # 20 items from the 100th on, 8 programs: the busiest has three.
        ("backward", {"CHUNKED": True}, {"height": 10, "width": 10, "items": 120, "start": 100}, (24, 24)),
        ("backward", {"CHUNKED": False}, {"height": 10, "width": 10, "items": 120, "start": 100}, (75, 75)),
    ],
)
def test_turns_follow_from_the_length_and_the_way_of_launching(
    kernel: str, constants: dict[str, object], sizes: dict[str, int], expected: tuple[int, ...]
) -> None:
    assert turns(launch(kernel, 8, constants, **sizes)) == expected


def test_a_kernel_that_is_no_scan_has_no_turns_and_takes_the_time_of_its_bytes() -> None:
    gate = Launch("squeeze_excite", "_pool", "float32", "", constants={"BL": 64}, programs=9, bytes=3_000_000)
    assert turns(gate) == ()
    assert seconds_of([gate]) == (3_000_000 / STREAM,)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(128, 0, 1, 16), (255, 0, 1, 8), (32, 0, 1, 32), (255, 0, 4, 2), (32, 99_000, 1, 2), (255, 230_000, 32, 1)],
)
def test_registers_shared_memory_and_32_programs_bound_what_is_resident(
    registers: int, shared: int, warps: int, expected: int
) -> None:
    assert resident(Usage(registers, 0, shared), warps) == expected


def test_a_grid_runs_in_waves_of_what_is_resident(compiled: None) -> None:
    one = launch("forward", H200.count, {"MODE": 0}, height=10, width=10)  # a program a multiprocessor
    full = launch("forward", 16 * H200.count, {"MODE": 0}, height=10, width=10)
    more = launch("forward", 17 * H200.count, {"MODE": 0}, height=10, width=10)
    first, second, third = (seconds * H200.clock for seconds in seconds_of([one, full, more]))
    assert first == pytest.approx(START + 25 * 400, rel=0.01)
    assert second == pytest.approx(START + 25 * 400, rel=0.02)  # four warps a scheduler, 100 products each
    assert third == pytest.approx(first + second)


def test_every_hot_loop_counts(compiled: None) -> None:
    back = launch("backward", H200.count, {"CHUNKED": False}, height=10, width=10, items=H200.count, start=0)
    (seconds,) = seconds_of([back])
    assert seconds * H200.clock == pytest.approx(START + 25 * 400 + 25 * 200, rel=0.01)


@pytest.mark.parametrize(("switches", "cycles"), [({"SAVE": True}, 330), ({"SAVE": False}, 400)])
def test_the_branch_that_keeps_a_state_is_taken_once_a_chunk(
    monkeypatch: pytest.MonkeyPatch, switches: dict[str, object], cycles: int
) -> None:
    usage = Usage(128, 0, 0, (count(CODE, ((60, 80),)),))  # 80 cycles of the 400, once in 8 turns
    monkeypatch.setattr(operator_times, "compile_launch", lambda launch, arch, cached: usage)
    one = launch("forward", H200.count, {"MODE": 0, **switches}, height=10, width=10)
    assert seconds_of([one])[0] * H200.clock == pytest.approx(START + 25 * cycles, rel=0.002)


def test_no_kernel_is_faster_than_the_memory(compiled: None) -> None:
    one = launch("forward", 1, {"MODE": 0}, height=2, width=2)
    one.bytes = 10**9
    assert seconds_of([one])[0] == pytest.approx(1e9 / (16.4 * 132 * 1.98e9))


def test_pytorchs_kernels_are_counted_without_views_and_empty_memory() -> None:
    x = torch.ones(8, 96, 1024, device="meta")
    with operator_times._PyTorchKernels() as pytorch:
        turned = x.transpose(1, 2).contiguous()  # a kernel: axes change their order
        turned.view(-1)[:5].unsqueeze(0)
        torch.ops.aten.empty_like(turned).permute(2, 0, 1)  # torch's own: the tests' fills it
        x.contiguous()
        y = x * 2 + turned.transpose(1, 2)  # two kernels
        y.sum(0)  # one
    assert pytorch.count == 4
    elements = 8 * 96 * 1024
    assert pytorch.seconds == pytest.approx(
        TURNED * elements  # of float32: 8 bytes moved each, in less time
        + 8 * elements / STREAM
        + TURNED * elements
        + (4 + 4 / 8) * elements / STREAM,
        rel=0.01,
    )


def test_a_call_is_its_kernels_pytorchs_and_all_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gate = Launch("squeeze_excite", "_pool", "float32", "", programs=9, bytes=3_000_000)
    work = Work((gate, gate), 3, 1e-3)
    (time,) = predict_all([work], 1, tmp_path)
    assert (time.kernels_ms, time.pytorch_ms) == (pytest.approx(2e-3), 1.0)
    assert time.launches_ms == pytest.approx(5 * 1e3 * LAUNCH)
    assert time.ms == pytest.approx(2e-3 + 1.0 + 5 * 1e3 * LAUNCH)
    assert time.ours == (("squeeze_excite.pool", 9, pytest.approx(1e-3)),) * 2 and time.pytorch == 3
