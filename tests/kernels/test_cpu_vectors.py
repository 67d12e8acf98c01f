"""The CPU's vector code: its language and numerics at every width of register, its threads, and
processes that use it at once."""

import ctypes
import functools
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, TOLERANCE, relative_error
from torch import Tensor

from medmambase_kernels import depthwise_silu, gated_norm, selective_scan, selective_scan_2d, squeeze_excite
from medmambase_kernels._cpu import compiler, openmp
from medmambase_kernels._cpu.compiler import Program, compiled
from medmambase_kernels._cpu.lanes import totals
from medmambase_kernels._cpu.language import Kernel
from medmambase_kernels._cpu.numerics import exp2, sigmoid, softplus
from medmambase_kernels._cpu.values import Value

LANES = [4, 8, *([16] if compiler.lanes() == 16 else [])]  # 16 means AVX-512


@functools.cache
def map_program(function: Callable[[Kernel, Value], Value], lanes: int) -> Program:
    """y = function(x), a vector after the other."""
    kernel = Kernel("map", ["x", "y"], ["length"], lanes)
    (x, y), (length,) = kernel.pointers("x", "y"), kernel.sizes("length")
    with kernel.tasks(), kernel.range(0, length, lanes) as i:
        y.store(i, function(kernel, x.load(i)))
    return compiled(kernel)


def mapped(function: Callable[[Kernel, Value], Value], x: Tensor, lanes: int) -> Tensor:
    y = torch.empty_like(x)
    map_program(function, lanes).launch(1, x=x, y=y, length=len(x))
    return y


def log_of_one_plus_exp(kernel: Kernel, x: Value) -> Value:
    return softplus(kernel, x)[0]


def its_slope(kernel: Kernel, x: Value) -> Value:
    return softplus(kernel, x)[1]


@pytest.mark.parametrize("lanes", LANES)
def test_exp2_is_exact_to_2e_7_where_floats_are_normal_and_right_beyond(lanes: int) -> None:
    x = torch.linspace(-125.9, 127.9, 1 << 16)
    assert ((mapped(exp2, x, lanes).double() - x.double().exp2()) / x.double().exp2()).abs().max() < 2e-7
    far = torch.tensor(
        [-1e30, -float("inf"), -1000.0, -151.0, -126.7, 128.0, 1e30, float("inf"), float("nan"), 0.0, *[-126.2] * 6]
    )
    y = mapped(exp2, far, lanes)
    assert y[:4].tolist() == [0.0] * 4
    assert 0 <= y[4] <= 2e-38
    assert y[5:8].tolist() == [float("inf")] * 3
    assert y[8].isnan()
    assert y[9] == 1.0


@pytest.mark.parametrize("lanes", LANES)
def test_softplus_and_sigmoid_are_exact_and_saturate(lanes: int) -> None:
    x = torch.cat([torch.linspace(-80, 80, 4096), torch.linspace(-0.1, 0.1, 4096)])
    exact = x.double()
    for function, expected in (
        (log_of_one_plus_exp, torch.logaddexp(exact, exact.new_zeros(()))), (its_slope, exact.sigmoid()),
        (sigmoid, exact.sigmoid()),
    ):  # fmt: skip  # a table
        error = ((mapped(function, x, lanes).double() - expected) / expected).abs()
        assert (error <= 2e-7 * (2 + x.abs())).all(), function  # the exponent is rounded before the power is taken
    far = torch.tensor([-1e4, 1e4, float("nan"), *[0.0] * 13])
    assert mapped(log_of_one_plus_exp, far, lanes)[:2].tolist() == [0.0, 1e4]
    assert mapped(sigmoid, far, lanes)[:2].tolist() == [0.0, 1.0]
    assert mapped(log_of_one_plus_exp, far, lanes)[2].isnan()


@pytest.mark.parametrize("lanes", LANES)
def test_sums_over_lanes_come_out_in_the_order_of_their_vectors(lanes: int) -> None:
    kernel = Kernel("sums", ["x", "y"], [], lanes)
    x, y = kernel.pointers("x", "y")
    with kernel.tasks():
        vectors = [x.load(i * lanes) for i in range(lanes)]
        y.store(0, totals(kernel, vectors))
        y.store_number(lanes, kernel.total(vectors[-1]))
    values, sums = torch.randint(-9, 9, (lanes, lanes)).float(), torch.empty(lanes + 1)
    compiled(kernel).launch(1, x=values, y=sums)
    assert sums.tolist() == [*values.sum(1).tolist(), values[-1].sum().item()]


def test_loops_and_integers_are_those_of_python() -> None:
    kernel = Kernel("loops", ["y"], ["n"], 4)
    (y,), (n,) = kernel.pointers("y"), kernel.sizes("n")
    with kernel.tasks() as task:
        total = kernel.variable(kernel.number(0.0))
        for start, stop, step in ((0, n, 1), (n - 1, -1, -1), (0, n, 3)):
            with kernel.range(start, stop, step) as i:
                total.value = kernel.where(i % 2 < 1, total.value * 3.0 + 1.0, total.value + 2.0)
                total.value = kernel.where(kernel.smaller(i // 2, 2) > 1, total.value - 1.0, total.value)
        y.store_number(task, total.value)
    sums, expected = torch.empty(2), 0.0
    compiled(kernel).launch(2, y=sums, n=7)
    for i in [*range(7), *range(6, -1, -1), *range(0, 7, 3)]:
        expected = expected * 3 + 1 if i % 2 < 1 else expected + 2
        expected -= min(i // 2, 2) > 1
    assert sums.tolist() == [expected, expected]


def test_a_launch_with_wrong_arguments_is_refused_before_it_runs() -> None:
    with pytest.raises(TypeError, match=r"\['length', 'width'\]"):
        map_program(exp2, 4).launch(1, x=torch.ones(4), y=torch.ones(4), width=4)


def calls(
    d: int = 32, n: int = 3, h: int = 9, w: int = 8, b: int = 2
) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Each operator with arguments whose gradients can be asked for."""
    l, r = h * w, 2
    x = torch.randn(b, h, w, d)
    sequence = [
        torch.randn(b, d, l),
        torch.rand(b, d, l),
        -torch.rand(d, n),
        torch.randn(b, 2, n, l),
        torch.randn(b, 2, n, l),
        torch.randn(d),
    ]
    image = [
        x,
        torch.randn(b, h, w, 4, r + 2 * n),
        torch.randn(4, d, r),
        torch.randn(4, d),
        -torch.rand(4, d, n),
        torch.randn(4, d),
    ]
    return {
        "sequence": (selective_scan, sequence),
        "image": (selective_scan_2d, image),
        "constant B": (selective_scan, [*sequence[:3], torch.randn(d, n), *sequence[4:]]),
        "constant C": (selective_scan, [*sequence[:4], torch.randn(d, n), sequence[5]]),
        "gate": (squeeze_excite, [x, torch.randn(4, d), torch.randn(d, 4)]),
        "gate and residual": (squeeze_excite, [x, torch.randn(4, d), torch.randn(d, 4), torch.randn(b, h, w, d)]),
        "norm": (gated_norm, [x, torch.randn(b, h, w, 2 * d)[..., d:], torch.randn(d), torch.randn(d)]),
        "convolution": (
            depthwise_silu,
            [torch.randn(b, h, w, 2 * d)[..., :d], torch.randn(d, 1, 3, 3), torch.randn(d)],
        ),
    }


CALLS = sorted(calls())


def results(call: tuple[Callable[..., Tensor], list[Tensor]], backend: str) -> list[Tensor]:
    """Output and all gradients."""
    function, arguments = call
    leaves = [t.detach().requires_grad_() for t in arguments]
    y = function(*leaves, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    return [y, *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(
    ("d", "n", "h", "w", "b"),
    [(16, 1, 1, 1, 1), (32, 4, 7, 5, 1), pytest.param(48, 6, 9, 17, 2, marks=pytest.mark.slow), (6, 5, 4, 10, 17)],
)
def test_every_operator_is_exact_at_every_width_of_register(
    name: str, lanes: int, d: int, n: int, h: int, w: int, b: int, monkeypatch
) -> None:
    monkeypatch.setattr(compiler, "lanes", lambda: lanes)
    call = calls(d, n, h, w, b)[name]
    for actual, expected in zip(results(call, "cpu"), results(call, "reference"), strict=True):
        assert relative_error(actual, expected) <= TOLERANCE[torch.float32]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(name: str, batch: int, threads) -> None:
    call = calls(d=64, h=20, w=20, b=batch)[name]
    threads(1)
    alone = results(call, "cpu")
    for count in (2, 4, 7):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(results(call, "cpu"), alone, strict=True)), count


def test_the_other_ways_to_run_threads_give_the_same_bits(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(3)
    call = calls(d=64)["image"]
    expected = results(call, "cpu")
    pool = openmp._pool()
    monkeypatch.setattr(openmp, "_team", lambda: pool)
    assert all(torch.equal(a, b) for a, b in zip(results(call, "cpu"), expected, strict=True))

    def by_the_other_entry(entries: openmp.Entries, table: int, count: int) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(entries.kmp)(None, None, table)

    monkeypatch.setattr(openmp, "_team", lambda: openmp.Team(by_the_other_entry))
    assert all(torch.equal(a, b) for a, b in zip(results(call, "cpu"), expected, strict=True))


def test_several_python_threads_may_call_at_once(threads) -> None:
    threads(2)
    call = calls()["image"]
    expected = results(call, "cpu")
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda _: results(call, "cpu"), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(done, expected, strict=True))


def in_a_child(seed: int) -> list[Tensor]:
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    return [t.detach() for t in results(calls()["image"], "cpu")]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=[pytest.mark.slow] * (method == "spawn"))  # it imports torch four times
        for method in ("fork", "spawn")
        if method in multiprocessing.get_all_start_methods()
    ],
)
def test_four_processes_work_at_once_however_they_were_started(method: str, threads) -> None:
    if method == "fork" and torch.cuda.is_initialized():
        pytest.skip("PyTorch itself forbids gradients in a process forked from one that used a GPU")
    threads(2)
    expected = in_a_child(3)  # OpenMP's threads exist before the fork
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context(method)) as pool:
        for done in pool.map(in_a_child, [3] * 4, timeout=PATIENCE):
            assert all(torch.equal(a, b) for a, b in zip(done, expected, strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory in use from /proc")
def test_calls_of_many_shapes_leave_no_memory_behind() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    def call(i: int) -> None:
        results(calls(d=8 * (1 + i % 7), n=1 + i % 3, h=1 + i % 11, w=1 + i % 13, b=1 + i % 2)["image"], "cpu")

    for i in range(100):
        call(i)
    before = resident()
    for i in range(300):
        call(i)
    assert resident() - before < 30e6


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_that_the_caller_set_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    call = calls(d=48)[name]
    expected = results(call, "cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = results(call, "cpu")
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FC00101, 0x7FFFFFFF])
def test_whatever_is_not_a_number_stays_so(lanes: int, bits: int) -> None:
    x = torch.full((lanes,), bits, dtype=torch.int32).view(torch.float32)
    for function in (exp2, sigmoid, log_of_one_plus_exp):
        assert mapped(function, x, lanes).isnan().all()


def test_kernels_refuse_what_is_not_float32() -> None:
    with pytest.raises(TypeError, match=r"a torch.float64 of shape \(4,\)"):
        map_program(exp2, 4).launch(1, x=torch.ones(4, dtype=torch.float64), y=torch.ones(4), length=4)
