"""The scan of sequences on a GPU: where its kernels read and write, how they are launched, and how
many there are."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import HAS_TRITON, TOLERANCE, TRITON, engine_device, relative_error
from scan_cases import assert_equal_to_the_definition, outputs_and_gradients, stiff_case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medmambase_kernels import selective_scan


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize(
    "state", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["from a state", "from zero"]
)
@pytest.mark.parametrize("l", [1, 2, 3, 4, 8, 11, 13, 14, 15])  # every remainder of a tile, and less than one
def test_tiles_that_the_length_does_not_fill_are_exact(engine: str, l: int, state: bool) -> None:
    d, n = 70, 3  # two groups of 35 channels: a full warp and three lanes of another
    args = stiff_case(d, l, n, -1.0, -0.5) | {name: torch.randn(1, 2, n, l) for name in ("B", "C")}
    if not state:
        args |= {"initial_state": None, "D": None}
    assert_equal_to_the_definition(args, True, engine)


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_tensor_has_a_dtype_of_its_own(engine: str, dtype: torch.dtype) -> None:
    others = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float16, torch.float16: torch.float32}
    args = stiff_case(5, 24, 4, -1.0, -0.5) | {"delta": torch.randn(1, 5, 24)}
    dtypes = {"u": dtype, "delta": others[dtype], "B": torch.float64, "C": others[others[dtype]]}
    args |= {name: args[name].to(dtype) for name, dtype in dtypes.items()}
    expected, actual = (outputs_and_gradients(args, True, backend) for backend in ("reference", engine))
    for name, t in actual.items():
        assert t.dtype == expected[name].dtype, name
        limit = max(TOLERANCE[t.dtype], TOLERANCE[torch.float32] if name != "y" else TOLERANCE[dtype])
        # The gradient of y, rounded to u's dtype, comes to both.
        assert relative_error(t, expected[name]) <= limit, name


def _lying(t: Tensor, layout: str) -> Tensor:
    """The same numbers, elsewhere in memory; where expanded, the first sequence again and again."""
    b, d, l = t.shape
    if layout == "out of longer ones":
        return torch.cat([t, torch.full((b, d, 3), float("nan"))], 2)[..., :l]
    if layout == "shifted by one":
        return torch.cat([torch.full((b, d, 1), float("nan")), t], 2)[..., 1:]
    if layout == "out of more channels":
        return torch.cat([t, torch.full((b, 3, l), float("nan"))], 1)[:, :d]
    if layout == "channels last":
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    return t[:1].expand(b, d, l)


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("processors", [1, pytest.param(10_000, marks=pytest.mark.slow)], ids=["whole", "in chunks"])
@pytest.mark.parametrize(
    "layout",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("out of longer ones", "channels last", "expanded", "out of more channels")
        ),
        "shifted by one",
    ],
)
def test_sequences_are_read_wherever_they_lie(
    monkeypatch: pytest.MonkeyPatch, engine: str, processors: int, layout: str
) -> None:
    from medmambase_kernels._triton import selective_scan as sequences

    monkeypatch.setattr(sequences, "processors", lambda t: processors)
    b, d, n, l = 2, 5, 3, 72
    u, dy = (_lying(torch.randn(b, d, l), layout) for _ in range(2))
    delta = _lying(torch.randn(b, d, l), "out of more channels")
    if layout == "out of more channels":  # never with u's strides
        delta = delta.contiguous()
    weights = (-torch.rand(n, d).t(), *(torch.randn(b, n, l) for _ in range(2)))
    results = []
    for backend in ("reference", engine):
        leaves = [t.to(engine_device(backend)).detach().requires_grad_() for t in (u, delta, *weights)]
        assert leaves[0].stride() == u.stride()
        y = selective_scan(*leaves, delta_softplus=True, backend=backend)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(y.device))])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("engine", [TRITON])
def test_sequences_that_lie_along_the_length_are_not_copied(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import selective_scan as sequences

    u = torch.randn(2, 5, 30)
    for t, copied in ((u, False), (u[:, 1:, 3:20], False), (u.transpose(1, 2).contiguous().transpose(1, 2), True)):
        t = t.to(engine_device(engine))
        along = sequences._lengthwise(t)
        assert torch.equal(along, t)
        assert (along.data_ptr() != t.data_ptr()) == copied
        assert along.stride(2) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
def test_a_scan_cut_into_many_launches_of_long_chunks_is_exact(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import launch_table
    from medmambase_kernels._triton import selective_scan as sequences

    monkeypatch.setattr(launch_table, "_MOST_STATES", 1)
    monkeypatch.setattr(launch_table, "_MOST_CHUNKS", 2)
    monkeypatch.setattr(sequences, "_SUMMED", 1)
    monkeypatch.setattr(sequences, "processors", lambda t: 1)
    assert launch_table.chunk_of(90) == 64
    for longest in (1, 10**6):
        monkeypatch.setattr(launch_table, "_LONGEST", longest)
        assert_equal_to_the_definition(stiff_case(3, 90, 2, -1.0, -0.5), True, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [TRITON])
def test_sequences_beyond_the_reach_of_32_bit_indices_are_exact(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    from medmambase_kernels._triton import selective_scan as sequences

    monkeypatch.setattr(sequences, "_REACH", 1)
    for processors in (1, 10_000):
        monkeypatch.setattr(sequences, "processors", lambda t, processors=processors: processors)
        assert_equal_to_the_definition(stiff_case(3, 70, 2, -1.0, -0.5), True, engine)


class Kernels(TorchDispatchMode):
    """Counts the kernels that a GPU would run: ours, with nothing in their place, and torch's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        from medmambase_kernels._triton import sequence_backward, sequence_forward, sequence_pack

        for module, names in (
            (sequence_forward, ("forward", "carry")), (sequence_backward, ("backward", "adjoint_ends")),
            (sequence_pack, ("pack", "unpack", "totals", "lengthwise")),
        ):  # fmt: skip  # a table
            for name in names:
                monkeypatch.setattr(module, name, self._counting(name))

    def _counting(self, name: str) -> dict[tuple[int, ...], Callable[..., None]]:
        return defaultdict(lambda: lambda *_, **__: self.names.append(name))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        poisoned = function.name() == "aten::fill_.Scalar" and args[1] != args[1]
        if not (function.is_view or "empty" in function.name() or poisoned):
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("processors", "most", "most_of_both"), [(1, 2, 6), (10_000, 4, 10)])
def test_a_scan_is_few_kernels(
    monkeypatch: pytest.MonkeyPatch, processors: int, most: int, most_of_both: int, dtype: torch.dtype
) -> None:
    from medmambase_kernels._triton import selective_scan as sequences

    monkeypatch.setattr(sequences, "processors", lambda t: processors)
    b, d, g, n, l = 2, 64, 4, 16, 128
    new = partial(torch.empty, device="meta")
    u, rows = new(b, d, l, dtype=dtype), new(b, g, n, l, dtype=dtype)
    given = (u, u, new(d, n), rows, rows, new(d), new(d), None, True, dtype)
    with Kernels(monkeypatch) as kernels:
        y, last, kept = sequences.forward(*given, True)
        assert len(kernels.names) <= most, kernels.names
        sequences.backward(y, last, *given, kept)
    assert len(kernels.names) <= most_of_both, kernels.names  # and one that makes zeros of the last state's gradient
