"""List every launch of every Triton kernel, without a GPU: the launchers run on tensors without
storage, with a recorder in the place of each kernel.

What is recorded is what they would launch, for every row of the launch table.
compile_kernels.py compiles it.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2] / "kernels")
)  # runs from a bare clone; spawned processes come past here too

# torch's name: Triton's
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32", "int64": "i64"}
MODULES = ("scan_forward", "scan_backward", "image_pack", "sequence_pack", "sequence_forward", "sequence_backward",
           "partial_sums", "squeeze_excite", "squeeze_excite_image", "gated_norm", "depthwise_silu", "causal_conv1d",
           "augment", "batch_norm", "normed_product")  # fmt: skip  # those that hold kernels
MANY, FEW = 1, 10_000  # multiprocessors: on so few of them every launch has programs enough, on so many none has
# states, rank of delta, height, width, multiprocessors; between them every row of the launch table,
# lengths that a group of steps divides and others
IMAGES = (
    (16, 3, 32, 32, MANY), (16, 3, 32, 32, FEW), (16, 6, 16, 16, MANY), (16, 24, 7, 7, FEW), (16, 3, 15, 15, MANY),
    (16, 3, 15, 15, FEW), (1, 1, 8, 8, MANY), (32, 6, 16, 16, FEW), (64, 12, 8, 8, MANY),
)  # fmt: skip  # a table
# states, length, groups, whether B and C vary, multiprocessors
SEQUENCES = ((16, 1024, 2, True, True, MANY), (16, 1023, 1, True, True, FEW), (16, 49, 1, True, False, MANY),
    (8, 64, 1, False, True, MANY),
             (4, 256, 1, False, False, FEW), (64, 100, 3, True, True, MANY))  # fmt: skip  # a table
GATES = ((96, 8, 20), (768, 48, 14), (768, 48, 4))  # channels, hidden units, height and width: the last is small
WIDTHS = (96, 768)  # channels around a scan


@dataclass
class Launch:
    """One specialisation of one kernel, as Triton's own launch would make it."""

    module: str
    kernel: str
    dtype: str
    case: str = field(compare=False)  # a label only: shapes that specialise alike are one launch
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, object] = field(default_factory=dict)
    multiples_of_16: list[int] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)
    # Of this launch alone: programs, numbers given at run time, bytes of all its tensors.
    programs: int = field(default=0, compare=False)
    sizes: dict[str, int] = field(default_factory=dict, compare=False)
    bytes: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The file and the name of the kernel, such as scan.forward."""
        return f"{self.module}.{self.kernel.lstrip('_')}"

    @property
    def specialisation(self) -> str:
        """What a compiler sees of it, besides the kernel's source: one compilation serves all
        launches of one."""
        seen = (self.module, self.kernel, self.signature, self.constants, self.multiples_of_16, self.options)
        return repr(seen)

    @property
    def states(self) -> float:
        """States a lane passes in one turn of a scan's loop, over steps or over chunks; 0 for a
        kernel that is no scan."""
        steps, states, channels = self.constants.get("STEPS", 1), *(self.constants.get(name) for name in ("N", "BD"))
        return (
            steps * states * channels / 32
            if isinstance(steps, int) and isinstance(states, int) and isinstance(channels, int)
            else 0.0
        )


class _Recorder:
    """A stand-in for a kernel that records how it is launched."""

    def __init__(self, kernel: Any, label: tuple[str, str, str, str], launches: list[Launch]) -> None:
        self.kernel, self.label, self.launches = kernel, label, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self.note, math.prod(grid))

    def note(self, programs: int, /, *args: object, **options: object) -> None:
        launch = Launch(*self.label, programs=programs)
        given = dict(zip(self.kernel.arg_names, args, strict=False))  # the rest came by name
        for i, parameter in enumerate(self.kernel.params):
            _specialise(
                launch, i, parameter, given[parameter.name] if parameter.name in given else options.pop(parameter.name)
            )
        launch.options = options
        self.launches.append(launch)


def _specialise(launch: Launch, i: int, parameter: Any, value: Any) -> None:
    """Record an argument's type, and what the compiler may assume of it: that it is this constant,
    or a multiple of 16."""
    if hasattr(value, "dtype"):
        launch.signature[parameter.name] = "*" + DTYPES[str(value.dtype).removeprefix("torch.")]
        launch.bytes += value.numel() * value.element_size()
        aligned = True  # as torch allocates
    elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
        launch.signature[parameter.name] = "constexpr"
        launch.constants[parameter.name] = value
        aligned = False
    else:
        launch.signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, int) and value % 16 == 0
    if isinstance(value, int) and not parameter.is_constexpr:
        launch.sizes[parameter.name] = value
    if aligned and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
        launch.multiples_of_16.append(i)


def _images(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import launch_table
    from medmambase_kernels._triton import selective_scan_2d as selective_scan_2d_triton

    new = partial(torch.empty, device="meta")
    for n, r, h, w, processors in IMAGES:
        b, d = 16, 96
        x, x_dbl = new(b, h, w, d, dtype=dtype), new(b, h, w, 4, r + 2 * n, dtype=dtype)
        weights = (new(4, d, r), new(4, d), new(4, d, n), new(4, d))
        forward, backward = (
            launch_table.forward(b, 4, d, h * w, n, r, processors),
            launch_table.backward(b, 4, d, h * w, n, processors),
        )
        kept = new(selective_scan_2d_triton.kept_shape(x, x_dbl, *weights))
        case = f"n{n} r{r} {h}x{w}"
        yield (
            case + _way(forward),
            partial(selective_scan_2d_triton.forward, x, x_dbl, *weights, dtype, True, True, config=forward),
        )
        yield (
            case + _way(backward),
            partial(selective_scan_2d_triton.backward, x, x, x_dbl, *weights, dtype, True, kept, config=backward),
        )


def _sequences(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import launch_table
    from medmambase_kernels._triton import selective_scan as selective_scan_triton

    new = partial(torch.empty, device="meta")
    for n, l, groups, vary_B, vary_C, processors in SEQUENCES:
        b, d = 16, 96
        u, A, D, state = new(b, d, l, dtype=dtype), new(d, n), new(d), new(b, d, n)
        B, C = (new(b, groups, n, l, dtype=dtype) if vary else new(d, n) for vary in (vary_B, vary_C))
        constant = not (vary_B and vary_C)
        forward, backward = (
            launch_table.sequence_forward(b, d, l, n, processors, groups, constant),
            launch_table.sequence_backward(b, d, l, n, processors, groups, constant),
        )
        kept = new(selective_scan_triton.kept_shape(u, u, A, B, C, D, D, state))
        case = f"n{n} l{l} g{groups}"
        yield (
            case + _way(forward),
            partial(selective_scan_triton.forward, u, u, A, B, C, D, D, state, True, dtype, True, config=forward),
        )
        yield (
            case + _way(backward),
            partial(
                selective_scan_triton.backward, u, state, u, u, A, B, C, D, D, state, True, dtype, kept, config=backward
            ),
        )
    u, B = new(16, 256, 96, dtype=dtype).transpose(1, 2), new(16, 2, 16, 256, dtype=dtype)
    given = (u, u, new(96, 16), B, B, None, None, None, True, dtype, False)  # what a prediction may leave out
    chosen = launch_table.sequence_forward(16, 96, 256, 16, MANY, 2)
    yield "n16 l256 g2 channels last", partial(selective_scan_triton.forward, *given, config=chosen)


def _gates(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import squeeze_excite as squeeze_excite_triton

    new = partial(torch.empty, device="meta")
    for c, hidden, side in GATES:
        x, squeeze, excite, kept = new(2, side, side, c, dtype=dtype), new(hidden, c), new(c, hidden), new(2, 2, c)
        half, residual = new(2, side, side, c // 2, dtype=dtype), new(2, side, side, c)
        for way, first, rest, second, factor in (
            ("", x, None, None, None),
            (" residual", x, residual, None, None),
            (" second", half, residual, half, new(2, dtype=dtype)),
        ):
            given, dy = (first, squeeze, excite, rest, second, factor, 2.0), x if rest is None else rest
            case = f"c{c} {side}x{side}{way}"
            yield case, partial(squeeze_excite_triton.forward, *given, True)
            yield case, partial(squeeze_excite_triton.backward, dy, *given, kept)


def _norms(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import gated_norm as gated_norm_triton

    new = partial(torch.empty, device="meta")
    for d in WIDTHS:
        _, z = new(2, 14, 14, 2 * d, dtype=dtype).chunk(2, -1)
        y, row, statistics = new(2, 14, 14, d), new(d), new(2, 2, 14, 14)
        yield f"d{d}", partial(gated_norm_triton.forward, y, z, row, row, 1e-5, True)
        yield f"d{d}", partial(gated_norm_triton.backward, z, y, z, row, row, 1e-5, statistics)


def _convolutions(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import depthwise_silu as depthwise_silu_triton

    new = partial(torch.empty, device="meta")
    for d in WIDTHS:
        x, _ = new(2, 14, 14, 2 * d, dtype=dtype).chunk(2, -1)
        row, taps = new(d), new(d, 1, 3, 3)
        yield f"d{d}", partial(depthwise_silu_triton.forward, x, taps, row, True)
        yield f"d{d}", partial(depthwise_silu_triton.backward, x, x, taps, row, new(0))


def _causal(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import causal_conv1d as causal_conv1d_triton

    new = partial(torch.empty, device="meta")
    for taps, states, silu in ((4, False, True), (4, True, True), (3, False, False)):
        x, _ = new(2, 2 * 96, 196, dtype=dtype).chunk(2, 1)
        given = (x, new(96, taps), new(96), new(2, 96, taps - 1) if states else None, silu)
        case = f"w{taps}{' states' if states else ''}{' silu' if silu else ''}"
        yield case, partial(causal_conv1d_triton.forward, *given, True)
        yield case, partial(causal_conv1d_triton.backward, x, *given, new(0))


def _augmentations(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import augment as augment_triton

    if dtype != torch.float32:
        return  # images are float32 whatever the network computes in
    keys = torch.empty(2, dtype=torch.int64, device="meta")
    for c, side in ((1, 128), (3, 129)):
        images = torch.empty(2, c, side, side, device="meta")
        for ultrasound, laterality in ((True, False), (True, True), (False, False)):
            kind = "ultrasound" if ultrasound else "crop"
            yield f"{kind} c{c} {side}", partial(augment_triton.forward, images, keys, ultrasound, laterality)


def _batches(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import batch_norm as batch_norm_triton

    new = partial(torch.empty, device="meta")
    for side, c in ((4, 384), (8, 192)):  # the last stages of ``tiny``
        x, _ = new(16, side, side, 2 * c, dtype=dtype).permute(0, 3, 1, 2).chunk(2, 1)
        row, dy = new(c), new(16, side, side, c, dtype=dtype).permute(0, 3, 1, 2)
        for relu, case in ((False, f"c{c} {side}x{side}"), (True, f"c{c} {side}x{side} relu")):
            yield case, partial(batch_norm_triton.forward, x, row, row, row, row, 0.1, 1e-5, relu)
            yield case, partial(batch_norm_triton.backward, dy, x, row, row, new(2, c), relu)


def _small_maps(dtype: Any) -> Iterator[tuple[str, Callable[..., object]]]:
    import torch

    from medmambase_kernels._triton import launch_table, normed_product
    from medmambase_kernels._triton import selective_scan_2d as selective_scan_2d_triton

    new = partial(torch.empty, device="meta")
    for d, side, r in ((96, 32, 3), (192, 16, 6), (384, 8, 12), (768, 4, 24)):  # the stages of ``tiny``
        row, norm, R = new(d // 2), (new(d), new(d), 1e-5), launch_table.power_of_two(r)
        given = (new(1, side, side, d), (row, row, 1e-5), new(2 * d, d // 2), row, row, dtype)
        yield f"d{d // 2}", partial(normed_product.halves, *given)
        y, (_, z) = new(4, 1, side, side, d), new(1, side, side, 2 * d, dtype=dtype).chunk(2, -1)
        for parts in (1, 4):
            yield f"d{d} of {parts}", partial(normed_product.gated, y[:parts], z, norm, new(d // 2, d), dtype)
        if dtype == torch.float32:  # in 16 bits the scan reads what a kernel has widened
            tables = (new(1, side, side, 4 * (32 + R)), new(4, R, d), new(4, 16, d), new(4, d), new(4, d))
            yield f"n16 r{r} {side}x{side}", partial(selective_scan_2d_triton.parts, y[0], *tables)


def _way(config: Any) -> str:
    return " chunked" if config.chunked else " pair" if getattr(config, "pair", False) else ""


CALLS = {  # of each operator, and of what is none
    "selective_scan_2d": _images,
    "selective_scan": _sequences,
    "squeeze_excite": _gates,
    "gated_norm": _norms,
    "depthwise_silu": _convolutions,
    "causal_conv1d": _causal,
    "augment": _augmentations,
    "batch_norm": _batches,
    "small_maps": _small_maps,
}


def kernels_of(module: str) -> dict[str, Any]:
    """Find a file's kernels by name. Kernels, unlike what they call, have parameters named like
    x_ptr."""
    members = vars(importlib.import_module(f"medmambase_kernels._triton.{module}"))
    return {
        name: f
        for name, f in members.items()
        if any(argument.endswith("_ptr") for argument in getattr(f, "arg_names", ()))
    }


def launches_of(call: Callable[[], object], dtype: str, case: str = "") -> list[Launch]:
    """Call a launcher on tensors without storage; list every launch that it makes, in order."""
    launches: list[Launch] = []
    with ExitStack() as stack:
        for module in MODULES:
            recorders = {
                name: _Recorder(kernel, (module, name, dtype, case), launches)
                for name, kernel in kernels_of(module).items()
            }
            members = vars(importlib.import_module(f"medmambase_kernels._triton.{module}"))
            stack.enter_context(mock.patch.dict(members, recorders))
        call()
    return launches


def record(dtype: str, operators: Sequence[str] = ()) -> list[Launch]:
    """List every launch that the operators, all unless named, make for inputs of dtype, each
    specialisation once."""
    import torch

    launches = (
        launch
        for name in operators or CALLS
        for case, call in CALLS[name](getattr(torch, dtype))
        for launch in launches_of(call, dtype, case)
    )
    once: dict[str, Launch] = {}
    for launch in launches:
        once.setdefault(launch.specialisation, launch)
    return list(once.values())
