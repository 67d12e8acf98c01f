"""Where the kernels read and write, beyond 2^31 elements too: a few programs of each launch,
interpreted over tensors without storage.

Every live address lies in a tensor, no store names one twice, and no program writes where another
reads or writes.
"""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from medmambase_kernels._triton import launch_table

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not triton.__version__.startswith("3.7."),
    reason="reaches into Triton's interpreter, as 3.7 has it where there is no GPU",
)
ROOM = 42  # bits of address that a tensor has to itself


class Far:
    """Stands for a tensor on "meta": a dtype and an address, ``which`` tells them apart."""

    def __init__(self, t: Tensor, which: int) -> None:
        extent = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1
        self.dtype, self.bytes, self.which = t.dtype, extent * t.element_size() if t.numel() else 0, which

    def data_ptr(self) -> int:
        return self.which << ROOM


class Programs:
    """Stands in for a kernel: interprets the first and the last programs of a launch; loads give 0,
    every live address must be inside a tensor."""

    def __init__(self, kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.patch, self.ran = kernel, monkeypatch, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: object, **options: object) -> None:
            import numpy as np
            from triton.runtime import interpreter

            builder = interpreter.interpreter_builder
            first = {id(t): i + 1 for i, t in reversed(list(enumerate(args)))}  # a tensor given twice is one
            far = [Far(t, first[id(t)]) if isinstance(t, Tensor) else t for t in args]
            read: set[int] = set()
            written: set[int] = set()
            sizes = {t.which: t.bytes for t in far if isinstance(t, Far)}

            def check(addresses, live, note: set[int]):
                addresses = addresses[live.astype(bool)].astype(np.uint64)  # a mask may come as integers
                note.update(addresses.tolist())
                for which in np.unique(addresses >> ROOM):
                    offsets = addresses[addresses >> ROOM == which] & ((1 << ROOM) - 1)
                    assert offsets.max() < sizes.get(int(which), 0), (
                        f"{self.kernel.fn.__name__}: beyond argument {self.kernel.arg_names[int(which) - 1]}"
                    )
                return addresses

            def load(ptrs, mask, other, *_: object):
                check(ptrs.data, mask.data, read)
                dtype = ptrs.get_element_ty()
                return interpreter.TensorHandle(np.zeros(ptrs.data.shape, interpreter._get_np_dtype(dtype)), dtype)

            def store(ptrs, value, mask, *_: object) -> None:
                addresses = check(ptrs.data, mask.data, written)
                assert len(np.unique(addresses)) == addresses.size, (
                    f"{self.kernel.fn.__name__} stores two lanes in one place"
                )

            self.patch.setattr(builder, "create_masked_load", load)
            self.patch.setattr(builder, "create_masked_store", store)
            self.patch.setattr(
                interpreter.GridExecutor, "_init_args_hst", lambda executor, positional, named: (positional, named)
            )
            self.patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
            self.patch.setattr(builder, "set_grid_dim", lambda *_: setattr(builder, "grid_dim", (*grid, 1, 1)))
            names = dict(zip(self.kernel.arg_names, args, strict=False))
            # Programs that add so many parts, or so many images, would take the interpreter hours;
            # other calls have few.
            skipped = names.get("of_sums", grid[0]) if names.get("parts", 0) > 100 else 0
            if names.get("batch", 0) > 100:
                skipped = max(skipped, names.get("of_weights", 0))
            blocks, last = names.get("blocks", 1), grid[0] - 1
            others_read: set[int] = set()
            others_wrote: set[int] = set()
            # ``pack`` and ``product`` do two things: the ends of the first.
            of_rows = names.get("of_rows", names.get("of_other", 0))
            ends = {0, max(0, of_rows - 1), *(max(0, last - j * blocks) for j in range(6))}
            for program in sorted(end for end in ends if end >= skipped):
                self.patch.setattr(
                    builder, "set_grid_idx", lambda *_, program=program: setattr(builder, "grid_idx", (program, 0, 0))
                )
                self.kernel[(1,)](*far, **options)
                assert not written & (others_read | others_wrote) and not read & others_wrote, (
                    f"{self.kernel.fn.__name__}: two programs meet"
                )
                others_read |= read
                others_wrote |= written
                read.clear()
                written.clear()
                self.ran += 1

        return run


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch):
    from medmambase_kernels._triton import (
        batch_norm,
        image_pack,
        normed_product,
        partial_sums,
        sequence_backward,
        sequence_forward,
        sequence_pack,
        squeeze_excite_image,
    )  # fmt: skip  # a list
    from medmambase_kernels._triton import causal_conv1d as causal_conv1d_triton
    from medmambase_kernels._triton import depthwise_silu as depthwise_silu_triton
    from medmambase_kernels._triton import gated_norm as gated_norm_triton
    from medmambase_kernels._triton import scan_backward as scan_backward_triton
    from medmambase_kernels._triton import scan_forward as scan_triton
    from medmambase_kernels._triton import squeeze_excite as squeeze_excite_triton

    stands = []
    for module, names in (
        (scan_triton, ("forward", "carry")), (scan_backward_triton, ("backward", "adjoint_ends")),
        (partial_sums, ("add",)), (image_pack, ("pack", "unpack", "totals")),
        (sequence_forward, ("forward", "carry")), (sequence_backward, ("backward", "adjoint_ends")),
        (sequence_pack, ("pack", "unpack", "totals", "lengthwise")),
        (gated_norm_triton, ("_norm", "_norm_back")), (depthwise_silu_triton, ("_stencil", "_slope", "_stencil_back")),
        (causal_conv1d_triton, ("_convolve", "_slope")),
        (squeeze_excite_triton, ("_pool", "_gate", "_gate_back", "_scale", "_scale_back")),
        (squeeze_excite_image, ("whole",)), (batch_norm, ("_norm", "_norm_back")),
        (normed_product, ("product",)),
    ):  # fmt: skip  # a table
        for name in names:
            stands.append(Programs(getattr(module, name), monkeypatch))
            monkeypatch.setattr(module, name, stands[-1])
    yield
    assert any(stand.ran for stand in stands)


def new(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.slow
@pytest.mark.parametrize("r", [3, 6])
@pytest.mark.parametrize(
    ("b", "h", "w", "d"),
    [(12_000_000, 2, 3, 32), (1, 8, 16, 5_000_000), (700_000, 9, 11, 33)],
    ids=["images", "channels", "chunks"],
)
def test_a_scan_of_images_stays_inside_its_tensors(
    far, monkeypatch: pytest.MonkeyPatch, b: int, h: int, w: int, d: int, r: int
) -> None:
    from medmambase_kernels._triton import image_pack
    from medmambase_kernels._triton import selective_scan_2d as scan

    monkeypatch.setattr(image_pack, "unpacked", lambda *_: (None,) * 5)  # its loops would be long: see below
    n = 2
    x, x_dbl, weights = new(b, h, w, d), new(b, h, w, 4, r + 2 * n), (new(4, d, r), new(4, d), new(4, d, n), new(4, d))
    kept = new(*scan.kept_shape(x, x_dbl, *weights))
    for chunked in (False, True) if h * w > 64 else (False,):
        forward = replace(launch_table.forward(b, 4, d, h * w, n, r, 1), chunked=chunked, pair=not chunked and r > 4)
        scan.forward(x, x_dbl, *weights, torch.float32, True, True, config=forward)
        backward = replace(launch_table.backward(b, 4, d, h * w, n, 1), chunked=chunked, programs=2**31 - 1)
        scan.backward(x, x, x_dbl, *weights, torch.float32, True, kept, config=backward)


@pytest.mark.parametrize(
    ("b", "d", "blocks", "parts", "other"),
    [(36_000_000, 70, 2, 3, "totals"), (1040, 1_100_000, 1, 130, "unpack")],
    ids=["images", "channels"],
)
def test_the_gradients_of_a_projection_stay_inside_their_tensors(
    far, monkeypatch: pytest.MonkeyPatch, b: int, d: int, blocks: int, parts: int, other: str
) -> None:
    from medmambase_kernels._triton import image_pack

    n, r, l = 2, 3, 2
    x, x_dbl = new(d, b, 1, l).movedim(0, 3), new(b, 1, l, 4, r + 2 * n)
    _, rows, A2, table, _ = image_pack.packed(x, x_dbl, new(4, d, n), new(4, d, r), True, True)
    given = (new(4, b, l, d), new(blocks, b, l, 4, n, 2), new(b, l, 4, d), new(parts, 4, n + 2, d))
    monkeypatch.setattr(image_pack, other, MagicMock())  # whose loops would be long here
    image_pack.unpacked(*given, rows, A2, table, x, x_dbl, n, r, True)


@pytest.mark.slow
@pytest.mark.parametrize("varies", [True, False])
@pytest.mark.parametrize(
    ("b", "d", "l", "g"), [(12_000_000, 48, 6, 3), (2, 20_000_000, 70, 2)], ids=["sequences", "channels"]
)
def test_a_scan_of_sequences_stays_inside_its_tensors(far, b: int, d: int, l: int, g: int, varies: bool) -> None:
    from medmambase_kernels._triton import selective_scan as scan

    n = 2
    u, A, D, state = new(b, d, l), new(d, n), new(d), new(b, d, n)
    strided = new(l, b, d).movedim(0, 2)
    B = new(b, g, n, l) if varies else new(d, n)
    kept = new(*scan.kept_shape(u, u, A, B, B, D, D, state))
    for chunked in (False, True) if l > 64 else (False,):
        forward = replace(launch_table.sequence_forward(b, d, l, n, 1, g), chunked=chunked)
        scan.forward(u, strided, A, B, B, D, D, state, True, torch.float32, True, config=forward)
        backward = replace(launch_table.sequence_backward(b, d, l, n, 1, g), chunked=chunked, programs=2**31 - 1)
        scan.backward(strided, state, u, u, A, B, B, D, D, state, True, torch.float32, kept, config=backward)


def test_parts_of_gradients_are_added_inside_their_tensors(far) -> None:
    from medmambase_kernels._triton import partial_sums, sequence_pack

    d, n, parts = 100_000_000, 2, 12
    size, cut = 10 * d, 9 * d
    partial_sums.add[(-(-size // 32),)](new(parts, size), new(cut), new(d), parts, size, cut, BP=32, BC=32)
    gradients, blocks = (new(d, n), new(d, n), new(d, n), new(d), new(d)), -(-d // 32)
    sizes = {"N": n, "VARY_B": False, "VARY_C": False, "BP": 32, "BD": 32}
    sequence_pack.totals[(8 * blocks,)](new(parts, 8, d), *gradients, parts, d, n, blocks, **sizes)
    b, g, l, parts = 60_000_000, 3, 6, 6
    drows, dB = new(parts, b, l, g, n, 2), new(b, g, n, l)
    sizes = {"GROUPS": g, "N": n, "VARY_B": True, "VARY_C": True, "BX": 16}
    sequence_pack.unpack[(b * g,)](drows, dB, new(b, g, n, l), l, n, 1, parts, drows[0].numel(), **sizes)


@pytest.mark.parametrize(
    ("b", "h", "w", "d"), [(2, 3, 3, 150_000_000), (4_000_000, 3, 3, 64)], ids=["channels", "images"]
)
def test_a_convolution_stays_inside_its_tensors(
    far, monkeypatch: pytest.MonkeyPatch, b: int, h: int, w: int, d: int
) -> None:
    from medmambase_kernels._triton import depthwise_silu as conv

    monkeypatch.setattr(conv, "_PROGRAMS", 2**31)
    x, taps, row = new(b, h, w, d), new(d, 1, 3, 3), new(d)
    conv.forward(x, taps, row, True)
    conv.backward(x, x, taps, row, new(0))


@pytest.mark.slow
@pytest.mark.parametrize(("b", "d", "l"), [(2, 40_000_000, 70), (24_000_000, 20, 6)], ids=["channels", "sequences"])
def test_a_causal_convolution_stays_inside_its_tensors(
    far, monkeypatch: pytest.MonkeyPatch, b: int, d: int, l: int
) -> None:
    from medmambase_kernels._triton import causal_conv1d as causal_conv1d_triton

    monkeypatch.setattr(causal_conv1d_triton, "_PROGRAMS", 2**31)
    x, late = new(b, d, l), new(b, l, d).transpose(1, 2)
    for first, states in ((x, None), (late, new(b, d, 3))):
        causal_conv1d_triton.forward(first, new(d, 4), new(d), states, True, True)
        causal_conv1d_triton.backward(late, first, new(d, 4), new(d), states, True, new(0))


def test_a_norm_and_a_gate_stay_inside_their_tensors(far, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmambase_kernels._triton import gated_norm as gated_norm_triton
    from medmambase_kernels._triton import squeeze_excite as squeeze_excite_triton
    from medmambase_kernels._triton import squeeze_excite_image

    monkeypatch.setattr(gated_norm_triton, "_STRIPS", 2**31)
    x, row, statistics = new(5_000_000, 3, 3, 64), new(64), new(2, 5_000_000, 3, 3)
    gated_norm_triton.forward(x, x, row, row, 1e-5, True)
    gated_norm_triton.backward(x, x, x, row, row, 1e-5, statistics)
    squeeze, excite = new(8, 64), new(64, 8)
    for images, most in ((5_000_000, 0), (3, 0), (5_000_000, 1 << 15)):
        monkeypatch.setattr(squeeze_excite_image, "_MOST", most)
        x, half, factor, means = new(images, 3, 3, 64), new(images, 3, 3, 32), new(images), new(2, images, 64)
        plain = ((x, (None, None, None)), (x, (x, None, None))) if images > 3 and not most else ()
        for first, others in (*plain, (half, (x, half, factor))):
            squeeze_excite_triton.forward(first, squeeze, excite, *others, 2.0, True)
            squeeze_excite_triton.backward(x, first, squeeze, excite, *others, 2.0, means)


def test_a_batch_norm_and_a_product_of_small_maps_stay_inside_their_tensors(far) -> None:
    from medmambase_kernels._triton import batch_norm, normed_product

    c = 1_500_001
    x, row = new(1, 17, 129, 2 * c).permute(0, 3, 1, 2)[:, :, :16, :128][:, c:], new(c)
    batch_norm.forward(x, row, row, row, row, 0.1, 1e-5, True)
    batch_norm.backward(x, x, row, row, new(2, c), True)
    x, row, W = new(5_000_000, 3, 3, 65), new(32), new(33, 32)
    normed_product.halves(x[..., 1:], (row, row, 1e-5), W, row, row, torch.float32)
    z = new(5_000_000, 3, 3, 65)[..., 33:]
    normed_product.gated(new(4, 5_000_000, 3, 3, 32), z, (row, row, 1e-5), W, torch.float32)


@pytest.mark.parametrize(
    ("n", "d", "r", "side"),
    [(64, 1, 1, 2048), (2, 4096, 1, 512), (64, 1024, 1, 256)],
    ids=["rows", "channels", "states"],
)
def test_positions_are_64_bits_wide_where_32_do_not_reach(far, n: int, d: int, r: int, side: int) -> None:
    import triton.language as tl

    from medmambase_kernels._triton import scan as scan_launch_triton
    from medmambase_kernels._triton import selective_scan_2d as selective_scan_2d_triton

    for height, index in ((side, tl.int64), (side // 4, tl.int32)):
        args = (
            new(1, height, side, d),
            new(1, height, side, 4, r + 2 * n),
            new(4, d, r),
            new(4, d),
            new(4, d, n),
            new(4, d),
        )
        assert selective_scan_2d_triton._scan(*args, False, rank_inside=True).shared["INDEX"] is index
    assert scan_launch_triton._REACH == 2**31
