"""The launch table: a pure function of shape and GPU, whose rows fit each other and the kernels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmambase_kernels._triton import launch_table

SHAPES = {
    "batch": st.integers(1, 256),
    "directions": st.sampled_from([1, 4]),
    "channels": st.integers(1, 2048),
    "length": st.integers(1, 70_000),
}


@given(**SHAPES, state=st.integers(1, 64), rank=st.integers(0, 64), processors=st.integers(1, 200))
def test_forward_and_backward_agree_on_the_chunks_and_the_kernels_can_run_them(
    batch: int, directions: int, channels: int, length: int, state: int, rank: int, processors: int
) -> None:
    forward = launch_table.forward(batch, directions, channels, length, state, rank, processors)
    backward = launch_table.backward(batch, directions, channels, length, state, processors)
    assert forward.chunk == backward.chunk == launch_table.chunk_of(length)
    assert forward.chunk % forward.steps == forward.chunk % backward.steps == 0
    assert (
        launch_table.chunks_of(length) * forward.chunk >= length > (launch_table.chunks_of(length) - 1) * forward.chunk
    )
    assert not (forward.pair and (forward.chunked or directions == 1))
    assert not (forward.chunked and launch_table.chunks_of(length) == 1)
    assert not (backward.chunked and launch_table.chunks_of(length) == 1)
    assert backward.programs <= 8 * processors
    assert forward.channels == (32 if state <= 32 else 16) and backward.channels in (8, 16, 32)
    assert forward.registers == (168 if state <= 16 else 255), "a lane holds all states"


@given(
    **{name: SHAPES[name] for name in ("batch", "channels", "length")},
    groups=st.integers(1, 4),
    state=st.integers(1, 64),
    processors=st.integers(1, 200),
    constant=st.booleans(),
)
def test_the_scans_of_sequences_agree_on_the_chunks_and_the_kernels_can_run_them(
    batch: int, channels: int, length: int, groups: int, state: int, processors: int, constant: bool
) -> None:
    sizes = (batch, channels * groups, length, state, processors, groups)
    forward, backward = (
        choose(*sizes, constant) for choose in (launch_table.sequence_forward, launch_table.sequence_backward)
    )
    chunks = launch_table.chunks_of(length)
    assert forward.chunk == backward.chunk == launch_table.chunk_of(length)
    for chosen, steps in ((forward, forward.steps), (backward, backward.steps), (backward, backward.ends)):
        assert steps in (2, 4, 8), "``columns`` knows these"
        assert chosen.chunk % steps == 0
        assert not (chosen.chunked and chunks == 1)
    assert forward.channels in (16, 32) and backward.channels in (8, 16, 32)
    assert forward.registers <= 255 and (forward.registers == 255 or not constant), "a lane holds B or C too"
    assert backward.programs <= 8 * processors


@pytest.mark.parametrize(
    ("batch", "channels", "length", "programs"),
    [(64, 192, 256, 768), (64, 96, 1024, 1024), (1, 96, 16, 12)],
    ids=["1536 items in two rounds", "24576 chunks in 24", "fewer items than programs fit"],
)
def test_the_programs_of_backward_share_the_items_out_evenly(
    batch: int, channels: int, length: int, programs: int
) -> None:
    sequences = launch_table.sequence_backward(batch, 4 * channels, length, 16, 132, 4)
    images = launch_table.backward(batch, 4, channels, length, 16, 132)
    assert sequences.programs == images.programs == programs


@given(**SHAPES, state=st.integers(1, 64))
def test_what_is_kept_for_backward_does_not_depend_on_the_gpu(
    batch: int, directions: int, channels: int, length: int, state: int
) -> None:
    chunks = {
        launch_table.forward(batch, directions, channels, length, state, 3, processors).chunk
        for processors in (1, 46, 132)
    }
    assert chunks == {launch_table.chunk_of(length)}


@pytest.mark.parametrize(
    ("stage", "length", "channels", "rank", "chunked", "inside"),
    [(1, 1024, 96, 3, True, True), (2, 256, 192, 6, False, False), (4, 16, 768, 24, False, False)],
)
def test_the_stages_of_tiny_at_batch_16_take_the_rows_they_were_counted_for(
    stage: int, length: int, channels: int, rank: int, chunked: bool, inside: bool
) -> None:
    forward = launch_table.forward(16, 4, channels, length, 16, rank, 128)
    assert (forward.chunked, forward.rank_inside) == (chunked, inside), f"stage {stage}"


def test_nothing_is_kept_for_up_to_64_steps() -> None:
    assert [launch_table.chunks_of(length) for length in (1, 4, 49, 64, 65)] == [1, 1, 1, 1, 3]


def test_the_candidates_of_a_sweep_are_other_launches_of_the_same_chunks() -> None:
    for chosen in (
        launch_table.forward(16, 4, 96, 1024, 16, 3, 132), launch_table.backward(16, 4, 96, 1024, 16, 132),
        launch_table.sequence_forward(16, 384, 1024, 16, 132, 4),
        launch_table.sequence_backward(16, 384, 1024, 16, 132, 4),
    ):  # fmt: skip  # a table
        others = list(launch_table.candidates(chosen))
        assert len(others) >= 5
        assert {other.chunk for other in others} == {chosen.chunk}


@given(
    st.integers(1, 10**9),
    st.integers(1, 10**6),
    st.sampled_from([1, 4]),
    st.integers(1, 10**5),
    st.integers(1, 64),
    st.integers(0, 64),
    st.integers(1, 200),
)
def test_no_launch_keeps_a_display_waiting_whatever_the_input(
    length: int, batch: int, directions: int, channels: int, state: int, rank: int, processors: int
) -> None:
    second = 4 * 1.5e9  # instructions of warps a multiprocessor of the slowest cards issues
    forward = launch_table.forward(batch, directions, channels, length, state, rank, processors)
    backward = launch_table.backward(batch, directions, channels, length, state, processors)
    sequences = (batch * directions, channels, length, state, processors)
    launches = (
        (forward, 7.9), (backward, 34), (launch_table.sequence_forward(*sequences), 9.4),
        (launch_table.sequence_backward(*sequences), 34),
    )  # fmt: skip  # a table
    for chosen, instructions in launches:
        pair = 2 if chosen is forward and forward.pair else 1
        steps = chosen.chunk if chosen.chunked else length * pair
        assert steps <= 2 * 2**16
        programs = (
            batch
            * directions
            * -(-channels // chosen.channels)
            * (launch_table.chunks_of(length) if chosen.chunked else 1)
        )
        first, count = next(launch_table.cut(programs, steps, state, processors))
        assert first == 0
        a_processor = -(-count // processors) * steps * state
        assert a_processor * instructions / second <= 0.2, "a tenth of what the driver allows, at the full rate"
        one_program = steps * state * 528 / 16 / 1.5e9  # alone on its scheduler, an instruction a cycle
        assert one_program <= 0.2
    assert launch_table.chunks_of(length) <= 2**15


@given(st.integers(1, 5000), st.integers(1, 2**16), st.integers(1, 64), st.integers(1, 200))
def test_the_launches_take_each_program_once(programs: int, steps: int, state: int, processors: int) -> None:
    taken = [first + i for first, count in launch_table.cut(programs, steps, state, processors) for i in range(count)]
    assert taken == list(range(programs))


def test_what_a_network_does_is_one_launch() -> None:
    for batch, channels, length in ((256, 96, 56 * 56), (64, 96, 32 * 32), (1, 768, 128 * 128)):
        programs = batch * 4 * -(-channels // 32)
        assert list(launch_table.cut(programs, length, 16, 20)) == [(0, programs)], "even on a small card"


def test_more_states_than_the_kernels_take_are_refused_by_name() -> None:
    for launch in (
        lambda n: launch_table.forward(1, 1, 8, 20, n, 0, 100),
        lambda n: launch_table.backward(1, 1, 8, 20, n, 100),
        lambda n: launch_table.sequence_forward(1, 8, 20, n, 100),
        lambda n: launch_table.sequence_backward(1, 8, 20, n, 100),
    ):
        launch(64)
        with pytest.raises(ValueError, match=r"^A has 65 states; the Triton kernels take at most 64: ask for backend"):
            launch(65)
