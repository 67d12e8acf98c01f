"""The model of a multiprocessor predicts what can be reasoned without it: tools/kernels/sm_model.py
on four small loops, assembled by NVIDIA's assembler for compute capability 9.0.

Their source, in machine_code/four_loops.sass: ``chain``, 20 exponentials, each of the one before;
``products``, 64 multiply-adds in 8 independent chains; ``load``, a load and 16 multiply-adds that
wait for it and for each other; ``ahead``, 32 such multiply-adds, whose data an asynchronous copy
brought two turns before.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from machine_code import Instruction, loops
from sm_model import H200, Multiprocessor, Place, predict

TEXT = (Path(__file__).parent / "machine_code" / "four_loops.sass").read_text(encoding="utf-8")
PRODUCTS, AHEAD, LOAD, CHAIN = (loop.code for loop in loops(TEXT))  # the longest first


class NearMultiprocessor(Multiprocessor):
    """All global loads find their data in the L1."""

    def place(self, one: Instruction) -> Place:
        return Place("l1", 1, 1.0)


class FarMultiprocessor(Multiprocessor):
    """All global loads and copies find theirs in the L2, a new line each time."""

    def place(self, one: Instruction) -> Place:
        return Place("l2", 1, 1.0)


def test_the_control_bits_are_read_from_the_second_half_of_a_word() -> None:
    load = next(one for one in LOAD if one.name == "LDG")
    assert (load.opcode, load.bits, load.write, load.wait) == ("LDG.E", 32, 2, 0)  # 0x...ea2...
    first_use = next(one for one in LOAD if one.name == "FFMA")
    assert first_use.wait == 1 << load.write  # 0x004f...: it waits for what the load releases
    assert [one.stall for one in LOAD if one.name == "FFMA"][:3] == [4, 4, 4]  # a multiply-add takes four cycles


def test_exponentials_that_depend_on_each_other_take_their_latency_each() -> None:
    cycles = predict(CHAIN, warps=1).cycles
    assert 20 * 22 <= cycles <= 20 * 22 + 20 * 2 + 20  # each is there 22 cycles after the issue; the jump
    assert predict(CHAIN, warps=4).cycles == pytest.approx(cycles)  # a scheduler each: nothing is shared


def test_exponentials_of_many_warps_are_bound_by_the_unit() -> None:
    prediction = predict(CHAIN, warps=16)
    assert prediction.cycles == pytest.approx(4 * 20 * 8, rel=0.03)  # four warps a scheduler, 8 cycles each
    assert prediction.busy["special"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("warps", "a_scheduler"), [(8, 2), (16, 4), (32, 8)])
def test_independent_products_are_bound_by_one_issue_a_cycle_and_scheduler(warps: int, a_scheduler: int) -> None:
    prediction = predict(PRODUCTS, warps)
    assert prediction.cycles == pytest.approx(a_scheduler * len(PRODUCTS), rel=0.02)
    assert prediction.busy["issue"] == pytest.approx(1, abs=0.05)


def test_warps_of_different_schedulers_do_not_share_issue() -> None:
    assert predict(PRODUCTS, warps=4).cycles == pytest.approx(predict(PRODUCTS, warps=1).cycles)


def test_a_load_that_is_used_at_once_costs_the_latency_of_where_it_lies() -> None:
    products = 16 * 4  # each waits for the one before
    far, near = predict(LOAD, warps=4), predict(LOAD, warps=4, machine=NearMultiprocessor())
    assert 650 + products <= far.cycles <= 650 + products + 50
    assert 35 + products <= near.cycles <= 35 + products + 50
    assert far.waits["barriers"] > 0.8
    slower = replace(H200, latency=replace(H200.latency, hbm=850))
    assert predict(LOAD, warps=4, machine=slower).cycles == pytest.approx(far.cycles + 200, abs=2)


def test_loads_of_many_warps_hide_behind_each_other_until_the_memory_is_busy() -> None:
    one = predict(LOAD, warps=1).cycles
    assert predict(LOAD, warps=16).cycles == pytest.approx(one, rel=0.1)
    narrow = replace(H200, hbm_bytes=1.0)  # 128 bytes a turn and warp, one a cycle
    bound = predict(LOAD, warps=16, machine=narrow)
    assert bound.cycles == pytest.approx(16 * 128, rel=0.02)
    assert bound.busy["memory"] == pytest.approx(1, abs=0.1)


def test_copies_two_turns_ahead_are_not_waited_for_and_those_of_this_turn_are() -> None:
    waited = [
        Instruction(one.text.replace("SB0, 0x2", "SB0, 0x0"), one.stall, one.write, one.read, one.wait) for one in AHEAD
    ]
    assert waited != list(AHEAD)
    products, shared = 32 * 4, 29
    ahead, at_once = (predict(code, 1, FarMultiprocessor()) for code in (AHEAD, waited))
    assert products + shared <= ahead.cycles <= products + shared + 60
    assert ahead.waits.get("asynchronous copies", 0) < 0.02
    assert 260 + products + shared <= at_once.cycles <= 260 + products + shared + 60


def test_an_access_whose_predicate_is_never_true_takes_no_unit() -> None:
    never = [one for one in AHEAD if one.never]
    assert [one.name for one in never] == ["LDS"] * 3  # filled in by the assembler before a copy
    without = [one for one in AHEAD if not one.never]
    slots = predict(AHEAD, 4).busy["load/store"] * predict(AHEAD, 4).cycles
    assert slots == pytest.approx(predict(without, 4).busy["load/store"] * predict(without, 4).cycles, rel=0.02)


def test_a_prediction_is_the_same_each_time() -> None:
    assert predict(AHEAD, 6) == predict(AHEAD, 6)


@pytest.mark.parametrize(("warps", "turns"), [(0, 12), (1, 1)])
def test_no_warps_or_too_few_turns_are_refused(warps: int, turns: int) -> None:
    with pytest.raises(ValueError, match=f"got {warps} warps, {turns} turns"):
        predict(LOAD, warps, turns=turns)
