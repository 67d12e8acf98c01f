"""The four-direction scan: every engine equals the definition; turning the image permutes the
directions."""

import pytest
import torch
from conftest import ENGINES, TOLERANCE, TRITON, engine_device, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmambase_kernels import selective_scan_2d
from medmambase_kernels.reference import scan_order

NAMES = ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")


def make_case(
    b: int,
    h: int,
    w: int,
    d: int,
    n: int,
    r: int,
    dtype: torch.dtype = torch.float32,
    strided: bool = False,
    seed: int = 0,
) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, x_dbl = torch.randn(b, h, w, d, generator=g).to(dtype), torch.randn(b, h, w, 4, r + 2 * n, generator=g).to(dtype)
    if strided:  # channels-first memory, and every other column of a wider projection
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        x_dbl = torch.stack([x_dbl, torch.full_like(x_dbl, float("nan"))], -1)[..., 0]
    parameters = [
        torch.randn(4, d, r, generator=g),
        torch.randn(4, d, generator=g),
        -torch.rand(4, d, n, generator=g) * 4,
        torch.randn(4, d, generator=g),
    ]
    return [x, x_dbl, *parameters]


@st.composite
def cases(draw, largest_side: int = 9, largest_width: int = 12):
    side = st.integers(1, largest_side)
    return make_case(
        draw(st.integers(0, 2)), draw(side), draw(side), draw(st.integers(1, largest_width)), draw(st.integers(1, 9)),
        draw(st.integers(1, 4)), draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
        draw(st.booleans()), draw(st.integers(0, 2**16)),
    )  # fmt: skip  # one argument list


def outputs_and_gradients(args: list[Tensor], engine: str) -> dict[str, Tensor]:
    device = engine_device(engine)
    leaves = [t.detach().to(device).requires_grad_() for t in args]
    y = selective_scan_2d(*leaves, backend=engine)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    (y * weight).float().sum().backward()
    return {"y": y} | {f"gradient of {name}": t.grad for name, t in zip(NAMES, leaves, strict=True)}


def assert_equal_to_the_definition(args: list[Tensor], engine: str) -> None:
    expected = outputs_and_gradients(args, "reference")
    for name, actual in outputs_and_gradients(args, engine).items():
        assert actual.dtype == expected[name].dtype, name
        error = relative_error(actual, expected[name])
        assert error <= TOLERANCE[args[0].dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@settings(max_examples=50)
@given(args=cases())
def test_the_engines_of_the_cpu_equal_the_definition(engine: str, args: list[Tensor]) -> None:
    assert_equal_to_the_definition(args, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
@settings(max_examples=12)
@given(args=cases(largest_side=6, largest_width=6))
def test_the_triton_kernels_equal_the_definition(engine: str, args: list[Tensor]) -> None:
    assert_equal_to_the_definition(args, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("h", "w", "d", "n", "r"),
    [
        (7, 5, 33, 16, 3),
        (7, 7, 24, 8, 6),
        (14, 14, 24, 4, 2),
        (1, 1, 96, 16, 24),
        (7, 5, 96, 4, 3),
        (1, 13, 5, 1, 1),
        (13, 1, 4, 3, 6),
        (1, 1, 2, 4, 1),
        (6, 9, 40, 2, 2),
        (2, 2, 2, 64, 1),
        (3, 3, 3, 33, 1),
    ],
)
def test_odd_maps_narrow_and_wide_states_are_exact(engine: str, h: int, w: int, d: int, n: int, r: int) -> None:
    assert_equal_to_the_definition(make_case(1, h, w, d, n, r), engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("processors", [1, 10_000], ids=["many programs", "few programs"])
@pytest.mark.parametrize(
    ("b", "h", "w", "d", "n", "r"), [(1, 9, 9, 3, 2, 3), (1, 8, 12, 33, 2, 6), (4, 3, 5, 3, 4, 5), (1, 49, 2, 2, 1, 1)]
)
def test_every_way_to_launch_a_scan_of_an_image_is_exact(
    monkeypatch: pytest.MonkeyPatch, engine: str, processors: int, b: int, h: int, w: int, d: int, n: int, r: int
) -> None:
    from medmambase_kernels._triton import scan as scan_launch_triton

    monkeypatch.setattr(scan_launch_triton, "processors", lambda t: processors)
    assert_equal_to_the_definition(make_case(b, h, w, d, n, r), engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("longest", [1, 10**6], ids=["in chunks", "whole"])
@pytest.mark.parametrize("r", [3, 6])
def test_an_image_cut_into_many_launches_of_long_chunks_is_exact(
    monkeypatch: pytest.MonkeyPatch, engine: str, longest: int, r: int
) -> None:
    from medmambase_kernels._triton import launch_table
    from medmambase_kernels._triton import scan as scan_launch_triton

    pieces = []
    whole = launch_table.cut

    def watched(*sizes: int) -> list[tuple[int, int]]:
        pieces.append(list(whole(*sizes)))
        return pieces[-1]

    monkeypatch.setattr(launch_table, "_MOST_STATES", 1)
    monkeypatch.setattr(launch_table, "_MOST_CHUNKS", 2)
    monkeypatch.setattr(launch_table, "_LONGEST", longest)
    monkeypatch.setattr(launch_table, "cut", watched)
    monkeypatch.setattr(scan_launch_triton, "processors", lambda t: 1)
    assert launch_table.chunk_of(9 * 11) == 64
    assert_equal_to_the_definition(make_case(2, 9, 11, 3, 2, r), engine)
    assert len(pieces) == (4 if longest == 1 else 2)
    assert all(len(piece) > 1 for piece in pieces)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
def test_an_image_beyond_the_reach_of_32_bit_indices_is_exact(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import scan as scan_launch_triton

    monkeypatch.setattr(scan_launch_triton, "_REACH", 1)
    assert_equal_to_the_definition(make_case(1, 7, 10, 3, 2, 2), engine)


def test_batches_larger_than_the_work_space_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from medmambase_kernels._torch import selective_scan as selective_scan_torch

    monkeypatch.setattr(selective_scan_torch, "BUDGET", 1)  # an image at a time
    assert_equal_to_the_definition(make_case(3, 4, 3, 5, 2, 2), "torch")


def test_the_definition_passes_gradcheck() -> None:
    args = [t.double().requires_grad_() for t in make_case(1, 2, 3, 2, 2, 1)]
    assert torch.autograd.gradcheck(lambda *a: selective_scan_2d(*a, backend="reference"), args)
    assert torch.autograd.gradcheck(lambda *a: selective_scan_2d(*a, backend="torch"), args)


@pytest.mark.parametrize("engine", [*ENGINES, "reference"])
@pytest.mark.parametrize(
    ("turn", "directions"),
    [
        (lambda t: t.flip(1, 2), [2, 3, 0, 1]),
        (lambda t: t.transpose(1, 2), [1, 0, 3, 2]),
        pytest.param(lambda t: t.flip(1, 2).transpose(1, 2), [3, 2, 1, 0], marks=pytest.mark.slow),
    ],
    ids=["rotated", "transposed", "anti-transposed"],
)
def test_turning_the_image_permutes_the_directions(engine: str, turn, directions: list[int]) -> None:
    x, x_dbl, *parameters = (t.to(engine_device(engine)) for t in make_case(2, 3, 5, 4, 3, 2))
    y = selective_scan_2d(x, x_dbl, *parameters, backend=engine)
    turned = selective_scan_2d(
        turn(x), turn(x_dbl)[:, :, :, directions], *(p[directions] for p in parameters), backend=engine
    )
    assert relative_error(turned, turn(y)) <= TOLERANCE[torch.float32]
    assert (
        relative_error(selective_scan_2d(turn(x), turn(x_dbl), *parameters, backend=engine), turn(y)) > 0.01
    )  # the directions do differ


@pytest.mark.parametrize("engine", ENGINES)
def test_permuted_images_and_channels_give_permuted_results(engine: str) -> None:
    x, x_dbl, *parameters = (t.to(engine_device(engine)) for t in make_case(3, 3, 4, 6, 2, 2))
    y = selective_scan_2d(x, x_dbl, *parameters, backend=engine)
    images, channels = torch.tensor([2, 0, 1]), torch.tensor([3, 5, 0, 1, 4, 2])
    moved = selective_scan_2d(
        x[images][..., channels], x_dbl[images], *(p[:, channels] for p in parameters), backend=engine
    )
    assert relative_error(moved, y[images][..., channels]) <= TOLERANCE[torch.float32]


def test_the_orders_visit_every_position_once_and_begin_in_the_right_corner() -> None:
    order = scan_order(2, 3)
    assert order.tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_bit_equal(engine: str) -> None:
    args = make_case(2, 6, 7, 5, 3, 2)
    first, second = (outputs_and_gradients(args, engine) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float32_sum_can_be_had_from_half_precision(engine: str) -> None:
    args = [t.to(engine_device(engine)) for t in make_case(1, 3, 3, 4, 2, 1, torch.float16)]
    y = selective_scan_2d(*args, out_dtype=torch.float32, backend=engine)
    assert y.dtype == torch.float32
    assert (
        relative_error(y, selective_scan_2d(*args, out_dtype=torch.float64, backend="reference"))
        <= TOLERANCE[torch.float32]
    )


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_no_copy_of_x_is_kept_for_the_directions(engine: str) -> None:
    args = [t.requires_grad_() for t in make_case(1, 32, 32, 24, 2, 1)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan_2d(*args, backend=engine)
    assert sum(kept) < 2 * args[0].numel() + args[1].numel()


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.randn(2, 3, 4), "x has shape"),
        (1, torch.randn(1, 3, 4, 4, 4), "x_dbl has shape"),
        (2, torch.randn(4, 3, 2), "dt_weight has shape"),
        (3, torch.randn(4, 3), "dt_bias has shape"),
        (4, torch.randn(2, 5, 2), "A has shape"),
        (5, torch.randn(5), "D has shape"),
        (5, torch.ones(4, 5, dtype=torch.int32), "D has dtype"),
    ],
)
def test_a_wrong_argument_is_named(index: int, wrong: Tensor, message: str) -> None:
    args = make_case(1, 3, 4, 5, 2, 1)
    args[index] = wrong
    with pytest.raises(ValueError, match=message):
        selective_scan_2d(*args)


def test_the_custom_operator_passes_torchs_own_checks() -> None:
    args = [t.requires_grad_() for t in make_case(2, 3, 4, 5, 2, 1)]
    torch.library.opcheck(torch.ops.medmambase.selective_scan_2d, (*args, torch.float32, False, True, "cpu"))


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_does_not_reach_the_arithmetic(engine: str) -> None:
    args = make_case(1, 4, 5, 8, 4, 3)
    expected = outputs_and_gradients(args, engine)
    with torch.autocast(engine_device(engine).type, torch.bfloat16):
        actual = outputs_and_gradients(args, engine)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
