"""The squeeze-and-excitation gate (Hu et al. 2018): checks, then the custom operator, then the
engine; and the module around it.

Next stop: ``squeeze_excite_triton`` or ``squeeze_excite_cpu``; the definition is
``reference.squeeze_excite``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.custom_op import check_tensors, register


def squeeze_excite(
    x: Tensor, squeeze: Tensor, excite: Tensor, *, scale: float = 1.0, backend: str | None = None
) -> Tensor:
    """x * scale * sigmoid(excite . relu(squeeze . mean of x over positions)).

    Args:
        x: (b, h, w, c), channels last; float32, bfloat16, float16 or float64. At least one
        position.
        squeeze: (hidden, c). excite: (c, hidden).
        scale: what a gate of sigmoid 1 multiplies by; with 2, zero ``excite`` weights change
        nothing.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Returns:
        (b, h, w, c) in x's dtype; means and gates are float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a scale of 0 or less.
        BackendError: the engine asked for cannot run.
    """
    _check(x, squeeze, excite, scale)
    choice = engines.choose("squeeze_excite", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    squeeze, excite = squeeze.to(work), excite.to(work)
    if choice.name == "reference":
        return reference.squeeze_excite(x, squeeze, excite, scale).to(x.dtype)
    (y,) = _gate(x, squeeze, excite, scale, choice.name)
    return y


class SqueezeExcite(nn.Module):
    """A squeeze-and-excitation gate that owns its two weights: (b, h, w, channels) -> the same
    shape and dtype.

    The hidden width is channels // reduction, at least ``hidden_min``. With ``scale`` 2 the gate
    starts at exactly 1, with 1 it is the published gate, which starts near 0.5.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, hidden_min: int = 8, scale: float = 1.0, backend: str | None = None
    ) -> None:
        super().__init__()
        if channels < 1 or reduction < 1 or hidden_min < 1:
            raise ValueError(
                f"channels {channels}, reduction {reduction} and hidden_min {hidden_min} must all be at least 1"
            )
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale is {scale}; it must be a number above 0")
        hidden = max(hidden_min, channels // reduction)
        self.scale, self.backend = scale, backend
        self.squeeze = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(hidden, channels), nonlinearity="relu"))
        self.excite = nn.Parameter(
            nn.init.xavier_uniform_(torch.empty(channels, hidden)) if scale == 1.0 else torch.zeros(channels, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, channels) -> (b, h, w, channels)."""
        return squeeze_excite(x, self.squeeze, self.excite, scale=self.scale, backend=self.backend)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, (b, channels), for x (b, h, w, channels): what ``forward``
        multiplies by."""
        pooled = x.mean((1, 2), dtype=self.squeeze.dtype)
        return self.scale * torch.sigmoid(F.relu(pooled @ self.squeeze.t()) @ self.excite.t())


def _check(x: Tensor, squeeze: Tensor, excite: Tensor, scale: float) -> None:
    if x.dim() != 4 or x.shape[1] * x.shape[2] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (batch, height, width, channels) with at least one position"
        )
    if squeeze.dim() != 2 or squeeze.shape[1] != x.shape[3]:
        raise ValueError(
            f"squeeze has shape {tuple(squeeze.shape)}; it must be (hidden, channels) with the {x.shape[3]} channels "
            f"of x"
        )
    if excite.shape != (x.shape[3], squeeze.shape[0]):
        raise ValueError(
            f"excite has shape {tuple(excite.shape)}; with squeeze {tuple(squeeze.shape)} it must be "
            f"{(x.shape[3], squeeze.shape[0])}"
        )
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; it must be a number above 0")
    check_tensors(x, {"squeeze": squeeze, "excite": excite})


def _outputs(x, squeeze, excite, scale):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, x.dtype),)


_gate = register(
    "squeeze_excite", "Tensor x, Tensor squeeze, Tensor excite", "float scale", _outputs, kept_like="squeeze"
)
