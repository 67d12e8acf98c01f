"""Sequences of different lengths in one row are what each is alone."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from torch import Tensor

from medmambase_kernels import SelectiveScan, selective_scan

BOUNDS = [(0, 3), (3, 4), (4, 9)]
STARTS = [begin for begin, _ in BOUNDS]


def arguments(device: str, dtype: torch.dtype = torch.float32, constant: bool = False) -> dict[str, Tensor]:
    b, d, n, l = 2, 4, 3, BOUNDS[-1][1]
    B, C = (torch.randn((d, n) if constant else (b, 2, n, l)) for _ in range(2))
    given = {"u": torch.randn(b, d, l), "delta": torch.randn(b, d, l), "A": -torch.rand(d, n), "B": B, "C": C}
    given |= {"D": torch.randn(d), "z": torch.randn(b, d, l), "delta_bias": torch.randn(d)}
    return {name: t.to(device, dtype).requires_grad_() for name, t in given.items()}


def alone(given: dict[str, Tensor], backend: str) -> tuple[Tensor, Tensor]:
    found = [
        selective_scan(
            **{name: t[..., begin:end] if t.dim() > 2 else t for name, t in given.items()},
            delta_softplus=True, return_last_state=True, backend=backend,
        )
        for begin, end in BOUNDS
    ]  # fmt: skip  # one call
    return torch.cat([y for y, _ in found], -1), torch.stack([last for _, last in found], 1)


@pytest.mark.parametrize("engine", [*ENGINES, "reference"])
@pytest.mark.parametrize("constant", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_sequence_its_last_state_and_all_gradients_are_those_of_the_sequence_alone(
    engine: str, constant: bool
) -> None:
    given = arguments(engine_device(engine), constant=constant)
    results = selective_scan(**given, delta_softplus=True, return_last_state=True, starts=STARTS, backend=engine)
    expected = alone(given, "reference")
    weights = [torch.randn_like(t) for t in expected]
    totals = [sum((t * w).sum() for t, w in zip(pair, weights, strict=True)) for pair in (results, expected)]
    gradients = [torch.autograd.grad(total, list(given.values())) for total in totals]
    for actual, right in zip((*results, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert actual.shape == right.shape and relative_error(actual, right) <= TOLERANCE[torch.float32]


def test_the_first_start_may_be_left_out_and_one_sequence_is_the_row() -> None:
    given = arguments("cpu")
    whole = selective_scan(**given, starts=STARTS)
    assert torch.equal(whole, selective_scan(**given, starts=STARTS[1:]))
    assert torch.equal(selective_scan(**given, starts=[]), selective_scan(**given))
    empty = {name: t[:0] if t.dim() > 2 else t for name, t in given.items()}
    assert selective_scan(**empty, starts=STARTS).shape == (0, 4, 9)


@pytest.mark.parametrize("starts", [[4, 4], [5, 4], [-1], [9], [3, 10], [2.0], [0, 0]])
def test_starts_that_do_not_ascend_inside_of_the_row_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^starts is .*; it must be whole numbers that ascend, from 0 to 8$"):
        selective_scan(**arguments("cpu"), starts=starts)
    with pytest.raises(ValueError, match="initial_state was given beside starts"):
        selective_scan(**arguments("cpu"), starts=STARTS, initial_state=torch.zeros(2, 4, 3))


def test_a_bias_that_the_steps_outweigh_lets_no_short_sequence_overflow() -> None:
    given = arguments("cpu") | {"A": torch.full((4, 3), -40.0), "delta_bias": torch.full((4,), -6.0)}
    given["delta"] = given["delta"].abs() + 6
    whole = selective_scan(**given, starts=STARTS)
    parts = [
        selective_scan(**{name: t[..., begin:end] if t.dim() > 2 else t for name, t in given.items()})
        for begin, end in BOUNDS
    ]
    assert relative_error(whole, torch.cat(parts, -1)) <= 1e-5
    with pytest.raises(TypeError, match="starts is of type Tensor; give a list of whole numbers"):
        selective_scan(**given, starts=torch.tensor(STARTS))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_module_takes_them_in_both_directions(bidirectional: bool) -> None:
    module, x = SelectiveScan(6, 3, bidirectional=bidirectional), torch.randn(2, 9, 6)
    expected = torch.cat([module(x[:, begin:end]) for begin, end in BOUNDS], 1)
    assert relative_error(module(x, STARTS), expected) <= 1e-5
    assert relative_error(module(x, STARTS[1:]), expected) <= 1e-5
