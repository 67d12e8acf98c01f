"""Convolutions of sequences that share a row or go on from a state, by the package's names: each is
the convolution of the sequences one by one."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import relative_error
from torch import Tensor

from medmambase_kernels import causal_conv1d, drop_in
from medmambase_kernels._drop_in import convolutions


@pytest.fixture
def package() -> Iterator[ModuleType]:
    drop_in.install(quiet=True)
    yield importlib.import_module("causal_conv1d")
    drop_in.uninstall()


def one_by_one(x: Tensor, lengths: list[list[int]], weight: Tensor, bias: Tensor) -> Tensor:
    """Each sequence of each row by itself; what comes after the last one is 0."""
    rows = []
    for row, parts in zip(x, lengths, strict=True):
        *sequences, rest = row[None].split([*parts, x.shape[2] - sum(parts)], 2)
        found = [causal_conv1d(t, weight, bias, activation="silu", backend="reference") for t in sequences]
        rows.append(torch.cat([*found, torch.zeros_like(rest)], 2))
    return torch.cat(rows)


@pytest.mark.parametrize("taps", [1, 3])
def test_sequences_in_one_row_do_not_see_each_other(taps: int, package: ModuleType) -> None:
    lengths = [[3, 1, 5], [9], [1, 2]]  # the third row has padding
    numbers = [[0, 0, 0, 1, 2, 2, 2, 2, 2], [7] * 9, [1, 4, 4, *[-1] * 6]]
    seq_idx = torch.tensor(numbers, dtype=torch.int32)
    leaves = [torch.randn(3, 9, 4).transpose(1, 2), torch.randn(4, taps), torch.randn(4)]
    leaves = [t.requires_grad_() for t in leaves]
    x, weight, bias = leaves
    y = package.causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation="silu")
    expected = one_by_one(x, lengths, weight, bias)
    dy = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad(t, leaves, dy) for t in (y, expected))
    assert relative_error(y, expected) <= 1e-5
    for one, other in zip(gradients, wanted, strict=True):
        assert relative_error(one, other) <= 1e-5
    raw = importlib.import_module("causal_conv1d_cuda")
    given = [t.detach() for t in leaves]
    assert torch.equal(raw.causal_conv1d_fwd(*given, seq_idx, None, None, True), y)
    for one, other in zip(
        raw.causal_conv1d_bwd(*given, dy, seq_idx, None, None, None, False, True), wanted, strict=False
    ):
        assert other is None or relative_error(one, other) <= 1e-5
    assert package.causal_conv1d_fn(x[..., :0], weight, bias, seq_idx=seq_idx[:, :0]).shape == (3, 4, 0)


def test_what_does_not_go_with_packed_sequences_is_said(package: ModuleType) -> None:
    x, weight, seq_idx = torch.randn(2, 4, 5), torch.randn(4, 3), torch.zeros(2, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match="initial_states and return_final_states came with seq_idx"):
        package.causal_conv1d_fn(
            x, weight, seq_idx=seq_idx, initial_states=torch.zeros(2, 4, 2), return_final_states=True
        )
    with pytest.raises(ValueError, match=r"seq_idx has shape \(2, 4\) and dtype torch.int32; it must be \(2, 5\)"):
        package.causal_conv1d_fn(x, weight, seq_idx=seq_idx[:, 1:])
    with pytest.raises(ValueError, match=r"dtype torch.float32; it must be \(2, 5\), whole numbers"):
        package.causal_conv1d_fn(x, weight, seq_idx=seq_idx.float())


@pytest.mark.parametrize("length", [2, 5])  # of the ring: as short as it may be, and longer than some steps
@pytest.mark.parametrize("update", ["causal_conv1d_update", "causal_conv1d_update_ref"])
def test_a_ring_of_states_goes_round(
    update: str, length: int, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    places_of = convolutions._ring

    def distinct(*given: Any) -> Tensor:
        """No place is written twice, since a GPU would not say by which step."""
        found = places_of(*given)
        assert all(row.unique().numel() == row.numel() for row in found[:, 0])
        return found

    monkeypatch.setattr(convolutions, "_ring", distinct)
    step = getattr(convolutions, update)
    x, weight, bias = torch.randn(2, 4, 11), torch.randn(4, 3), torch.randn(4)
    whole = causal_conv1d(x, weight, bias, activation="silu", backend="reference")
    ring, came, parts = torch.zeros(2, 4, length), torch.tensor([3, 8], dtype=torch.int32), []
    for steps in x.split([1, 3, 6, 1], 2):  # six are more than the ring holds
        parts.append(step(steps, ring, weight, bias, "silu", came))
        came = came + steps.shape[2]
    assert relative_error(torch.cat(parts, 2), whole) <= 1e-5
    for row, first in enumerate((3, 8)):  # which step stands where
        places = [(first + i) % length for i in range(11 - length, 11)]
        assert torch.equal(ring[row][:, places], x[row][:, 11 - length :])
    assert step(x[..., 0], ring, weight, bias, "silu", came).shape == (2, 4)


@pytest.mark.parametrize("ring", [False, True])
def test_states_of_many_texts_are_picked_by_their_rows_and_nobodys_are_left(ring: bool, package: ModuleType) -> None:
    states, x, weight = torch.randn(5, 3, 4).transpose(1, 2), torch.randn(3, 4), torch.randn(4, 3)
    places = torch.tensor([4, -1, 0], dtype=torch.int32)
    came = torch.tensor([5, 6, 7]) if ring else None
    expected, before = states[[4, 0]].clone(), states.clone()
    y = package.causal_conv1d_update(x, states, weight, None, None, came, places)
    alone = package.causal_conv1d_update(
        x[[0, 2]], expected, weight, None, None, None if came is None else came[[0, 2]]
    )
    assert torch.equal(y[[0, 2]], alone) and not y[1].any()
    assert torch.equal(states[[4, 0]], expected) and torch.equal(states[1:4], before[1:4])


def test_the_last_steps_of_each_sequence_are_its_states(package: ModuleType) -> None:
    module = importlib.import_module("causal_conv1d.causal_conv1d_varlen")
    x = torch.randn(7, 2)
    states = module.causal_conv1d_varlen_states(x, torch.tensor([0, 5, 6, 6, 7], dtype=torch.int32), 3)
    zero = torch.zeros(2)
    expected = [[x[2], x[3], x[4]], [zero, zero, x[5]], [zero, zero, zero], [zero, zero, x[6]]]
    assert torch.equal(states, torch.stack([torch.stack(row, 1) for row in expected]))
