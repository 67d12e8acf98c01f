"""The 1-D scan: every engine equals the definition, and the definition obeys the laws of a causal
linear recurrence."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmambase_kernels import BackendError, SelectiveScan, selective_scan, use_backend

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
LAYOUTS = ("contiguous", "last_axis_first", "every_other")


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "last_axis_first":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "every_other":
        return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]
    return t


@st.composite
def cases(draw, largest_length: int = 70, largest_state: int = 17):
    """Arguments of selective_scan, by name, and its delta_softplus."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    b, d, l, n = (
        draw(st.integers(0, 2)),
        groups * per_group,
        draw(st.integers(0, largest_length)),
        draw(st.integers(1, largest_state)),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(LAYOUTS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def weights(kind: str) -> Tensor:
        shape = {"constant": (d, n), "one group": (b, n, l), "groups": (b, groups, n, l)}[kind]
        return laid_out(normal(*shape).to(dtype), layout)

    kinds = draw(
        st.sampled_from(
            [
                ("groups", "groups"),
                ("one group", "one group"),
                ("constant", "groups"),
                ("one group", "constant"),
                ("constant", "constant"),
            ]
        )
    )
    softplus = draw(st.booleans())
    delta = normal(b, d, l) * 2 if softplus else torch.rand(b, d, l, generator=g)
    args = {
        "u": laid_out(normal(b, d, l).to(dtype), layout),
        "delta": laid_out(delta.to(dtype), layout),
        "A": -torch.rand(d, n, generator=g) * draw(st.sampled_from([1e-3, 1.0, 20.0])),
        "B": weights(kinds[0]),
        "C": weights(kinds[1]),
        "D": normal(d) if draw(st.booleans()) else None,
        "z": laid_out(normal(b, d, l).to(dtype), layout) if draw(st.booleans()) else None,
        "delta_bias": torch.rand(d, generator=g) if draw(st.booleans()) else None,
        "initial_state": normal(b, d, n) if draw(st.booleans()) else None,
    }
    return args, softplus


def outputs_and_gradients(args: dict[str, Tensor | None], softplus: bool, engine: str) -> dict[str, Tensor]:
    """y, the last state, and the gradient of every argument for fixed random weights on both
    outputs."""
    device = engine_device(engine)
    leaves = {name: None if t is None else t.detach().to(device).requires_grad_() for name, t in args.items()}
    y, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=engine)
    g = torch.Generator().manual_seed(7)
    weight, weight_last = (torch.randn(t.shape, generator=g).to(t) for t in (y, last))
    ((y * weight).float().sum() + (last * weight_last).sum()).backward()
    gradients = {
        name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items() if t is not None
    }  # none: an empty sequence
    return {"y": y, "last state": last} | {f"gradient of {name}": t for name, t in gradients.items()}


def assert_equal_to_the_definition(
    args: dict[str, Tensor | None], softplus: bool, engine: str, factor: float = 1.0
) -> None:
    expected = outputs_and_gradients(args, softplus, "reference")
    for name, actual in outputs_and_gradients(args, softplus, engine).items():
        assert actual.dtype == expected[name].dtype, name
        error = relative_error(actual, expected[name])
        assert error <= factor * TOLERANCE[args["u"].dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@settings(max_examples=60)
@given(case=cases())
def test_the_engines_of_the_cpu_equal_the_definition(engine: str, case) -> None:
    assert_equal_to_the_definition(*case, engine)


@pytest.mark.parametrize("engine", ENGINES[-1:])
@settings(max_examples=15)
@given(case=cases(largest_length=40, largest_state=9))
def test_the_triton_kernels_equal_the_definition(engine: str, case) -> None:
    assert_equal_to_the_definition(*case, engine)


def stiff_case(d: int, l: int, n: int, delta: float, A: float) -> dict[str, Tensor | None]:
    return {
        "u": torch.randn(1, d, l), "delta": torch.full((1, d, l), delta), "A": torch.full((d, n), A),
        "B": torch.randn(1, n, l), "C": torch.randn(1, n, l), "D": torch.randn(d), "z": None, "delta_bias": None,
        "initial_state": torch.randn(1, d, n),
    }  # fmt: skip  # one argument list


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


@pytest.mark.parametrize("engine", ENGINES[-1:])
@pytest.mark.parametrize("processors", [1, 10_000], ids=["many programs", "few programs"])
@pytest.mark.parametrize(("l", "kinds"), [(70, "varying"), (67, "constant"), (96, "mixed")])
def test_every_way_to_launch_a_scan_of_a_sequence_is_exact(
    monkeypatch: pytest.MonkeyPatch, engine: str, processors: int, l: int, kinds: str
) -> None:
    from medmambase_kernels._triton import scan as scan_launch_triton

    monkeypatch.setattr(scan_launch_triton, "processors", lambda t: processors)
    args = stiff_case(3, l, 2, -1.0, -0.5) | {"delta": torch.randn(1, 3, l), "delta_bias": torch.randn(3)}
    if kinds != "varying":
        args["B"] = torch.randn(3, 2)
    if kinds == "constant":
        args["C"] = torch.randn(3, 2)
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


@pytest.mark.parametrize("engine", [*ENGINES, "reference"])
@settings(max_examples=8)
@given(case=cases(largest_length=40, largest_state=4), cut=st.floats(0, 1))
def test_the_future_does_not_change_the_past(engine: str, case, cut: float) -> None:
    args, softplus = case
    length = args["u"].shape[-1]
    at = int(cut * length)
    device = engine_device(engine)
    args = {name: None if t is None else t.to(device) for name, t in args.items()}
    y = selective_scan(**args, delta_softplus=softplus, backend=engine)
    changed = dict(args)
    for name in ("u", "delta", "B", "C", "z"):
        if changed[name] is not None and changed[name].dim() > 2:
            t = changed[name].clone()
            t[..., at:] = t[..., at:] * 3 + 1
            changed[name] = t
    assert torch.equal(selective_scan(**changed, delta_softplus=softplus, backend=engine)[..., :at], y[..., :at])


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8)
@given(case=cases(largest_length=50, largest_state=4), cut=st.floats(0, 1))
def test_a_sequence_cut_anywhere_and_carried_on_is_the_whole_sequence(engine: str, case, cut: float) -> None:
    args, softplus = case
    device = engine_device(engine)
    args = {name: None if t is None else t.to(device) for name, t in args.items()}
    at = int(cut * args["u"].shape[-1])
    whole, last = selective_scan(**args, delta_softplus=softplus, return_last_state=True, backend=engine)

    def part(steps: slice) -> dict[str, Tensor | None]:
        sequences = ("u", "delta", "B", "C", "z")
        return {
            name: t[..., steps] if t is not None and name in sequences and t.dim() > 2 else t
            for name, t in args.items()
        }

    before, state = selective_scan(
        **part(slice(None, at)), delta_softplus=softplus, return_last_state=True, backend=engine
    )
    after, end = selective_scan(
        **(part(slice(at, None)) | {"initial_state": state}),
        delta_softplus=softplus,
        return_last_state=True,
        backend=engine,
    )
    tolerance = TOLERANCE[args["u"].dtype]
    assert relative_error(torch.cat([before, after], -1), whole) <= tolerance
    assert relative_error(end, last) <= tolerance


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


@pytest.mark.parametrize("engine", ENGINES)
def test_permuted_images_and_channels_give_permuted_results(engine: str) -> None:
    device = engine_device(engine)
    u, delta, A, B, C, D = (
        t.to(device)
        for t in (
            torch.randn(3, 6, 9),
            torch.rand(3, 6, 9),
            -torch.rand(6, 2),
            torch.randn(3, 2, 9),
            torch.randn(3, 2, 9),
            torch.randn(6),
        )
    )
    y = selective_scan(u, delta, A, B, C, D, backend=engine)
    images, channels = torch.tensor([2, 0, 1]), torch.tensor([3, 5, 0, 1, 4, 2])
    moved = selective_scan(
        u[images][:, channels],
        delta[images][:, channels],
        A[channels],
        B[images],
        C[images],
        D[channels],
        backend=engine,
    )
    assert relative_error(moved, y[images][:, channels]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_bit_equal(engine: str) -> None:
    args = stiff_case(5, 40, 3, 0.5, -1.0)
    first, second = (outputs_and_gradients(args, True, engine) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


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


def test_the_module_maps_sequences_and_learns_on_every_parameter() -> None:
    module = SelectiveScan(12, state=4, bidirectional=True)
    x = torch.randn(2, 7, 12, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (*module.parameters(), x))
    with use_backend("reference"):
        assert relative_error(module(x), y) < TOLERANCE[torch.float32]
    with pytest.raises(ValueError, match="wants"):
        module(torch.randn(2, 12, 7))


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
