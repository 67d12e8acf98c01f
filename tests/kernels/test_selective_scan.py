"""The 1-D scan: every engine equals the definition, and the definition obeys the laws of a causal
linear recurrence."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, TRITON, engine_device, relative_error
from hypothesis import given, settings
from scan_cases import assert_equal_to_the_definition, cases, outputs_and_gradients, stiff_case
from torch import Tensor

from medmambase_kernels import BackendError, reference, selective_scan


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@settings(max_examples=60)
@given(case=cases())
def test_the_engines_of_the_cpu_equal_the_definition(engine: str, case) -> None:
    assert_equal_to_the_definition(*case, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
@settings(max_examples=15)
@given(case=cases(largest_length=40, largest_state=9))
def test_the_triton_kernels_equal_the_definition(engine: str, case) -> None:
    assert_equal_to_the_definition(*case, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("delta", [-40.0, -12.0, 19.9, 20.1, 60.0])
@pytest.mark.parametrize("A", [-1e-4, -1e3])
def test_extreme_steps_and_decays_stay_exact(engine: str, delta: float, A: float) -> None:
    assert_equal_to_the_definition(stiff_case(3, 9, 2, delta, A), True, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 33, 64])
def test_every_state_size_from_1_to_64_is_exact(engine: str, n: int) -> None:
    args = stiff_case(3, 5, n, 0.0, -1.0)
    assert_equal_to_the_definition(args, True, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("l", [31, 32, 33, 64, 65])
def test_lengths_around_a_chunk_are_exact(engine: str, l: int) -> None:
    assert_equal_to_the_definition(stiff_case(2, l, 2, -1.0, -0.5), True, engine)


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize(
    "processors", [pytest.param(1, marks=pytest.mark.slow), 10_000], ids=["many programs", "few programs"]
)
@pytest.mark.parametrize(
    ("l", "kinds"),
    [
        (70, "varying"),
        pytest.param(67, "constant", marks=pytest.mark.slow),
        (96, "mixed"),
        (72, "C alone"),
        pytest.param(68, "groups", marks=pytest.mark.slow),
    ],
)
def test_every_way_to_launch_a_scan_of_a_sequence_is_exact(
    monkeypatch: pytest.MonkeyPatch, engine: str, processors: int, l: int, kinds: str
) -> None:
    from medmambase_kernels._triton import selective_scan as sequences

    monkeypatch.setattr(sequences, "processors", lambda t: processors)
    args = stiff_case(3, l, 2, -1.0, -0.5) | {"delta": torch.randn(1, 3, l), "delta_bias": torch.randn(3)}
    if kinds in ("constant", "mixed"):
        args["B"] = torch.randn(3, 2)
    if kinds in ("constant", "C alone"):
        args["C"] = torch.randn(3, 2)
    if kinds == "groups":
        args |= {name: torch.randn(1, 3, 2, l) for name in ("B", "C")}
    assert_equal_to_the_definition(args, True, engine)


def test_the_portable_engine_in_float64_agrees_to_rounding_and_passes_gradcheck() -> None:
    args = [
        torch.randn(2, 4, 35),
        torch.rand(2, 4, 35),
        -torch.rand(4, 3),
        torch.randn(2, 2, 3, 35),
        torch.randn(2, 2, 3, 35),
        torch.randn(4),
    ]
    args = [t.double().requires_grad_() for t in args]
    y = selective_scan(*args, backend="torch")
    assert y.dtype == torch.float64
    assert relative_error(y, selective_scan(*args, backend="reference")) < TOLERANCE[torch.float64]
    small = [t[..., :4].detach().clone().requires_grad_() if t.dim() > 2 else t for t in args]
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, return_last_state=True, backend="torch"), small)


def test_the_definition_passes_gradcheck_and_gradgradcheck() -> None:
    args = [
        torch.randn(1, 2, 3),
        torch.rand(1, 2, 3),
        -torch.rand(2, 2),
        torch.randn(1, 2, 3),
        torch.randn(2, 2),
        torch.randn(2),
        torch.randn(1, 2, 3),
        torch.rand(2),
    ]
    args = [t.double().requires_grad_() for t in args]
    state = torch.randn(1, 2, 2).double().requires_grad_()

    def scan(state: Tensor, *a: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(*a, delta_softplus=True, return_last_state=True, initial_state=state, backend="reference")

    assert torch.autograd.gradcheck(scan, (state, *args))
    assert torch.autograd.gradgradcheck(scan, (state, *args))


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_is_no_further_off_than_twice_a_loop_in_bfloat16(engine: str) -> None:
    args = {
        name: None if t is None else t.to(torch.bfloat16)
        for name, t in (stiff_case(5, 40, 4, 0.0, -0.7) | {"delta": torch.rand(1, 5, 40)}).items()
    }
    args["initial_state"] = None
    exact = outputs_and_gradients(args, False, "reference")
    leaves = {name: t.clone().requires_grad_() for name, t in args.items() if t is not None}
    u, delta, A, B, C, D = (leaves[name] for name in ("u", "delta", "A", "B", "C", "D"))
    h, outputs = torch.zeros(1, 5, 4, dtype=torch.bfloat16), []
    for step in range(40):
        h = (
            torch.exp(delta[..., step, None] * A) * h
            + (delta[..., step] * u[..., step])[..., None] * B[:, None, :, step]
        )
        outputs.append((h * C[:, None, :, step]).sum(-1) + D * u[..., step])
    g = torch.Generator().manual_seed(7)
    y = torch.stack(outputs, -1)
    weight, weight_last = torch.randn(y.shape, generator=g).to(y), torch.randn(h.shape, generator=g)
    ((y * weight).float().sum() + (h * weight_last).sum()).backward()
    loop = {"y": y, "last state": h} | {f"gradient of {name}": t.grad for name, t in leaves.items()}
    for name, actual in outputs_and_gradients(args, False, engine).items():
        rounding = 2.0**-8  # a result that the loop happens to hit may still be rounded once
        assert relative_error(actual, exact[name]) <= 2 * relative_error(loop[name], exact[name]) + rounding, name


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["scan_l1", "scan_n1", "scan_s4d", "scan_slow", "scan_stiff"])
def test_the_original_operator_is_reproduced(engine: str, name: str, shared) -> None:
    import numpy as np

    case = {key: torch.from_numpy(value) for key, value in np.load(shared / "parity" / f"{name}.npz").items()}
    device = engine_device(engine)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    leaves = {key: case[key].to(device).requires_grad_() for key in names}
    y, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=engine)
    y.backward(case["grad_out"].to(device))
    assert relative_error(y, case["y"]) <= 1e-5
    assert relative_error(last, case["last_state"]) <= 1e-5
    for key in names:
        assert relative_error(leaves[key].grad, case[f"grad.{key}"]) <= 1e-4, key


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_only_chunk_entry_states_are_kept_for_backward(engine: str) -> None:
    u = torch.randn(1, 8, 512, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(
            u,
            torch.rand(1, 8, 512),
            -torch.rand(8, 16),
            torch.randn(1, 16, 512),
            torch.randn(1, 16, 512),
            backend=engine,
        )
    assert sum(kept) < 8 * 16 * 512 / 2  # all states of all steps would be twice that, and the inputs are counted too


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("u", torch.randn(2, 4), "u has shape"),
        ("delta", torch.randn(2, 4, 6), "delta has shape"),
        ("A", torch.randn(3, 2), "A has shape"),
        ("A", torch.randn(4, 0), "state must be at least 1"),
        ("A", torch.randn(4, 2, dtype=torch.complex64), "A is complex"),
        ("B", torch.randn(2, 3, 2, 5), "B has shape"),
        ("C", torch.randn(2, 2, 2, 5), "different numbers of groups"),
        ("D", torch.randn(5), "D has shape"),
        ("z", torch.randn(2, 4, 1), "z has shape"),
        ("delta_bias", torch.randn(1), "delta_bias has shape"),
        ("initial_state", torch.randn(2, 4, 3), "initial_state has shape"),
        ("delta", torch.ones(2, 4, 5, dtype=torch.int64), "delta has dtype"),
    ],
)
def test_a_wrong_argument_is_named(name: str, wrong: Tensor, message: str) -> None:
    args = {
        "u": torch.randn(2, 4, 5),
        "delta": torch.rand(2, 4, 5),
        "A": -torch.rand(4, 2),
        "B": torch.randn(2, 2, 5),
        "C": torch.randn(2, 2, 5),
    }
    with pytest.raises(ValueError, match=message):
        selective_scan(**(args | {name: wrong}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_a_gated_result_in_16_bits_is_rounded_once(engine: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(2, 24, 300, generator=g).to(dtype) for _ in range(3))
    B, C = (torch.randn(2, 4, 300, generator=g).to(dtype) for _ in range(2))
    arguments = (u, delta, -torch.rand(24, 4, generator=g), B, C, torch.randn(24, generator=g), z)
    exact = reference.selective_scan(*(t[:, None] if t is B or t is C else t for t in arguments), None, True, None)[0]
    y = selective_scan(*arguments, delta_softplus=True, backend=engine)
    _, exponent = torch.frexp(exact)
    half_ulp = torch.ldexp(torch.ones_like(exact), exponent - 1) * torch.finfo(dtype).eps / 2
    error = (y.double() - exact).abs() - 1e-6 * exact.abs().max()  # that of float32
    assert (error / half_ulp)[exact != 0].max() <= 1.0  # a result that is rounded twice is off by up to 2


def test_the_custom_operator_passes_torchs_own_checks() -> None:
    args = (
        torch.randn(2, 4, 5),
        torch.rand(2, 4, 5),
        -torch.rand(4, 2),
        torch.randn(2, 1, 2, 5),
        torch.randn(4, 2),
        torch.randn(4),
        None,
        None,
    )
    args = tuple(t.requires_grad_() if isinstance(t, Tensor) else t for t in args)
    torch.library.opcheck(torch.ops.medmambase.selective_scan, (*args, True, torch.float32, True, "cpu"))


def test_an_engine_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        selective_scan(
            torch.randn(1, 1, 1),
            torch.randn(1, 1, 1),
            torch.randn(1, 1),
            torch.randn(1, 1, 1),
            torch.randn(1, 1, 1),
            backend="cuda",
        )
