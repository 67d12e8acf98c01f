"""Check the tensors that an operator is called with: type, dtype, device and shape.

Every operator refuses the same things in the same words: an error names the argument, what it is,
and what it must be. Axes have names, and a name has one size in all tensors of a call.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Axes = tuple[str | int, ...]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FLOATS = "float32, bfloat16, float16 or float64"
MAP = ("batch", "height", "width", "channels")
SEQUENCE = ("batch", "channels", "length")
# A tensor of these axes that comes in the other usual order, and how to put it right.
_OTHERWISE: dict[Axes, tuple[int, str, str]] = {
    MAP: (1, "(batch, channels, height, width)", "permute(0, 2, 3, 1)"),
    SEQUENCE: (2, "(batch, length, channels)", "transpose(1, 2)"),
}


def check_tensors(tensors: Mapping[str, object], optional: Collection[str] = ()) -> None:
    """Check that all are dense floating-point tensors on the device of the first one.

    Those named in ``optional`` may be None. Raises TypeError for what is not a tensor, ValueError
    for another dtype (complex, integers, 8-bit floats), a sparse layout or another device.
    """
    first: tuple[str, Tensor] | None = None
    for name, t in tensors.items():
        if t is None and name in optional:
            continue
        if not isinstance(t, Tensor):
            kind = "None" if t is None else f"a {_type(t)}"
            advice = f": give torch.as_tensor({name})" if hasattr(t, "__array__") else ""
            raise TypeError(f"{name} is {kind}; it must be a torch.Tensor{advice}")
        if t.dtype not in DTYPES:
            raise ValueError(
                f"{name} is complex; only a real {name} is supported"
                if t.is_complex()
                else f"{name} has dtype {t.dtype}; it must be {_FLOATS}"
            )
        if t.layout is not torch.strided:
            raise ValueError(f"{name} has layout {t.layout}; it must be dense: give {name}.to_dense()")
        first = first or (name, t)
        if t.device != first[1].device:
            raise ValueError(f"{name} is on {t.device}, but {first[0]} is on {first[1].device}; move one of them")


def check_dtype(name: str, dtype: object) -> None:
    """Check that an operator computes with ``dtype``. Raises ValueError for one that it does not,
    TypeError for what is no torch.dtype."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is {dtype!r}; it must be a torch.dtype, {_FLOATS}")
    if dtype not in DTYPES:
        raise ValueError(f"{name} is {dtype}; it must be {_FLOATS}")


def check_shapes(*given: tuple[str, Tensor | None, Axes]) -> dict[str, int]:
    """Check that every tensor has the axes that are named beside it; return the size of each axis.

    Given as (name, tensor or None, axes); an axis is a name, or a number for a fixed size. Raises
    ValueError naming the tensor to change. Where the first tensor comes in another order (a map
    with channels first, a sequence with channels last) and all weights agree on that, it is the
    one named; with as many channels as columns, or as steps, no shape can tell.
    """
    sizes: dict[str, int] = {}
    for name, t, axes in given:
        if t is None:
            continue
        if t.dim() != len(axes):
            raise ValueError(f"{name} has shape {tuple(t.shape)}; it must be {_words(axes)}")
        for size, axis in zip(t.shape, axes, strict=True):
            if size != (sizes.setdefault(axis, size) if isinstance(axis, str) else axis):
                raise ValueError(_other_order(*given) or _conflict(name, t, axes, axis, given))
    return sizes


def _conflict(
    name: str, t: Tensor, axes: Axes, axis: str | int, given: tuple[tuple[str, Tensor | None, Axes], ...]
) -> str:
    message = f"{name} has shape {tuple(t.shape)}; it must be {_words(axes)}"
    if not isinstance(axis, str):
        return message
    other, owner, its = next((n, o, a) for n, o, a in given if o is not None and axis in a)
    size = owner.shape[its.index(axis)]
    return f"{message} with {axis} {size}, as {other} has: {tuple(owner.shape)}, {_words(its)}"


def _other_order(first: tuple[str, Tensor | None, Axes], *others: tuple[str, Tensor | None, Axes]) -> str | None:
    """The message for a first tensor whose channels stand on another axis, by what all weights
    (tensors without a batch) say."""
    name, t, axes = first
    if axes not in _OTHERWISE:
        return None
    place, order, remedy = _OTHERWISE[axes]
    weights = [(n, o, a) for n, o, a in others if o is not None and "channels" in a and "batch" not in a]
    said = {o.shape[a.index("channels")] if o.dim() == len(a) else None for _, o, a in weights}
    if t is None or len(said) != 1 or t.shape[axes.index("channels")] in said or t.shape[place] not in said:
        return None
    weight, its, its_axes = weights[0]
    assert its is not None  # those were left out
    return (
        f"{name} has shape {tuple(t.shape)}; it must be {_words(axes)}, and {weight} {tuple(its.shape)}, "
        f"{_words(its_axes)}, has {t.shape[place]} channels: if {name} is {order}, give {name}.{remedy}"
    )


def _words(axes: Axes) -> str:
    return f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
