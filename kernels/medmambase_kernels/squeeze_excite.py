"""The squeeze-and-excitation gate (Hu et al. 2018), as a function and as a module that owns its
weights.

Checks, then the custom operator, then the backend that ``backend`` chose; the definition is
``reference.squeeze_excite``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import (
    MAP,
    check_factory,
    check_number,
    check_shapes,
    check_size,
    check_tensors,
)
from medmambase_kernels.custom_op import register

HALF = ("batch", "height", "width", "channels / 2")


def squeeze_excite(
    x: Tensor,
    squeeze: Tensor,
    excite: Tensor,
    residual: Tensor | None = None,
    second: Tensor | None = None,
    factor: Tensor | None = None,
    *,
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """x * scale * sigmoid(excite . relu(squeeze . mean of x over positions)); with ``residual``,
    that plus the product with its channels shuffled.

    Args:
        x: (b, h, w, c), channels last, at least one position. A map (b, c, h, w) is refused where
        its width is not c; where it is, no shape can tell.
        squeeze: (hidden, c). excite: (c, hidden).
        residual: (b, h, w, c), c even, or None. The product's two halves of channels are
        interleaved (channel 2i is its i, 2i + 1 its c / 2 + i) and added to it.
        second: (b, h, w, c / 2), with ``residual`` only, or None. x, of the same shape, and second
        are then what the two halves of the channels are made of: relu(x), and second times
        ``factor``.
        factor: (b,), of each image, with ``second`` only, or None for 1. It has no gradient.
        scale: what a gate of sigmoid 1 multiplies by; with 2, zero ``excite`` weights change
        nothing.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64, each its own: x alone decides the dtype of
    the arithmetic, float64 for a float64 x, else float32. A gradient has the dtype of its argument.

    Returns:
        (b, h, w, c) in x's dtype, or in that of ``residual``, rounded once.

    Raises:
        TypeError: an argument that is no tensor, or a scale that is no number. ValueError: a shape,
        dtype or device that does not fit, a factor that requires a gradient, or a scale of 0 or
        less. BackendError: the backend asked for cannot run.
    """
    _check(x, squeeze, excite, residual, second, factor, scale)
    choice = engines.choose("squeeze_excite", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    squeeze, excite = squeeze.to(work), excite.to(work)
    if choice.name == "reference":
        dtype = x.dtype if residual is None else residual.dtype
        return reference.squeeze_excite(x, squeeze, excite, residual, second, factor, scale).to(dtype)
    (y,) = _gate(x, squeeze, excite, residual, second, factor, scale, choice.name)
    return y


class SqueezeExcite(nn.Module):
    """A squeeze-and-excitation gate that owns its two weights: (b, h, w, channels) -> the same
    shape and dtype.

    The hidden width is channels // reduction, at least ``hidden_min``. With ``scale`` 2 the gate
    starts at exactly 1, with 1 it is the published gate, which starts near 0.5. ``device`` and
    ``dtype`` are of the weights, as in torch.nn. Raises TypeError for an argument of another type;
    ValueError for a size below 1, a scale of 0 or less, and a dtype that no gate computes with;
    BackendError for a backend that there is not.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden_min: int = 8,
        scale: float = 1.0,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = check_size("channels", channels)
        hidden = max(check_size("hidden_min", hidden_min), channels // check_size("reduction", reduction))
        check_number("scale", scale, above=0)
        engines.check_backend(backend)
        dtype = check_factory(device, dtype)
        self.scale, self.backend = scale, backend
        squeeze = torch.empty(hidden, channels, device=device, dtype=dtype)
        excite = torch.zeros(channels, hidden, device=device, dtype=dtype)
        self.squeeze = nn.Parameter(nn.init.kaiming_uniform_(squeeze, nonlinearity="relu"))
        self.excite = nn.Parameter(nn.init.xavier_uniform_(excite) if scale == 1.0 else excite)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        second: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels); with ``residual`` of the same shape,
        shuffled and added to it; with ``second``, of halves (b, h, w, channels / 2): see
        ``squeeze_excite``."""
        weights = (self.squeeze, self.excite)
        return squeeze_excite(x, *weights, residual, second, factor, scale=self.scale, backend=self.backend)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, (b, channels), for x (b, h, w, channels): what ``forward``
        multiplies by."""
        check_tensors({"x": x})
        check_shapes(("x", x, MAP), ("squeeze", self.squeeze, ("hidden", "channels")))
        pooled = x.mean((1, 2), dtype=self.squeeze.dtype)
        return self.scale * torch.sigmoid(F.relu(pooled @ self.squeeze.t()) @ self.excite.t())

    def extra_repr(self) -> str:
        """The sizes and options, for print."""
        hidden, channels = self.squeeze.shape
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return f"{channels}, hidden={hidden}, scale={self.scale}{backend}"


def _check(
    x: Tensor,
    squeeze: Tensor,
    excite: Tensor,
    residual: Tensor | None,
    second: Tensor | None,
    factor: Tensor | None,
    scale: float,
) -> None:
    check_tensors(
        {"x": x, "squeeze": squeeze, "excite": excite, "residual": residual, "second": second, "factor": factor},
        optional=["residual", "second", "factor"],
    )
    for name, t, missing, other in (("second", second, residual, "residual"), ("factor", factor, second, "second")):
        if t is not None and missing is None:
            raise ValueError(f"{name} has shape {tuple(t.shape)} and {other} is None; give {other} too, or no {name}")
    if factor is not None and factor.requires_grad:
        raise ValueError("factor requires a gradient, and none is computed for it; give factor.detach()")
    if second is None:
        sizes = check_shapes(
            ("x", x, MAP),
            ("squeeze", squeeze, ("hidden", "channels")),
            ("excite", excite, ("channels", "hidden")),
            ("residual", residual, MAP),
        )
    else:
        sizes = check_shapes(
            ("residual", residual, MAP),
            ("squeeze", squeeze, ("hidden", "channels")),
            ("excite", excite, ("channels", "hidden")),
            ("x", x, HALF),
            ("second", second, HALF),
            ("factor", factor, ("batch",)),
        )
        if 2 * sizes["channels / 2"] != sizes["channels"]:
            raise ValueError(
                f"x and second have {sizes['channels / 2']} channels and residual {sizes['channels']}; with second "
                f"it must be twice as many"
            )
    if residual is not None and sizes["channels"] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; with residual it must have an even number of channels")
    if sizes["height"] * sizes["width"] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must have at least one position")
    check_number("scale", scale, above=0)


def _outputs(x, squeeze, excite, residual, second, factor, scale):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, x.dtype) if residual is None else (residual.shape, residual.dtype),)


_gate = register(
    "squeeze_excite",
    "Tensor x, Tensor squeeze, Tensor excite, Tensor? residual, Tensor? second, Tensor? factor",
    "float scale",
    _outputs,
    kept_like="squeeze",
    added="residual",
    constant="factor",
)
