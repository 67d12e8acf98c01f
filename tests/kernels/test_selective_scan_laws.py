"""The 1-D scan obeys the laws of a causal linear recurrence, whatever engine runs it."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import cases, outputs_and_gradients, stiff_case
from torch import Tensor

from medmambase_kernels import selective_scan


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
