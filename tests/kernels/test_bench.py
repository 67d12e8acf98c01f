"""Measuring: the original's way is the same mathematics, a floor is what the chip's data sheet
says, a time is a median. No time is asserted."""

import importlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import TOLERANCE, TRITON, engine_device, relative_error
from torch import Tensor

import medmambase_kernels
from medmambase_kernels import reference
from medmambase_kernels.bench import cases as bench_cases
from medmambase_kernels.bench import floors as bench_floors
from medmambase_kernels.bench import measure as bench
from medmambase_kernels.bench import original, sweep
from medmambase_kernels.bench.cases import OPERATORS, STATE, Case

CPU = torch.device("cpu")


def small(operator: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(operator, 2, 3, 5, 33, dtype)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_originals_way_equals_the_definition(operator: str) -> None:
    ours, theirs = (
        bench_cases.from_projection(small(operator), CPU, "reference"),
        bench_cases.original(small(operator), CPU, original.loop_scan),
    )
    dy = torch.randn(ours.forward().shape)
    for one, other in zip(theirs.backward(dy), ours.backward(dy), strict=True):
        assert relative_error(one, other) <= TOLERANCE[torch.float32]


def test_the_original_of_a_half_precision_image_scans_in_float32() -> None:
    seen: list[Tensor] = []

    def scan(*arguments):
        seen.extend(t for t in arguments if isinstance(t, Tensor))
        return original.loop_scan(*arguments)

    y = bench_cases.original(small("selective_scan_2d", torch.bfloat16), CPU, scan).forward()
    assert {t.dtype for t in (*seen, y)} == {torch.float32}


def test_every_public_operator_is_in_the_table() -> None:
    public = {name for name in medmambase_kernels.__all__ if hasattr(reference, name)}
    assert set(OPERATORS) == public == registered()


def registered() -> set[str]:
    """The operators that torch knows, by the schemas of forward."""
    names = {schema.name.removeprefix("medmambase::") for schema in torch._C._jit_get_all_schemas()
             if schema.name.startswith("medmambase::")}  # fmt: skip  # one set
    return {name for name in names if f"{name}_backward" in names}


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operators_sample_is_equal_on_every_backend_of_the_processor(operator: str) -> None:
    for backend in ("cpu", "torch"):
        verdict = bench.check(bench_cases.reduced(operator, torch.float32), CPU, backend)
        assert verdict.passed, verdict


def test_each_operator_is_counted_tap_by_tap() -> None:
    # 2 x 3 positions: 4 x 7 taps lie inside the map.
    forward = bench_floors.convolution_work(1, 2, 3, 1, 0.0, backward=False)
    both = bench_floors.convolution_work(1, 2, 3, 1, 0.0, backward=True)
    assert (forward.instructions, forward.operations, both.instructions) == (28 + 24, 56 + 24, 84 + 72)
    # 5 steps of 4 taps, of which 3, 2 and 1 lie before the first.
    causal = bench_floors.causal_work(2, 5, 3, 4, 0.0, backward=False)
    assert (causal.exponentials, causal.instructions, causal.operations) == (30, 6 * 14 + 120, 12 * 14 + 120)
    assert bench_floors.causal_work(1, 2, 1, 4, 0.0, backward=False).instructions == 3 + 8
    norm = bench_floors.norm_work(10, 5.0, backward=True)
    assert (norm.exponentials, norm.instructions, norm.operations, norm.bytes) == (20, 280, 370, 5.0)


def test_the_cases_are_the_stages_of_tiny_at_both_sizes() -> None:
    found = bench_cases.cases(["selective_scan_2d"], [128, 224], [1, 2, 3, 4], [16], [torch.float32])
    assert [(c.height, c.width, c.channels, c.rank) for c in found] == [
        *((32, 32, 96, 3), (16, 16, 192, 6), (8, 8, 384, 12), (4, 4, 768, 24)),
        *((56, 56, 96, 3), (28, 28, 192, 6), (14, 14, 384, 12), (7, 7, 768, 24)),
    ]
    x_dbl = bench_cases.operator(found[3], CPU).arguments[1]
    assert x_dbl.shape == (16, 4, 4, 4, 24 + 2 * 16)


def test_mamba_ssm_without_its_kernel_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> SimpleNamespace:
        if kernel == "missing":
            raise ImportError("No module named 'mamba_ssm'")
        return SimpleNamespace(selective_scan_cuda=kernel, selective_scan_fn="the kernel")

    monkeypatch.setattr(importlib, "import_module", found)
    reasons = {}
    for kernel in ("missing", None, "built"):
        reasons[kernel] = original.mamba_scan(torch.device("cuda"))
    assert reasons["missing"] == (None, "cannot be imported (No module named 'mamba_ssm')")
    assert reasons[None] == (None, "is installed without its CUDA kernel")
    assert reasons["built"] == ("the kernel", "is importable")
    assert original.mamba_scan(CPU)[0] is None


def test_the_floors_of_a_known_card_are_the_data_sheets() -> None:
    rtx4090 = bench_floors.Card("RTX 4090", 128, 2.5e9, 1.0e12)
    rows = 16 * 4 * 96 * 1024  # stage 1 at 128 pixels, batch 16: 100.7 million states
    forward = rtx4090.floors(bench_floors.scan_work(rows, 16, 50e6, backward=False))
    # 106.95 M exponentials at 5.12 T/s; 5 x 100.66 M instructions at 40.96 T lanes/s; 50 MB at 1
    # TB/s
    assert (forward.exp, forward.issue, forward.bytes) == pytest.approx((0.020890, 0.012288, 0.05), rel=1e-4)
    assert forward.bound == forward.bytes
    both = rtx4090.floors(bench_floors.scan_work(rows, 16, 10e6, backward=True))
    assert (both.exp, both.issue, both.bytes) == pytest.approx((0.041779, 0.044237, 0.01), rel=1e-4)
    assert both.bound == both.issue


def test_a_cards_speed_is_read_from_its_properties_and_left_out_where_it_is_not_known() -> None:
    known = SimpleNamespace(
        name="H100", multi_processor_count=132, clock_rate=1_980_000, memory_clock_rate=2_619_000, memory_bus_width=5120
    )
    assert bench_floors.card(known) == bench_floors.Card("H100", 132, 1.98e9, pytest.approx(3.352e12, rel=1e-3))
    old = SimpleNamespace(name="H100", multi_processor_count=132)
    assert bench_floors.card(old, 1.98e9) == bench_floors.Card("H100", 132, 1.98e9, None)
    floors = bench_floors.card(old).floors(bench_floors.scan_work(1000, 16, 1e6, backward=False))
    assert (floors.exp, floors.issue, floors.bytes, floors.bound) == (None, None, None, None)


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_input_result_and_gradient_is_moved_once(operator: str) -> None:
    computation = bench_cases.operator(small(operator, torch.bfloat16), CPU)
    moved = [
        t.numel() * t.element_size() for t in computation.backward(computation.forward())
    ]  # the result, and gradients as large as their inputs
    forward, both = (
        bench.work_of(small(operator, torch.bfloat16), computation, backward) for backward in (False, True)
    )
    assert (forward.bytes, both.bytes) == (sum(moved), 2 * sum(moved))
    assert both.operations > forward.operations
    elements = 2 * 33 * 15
    expected = {"squeeze_excite": 0, "gated_norm": elements, "depthwise_silu": elements, "causal_conv1d": elements}
    assert forward.exponentials == expected.get(operator, 4 * elements * STATE * 17 / 16)


def test_median_and_spread_are_of_the_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0, 1, 1, 2, 0, 0.001, 0, 0.005, 0, 0.002, 0, 0.003, 0, 0.004])  # twice to warm up, then five times
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    calls: list[int] = []
    measured = bench.Bench(CPU, repeat=5).measure(lambda: calls.append(1))
    assert measured.times.all == pytest.approx((1, 5, 2, 3, 4))
    assert (measured.times.median, measured.times.spread, len(calls)) == (pytest.approx(3), pytest.approx(2), 7)


def test_a_slow_case_is_still_repeated_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    for seconds, brief, expected in (
        (10.0, False, 3),
        (0.25, False, 8),
        (0.001, False, 20),
        (0.0625, True, 4),
        (1.0, True, 3),
    ):

        def work(seconds: float = seconds) -> None:
            clock[0] += seconds

        assert len(bench.Bench(CPU).measure(work, brief=brief).times.all) == expected


def test_on_a_gpu_the_cache_is_overwritten_before_each_repetition_and_the_peak_is_above_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("mark")

        def elapsed_time(self, end: "Event") -> float:
            return 1.5

    class Cache:
        def zero_(self) -> None:
            if log[-1:] != ["flush"]:
                log.append("flush")

    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: Cache())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for name, value in (
        ("synchronize", None),
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 5e6),
        ("max_memory_allocated", 12e6),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    measured = bench.Bench(torch.device("cuda"), repeat=3).measure(lambda: log.append("work"))
    assert log == ["work"] * (2 + 3) + ["flush", "mark", "work", "mark"] * 3 + ["work"]
    assert (measured.times.all, measured.peak_mb) == ((1.5,) * 3, 7.0)
    assert measured.call_ms is not None
    log.clear()
    assert bench.Bench(torch.device("cuda"), repeat=3).measure(lambda: log.append("work"), brief=True).call_ms is None
    assert log == ["work"] * 2 + ["flush", "mark", "work", "mark"] * 3 + ["work"]


def test_only_what_we_are_compared_with_is_measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[bool] = []

    def measure(self, work, *, brief=False):
        log.append(brief)
        return bench.Measured(bench.Times((1.0,)), None, None)

    monkeypatch.setattr(bench.Bench, "measure", measure)
    list(bench.Bench(CPU, most_states=1e6).rows(small("selective_scan_2d")))
    assert (
        log == [False, False, True] * 2
    )  # the operator, the operator with its projection, the original; forward, then both ways


def test_too_little_memory_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self, work, **brief):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench.Bench, "measure", measure)
    rows = list(bench.Bench(CPU).rows(small("squeeze_excite")))
    assert [(row.passes, row.ms, row.note, row.failed) for row in rows] == [
        (passes, None, "out of memory", False) for passes in bench.PASSES
    ]


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("operator", ["selective_scan", pytest.param("selective_scan_2d", marks=pytest.mark.slow)])
def test_a_sweep_tries_launches_that_are_right_and_refuses_those_that_are_wrong(
    operator: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.Bench, "measure", lambda self, work: bench.Measured(bench.Times((1.0,)), None, None))
    right = sweep.engines.run

    def run(name, backend, step, *arguments):  # one launch among the candidates adds up wrongly
        y, *rest = right(name, backend, step, *arguments)
        return (y + (step == "forward" and arguments[-1].steps == 2), *rest)

    monkeypatch.setattr(sweep.engines, "run", run)
    found = list(sweep.sweep(Case(operator, 1, 2, 2, 2, torch.float32), bench.Bench(engine_device(engine))))
    assert {step for step, _, _ in found} == {"forward", "backward"}
    assert len(set(found)) == len(found) > 6
    for step, config, ms in found:
        assert ms == (None if step == "forward" and "steps=2," in config else 1.0)
