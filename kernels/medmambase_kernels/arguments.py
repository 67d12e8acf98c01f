"""Check what an operator or a module is called with: type, dtype, device and shape of tensors, and
sizes, numbers and flags.

Everything is refused in the same words: an error names the argument, what it is, and what it must
be; of a wrong type it is a TypeError, else a ValueError. Axes have names, and a name has one size
in all tensors of a call.
"""

import operator
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

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
        t = check_tensor(name, t)
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


def check_tensor(name: str, value: object) -> Tensor:
    """Return ``value``, of any dtype. Raises TypeError for what is not a tensor."""
    if isinstance(value, Tensor):
        return value
    advice = f": give torch.as_tensor({name})" if hasattr(value, "__array__") else ""
    raise TypeError(f"{name} is {'None' if value is None else _a(value)}; it must be a torch.Tensor{advice}")


def check_size(name: str, value: object, least: int = 1) -> int:
    """Return a whole number, at least ``least``; 8.0, "8" and True are none."""
    try:
        size = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # what has none raises
    except TypeError:
        size = None
    if size is None:
        raise TypeError(f"{name} is {value!r}; it must be a whole number, at least {least}")
    if size < least:
        raise ValueError(f"{name} is {size}; it must be a whole number, at least {least}")
    return size


def check_number(name: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """Check that ``value`` is a finite number, above or at least a limit."""
    limit = f" above {above:g}" if above is not None else f", at least {least:g}" if least is not None else ""
    if isinstance(value, bool) or not isinstance(value, float | int | torch.SymFloat | torch.SymInt | Real):
        raise TypeError(f"{name} is {value if isinstance(value, Tensor) else repr(value)}; it must be a number{limit}")
    number: Any = value  # of whichever of these types
    fits = float("-inf") < number < float("inf") and (least is None or number >= least)
    if not fits or (above is not None and number <= above):
        raise ValueError(f"{name} is {value}; it must be a number{limit}")


def check_flag(name: str, value: object) -> bool:
    """Return True or False, as which 1, 0 and NumPy's count too; "yes" and None do not."""
    if isinstance(value, bool):
        return value
    # NumPy's has the same name, and before its second version another.
    if type(value).__name__ in ("bool", "bool_") or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} is {value!r}; it must be True or False")


def check_device(name: str, device: object) -> None:
    """Check that PyTorch knows a device of that name."""
    if isinstance(device, torch.device):
        return
    wanted = "it must be a torch.device, or its name, such as 'cpu' or 'cuda:0'"
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise TypeError(f"{name} is {device!r}; {wanted}")
    try:
        torch.device(device)
    except RuntimeError as error:
        why = "" if isinstance(device, str) else f" ({str(error).splitlines()[0].rstrip('.')})"
        raise ValueError(f"{name} is {device!r}{why}; {wanted}") from error


def check_factory(device: object, dtype: object) -> torch.dtype:
    """Check where and in which dtype a module's weights are made, as in torch.nn, and return the
    dtype: PyTorch's default one for None. Raises ValueError for a device that is not there."""
    if device is not None:
        check_device("device", device)
        _check_reached(device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    check_dtype("dtype", dtype)
    assert isinstance(dtype, torch.dtype)  # as was checked
    return dtype


def _check_reached(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    # torch raises either of the first two, with or without CUDA in its build, and the third for
    # devices that another package brings.
    except (RuntimeError, AssertionError, ImportError) as error:
        why = f"{error}\n".splitlines()[0].partition(". ")[0].rstrip(".")
        raise ValueError(
            f"device is {str(device)!r}, which cannot be used here ({why}); it must be one that PyTorch has here, such "
            f"as 'cpu'"
        ) from error


def check_input(name: str, x: Tensor, weight: Tensor) -> None:
    """Check that a module's input has the dtype and the device of its weights; under autocast, any
    dtype that it casts."""
    if x.device != weight.device:
        raise ValueError(f"{name} is on {x.device}, and the module's weights are on {weight.device}; move one of them")
    if x.dtype == weight.dtype:
        return
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return
    raise ValueError(
        f"{name} has dtype {x.dtype}, and the module's weights have {weight.dtype}; give {name}.to({weight.dtype}), or "
        f"convert the module: .to({x.dtype})"
    )


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


def _a(value: object) -> str:
    """The type of a value with its article."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
