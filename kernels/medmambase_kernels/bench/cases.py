"""What medmambase-bench measures: the operators at the stages of ``tiny``, their inputs, and the
same work as the original MedMamba does it.

The original stacks the image with its transpose, appends both reversed, projects each of the four
copies, scans in float32, turns the results back and adds them. Its scan is mamba_ssm's kernel, or
where that is not to be had a Python loop; here the loop reads slices unbound once, since indexing
step by step, as mamba_ssm's own loop does, makes its backward quadratic in the length.
Next stop: bench.py, which checks and times these.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels.selective_scan import selective_scan
from medmambase_kernels.selective_scan_2d import selective_scan_2d
from medmambase_kernels.squeeze_excite import squeeze_excite

# Each operator's arguments, in the order of ``Computation.arguments``.
OPERATORS = {
    "selective_scan": ("u", "delta", "A", "B", "C", "D", "delta_bias"),
    "selective_scan_2d": ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D"),
    "squeeze_excite": ("x", "squeeze", "excite"),
}
SIZES = (128, 224)
CHANNELS = (96, 192, 384, 768)
STATE, DIRECTIONS = 16, 4

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operator over a map (b, h, w, d); ``selective_scan`` runs over the map's four directions
    as four groups of d channels, as MedMamba calls it."""

    operator: str
    batch: int
    height: int
    width: int
    channels: int
    dtype: torch.dtype
    stage: int = 0  # 1 to 4; 0 outside the network

    @property
    def rank(self) -> int:
        """Columns of x_dbl that delta is projected from."""
        return -(-self.channels // 32)

    @property
    def rows(self) -> int:
        """Steps and channels that the scan takes, over all images and directions; 0 for the
        gate."""
        return (
            0
            if self.operator == "squeeze_excite"
            else self.batch * DIRECTIONS * self.channels * self.height * self.width
        )


@dataclass(frozen=True)
class Computation:
    """A differentiable function and the tensors it is called with; all of them want gradients."""

    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]

    def forward(self) -> Tensor:
        """The result, as in prediction."""
        with torch.no_grad():
            return self.function(*self.arguments)

    def backward(self, dy: Tensor) -> tuple[Tensor, ...]:
        """The result and the gradient of every argument, for the gradient dy of the result."""
        y = self.function(*self.arguments)
        return (y.detach(), *torch.autograd.grad(y, self.arguments, dy))


def cases(
    operators: Sequence[str],
    sizes: Sequence[int],
    stages: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[torch.dtype],
) -> list[Case]:
    """Every operator at every stage (1 to 4) of ``tiny`` for images of ``sizes`` pixels, square."""
    return [
        Case(operator, batch, size // 2 ** (stage + 1), size // 2 ** (stage + 1), CHANNELS[stage - 1], dtype, stage)
        for operator in operators
        for dtype in dtypes
        for size in sizes
        for stage in stages
        for batch in batches
    ]


def reduced(operator: str, dtype: torch.dtype) -> list[Case]:
    """What equality with the definition is shown on: no size a power of two, a single chunk of
    steps and several, with a tail."""
    return [Case(operator, 2, 7, 5, 33, dtype), Case(operator, 1, 9, 11, 96, dtype)]


def _leaves(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Inputs as a new network has them; in the case's dtype what comes from the image, in float32
    what are parameters."""
    g = torch.Generator().manual_seed(0)
    b, h, w, d, k, n, r = case.batch, case.height, case.width, case.channels, DIRECTIONS, STATE, case.rank
    x = torch.randn(b, h, w, d, generator=g)
    made = {"x": x.to(case.dtype)}
    if case.operator == "squeeze_excite":
        hidden = max(1, d // 16)
        made |= {
            "squeeze": torch.randn(hidden, d, generator=g) / math.sqrt(d),
            "excite": torch.randn(d, hidden, generator=g) / math.sqrt(hidden),
        }
    else:
        x_proj = torch.randn(k, r + 2 * n, d, generator=g) / math.sqrt(d)
        dt_bias = torch.empty(k, d).uniform_(-6.9, -2.25, generator=g)  # steps from 0.001 to 0.1
        made |= {"x_proj": x_proj, "dt_weight": torch.randn(k, d, r, generator=g) / math.sqrt(r), "dt_bias": dt_bias}
        made |= {"A": -torch.arange(1.0, n + 1).expand(k, d, n).clone(), "D": torch.ones(k, d)}
    return {name: t.to(device).requires_grad_() for name, t in made.items()}


def _four_directions(x: Tensor) -> Tensor:
    """x (b, d, h, w) in the order of each direction: (b, 4, d, l)."""
    two = torch.stack([x.flatten(2), x.transpose(2, 3).contiguous().flatten(2)], 1)
    return torch.cat([two, two.flip(-1)], 1)


def _new(t: Tensor) -> Tensor:
    return t.detach().contiguous().requires_grad_()


def operator(case: Case, device: torch.device, backend: str | None = None) -> Computation:
    """The operator itself, on the engine that ``backend`` names."""
    t = _leaves(case, device)
    if case.operator == "squeeze_excite":
        return Computation(
            lambda x, squeeze, excite: squeeze_excite(x, squeeze, excite, backend=backend), tuple(t.values())
        )
    rest = (t["A"], t["D"])
    if case.operator == "selective_scan_2d":
        x_dbl = F.linear(t["x"], t["x_proj"].flatten(0, 1).to(case.dtype)).unflatten(-1, t["x_proj"].shape[:2])
        return Computation(
            lambda *a: selective_scan_2d(*a, backend=backend),
            (t["x"], _new(x_dbl), t["dt_weight"], t["dt_bias"], *rest),
        )
    u = _four_directions(t["x"].permute(0, 3, 1, 2))
    projected = torch.einsum("bkdl,kcd->bkcl", u.float(), t["x_proj"])
    low, B, C = projected.to(case.dtype).split([case.rank, STATE, STATE], 2)
    delta = torch.einsum("bkrl,kdr->bkdl", low.float(), t["dt_weight"]).to(case.dtype)
    A, D, bias = (_new(a.flatten(0, 1)) for a in (*rest, t["dt_bias"]))
    arguments = tuple(_new(a) for a in (u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias))
    return Computation(
        lambda u, delta, A, B, C, D, bias: _only(
            selective_scan(u, delta, A, B, C, D, None, bias, True, backend=backend)
        ),
        arguments,
    )


def _only(y: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(y, Tensor)  # no last state was asked for
    return y


def from_projection(case: Case, device: torch.device, backend: str | None = None) -> Computation:
    """The work that ``original`` does: for ``selective_scan_2d`` the projection of x to x_dbl as
    well, else the operator itself."""
    if case.operator != "selective_scan_2d":
        return operator(case, device, backend)

    def ours(x: Tensor, x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
        x_dbl = F.linear(x, x_proj.flatten(0, 1).to(x.dtype)).unflatten(-1, x_proj.shape[:2])
        return selective_scan_2d(x, x_dbl, dt_weight, dt_bias, A, D, out_dtype=torch.float32, backend=backend)

    return Computation(ours, tuple(_leaves(case, device).values()))


def original(case: Case, device: torch.device, scan: Scan) -> Computation:
    """``from_projection`` as the original MedMamba and its gate compute it, around ``scan``; the
    same arguments, x laid out channels first."""
    if case.operator == "selective_scan":
        return Computation(
            lambda u, delta, A, B, C, D, bias: scan(u, delta, A, B, C, D, None, bias, True),
            operator(case, device).arguments,
        )
    x, *rest = _leaves(case, device).values()
    x = x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    function = original_gate if case.operator == "squeeze_excite" else partial(original_scan_2d, scan)
    return Computation(function, (x, *rest))


def original_scan_2d(
    scan: Scan, x: Tensor, x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> Tensor:
    """x (b, h, w, d), x_proj (k, r + 2n, d), the others as in ``selective_scan_2d`` -> y (b, h, w,
    d), float32."""
    b, h, w, d = x.shape
    n, r = A.shape[2], dt_weight.shape[2]
    routes = _four_directions(x.permute(0, 3, 1, 2))
    low, B, C = torch.einsum("bkdl,kcd->bkcl", routes, x_proj.to(x.dtype)).split([r, n, n], 2)
    delta = torch.einsum("bkrl,kdr->bkdl", low, dt_weight.to(x.dtype)).contiguous()
    u, delta, B, C = (t.float() for t in (routes.flatten(1, 2), delta.flatten(1, 2), B.contiguous(), C.contiguous()))
    y = scan(u, delta, A.flatten(0, 1), B, C, D.flatten(), None, dt_bias.flatten(), True).view(b, DIRECTIONS, d, h * w)
    back = y[:, 2:].flip(-1)
    by_columns = [t.unflatten(-1, (w, h)).transpose(2, 3).contiguous().flatten(2) for t in (y[:, 1], back[:, 1])]
    return (y[:, 0] + back[:, 0] + by_columns[0] + by_columns[1]).transpose(1, 2).contiguous().view(b, h, w, d)


def original_gate(x: Tensor, squeeze: Tensor, excite: Tensor) -> Tensor:
    """x (b, h, w, c), squeeze (hidden, c), excite (c, hidden) -> the gated map, as the usual module
    over channels-first maps computes it."""
    maps = x.permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1)
    gate = torch.sigmoid(F.linear(F.relu(F.linear(pooled, squeeze.to(x.dtype))), excite.to(x.dtype)))
    return (maps * gate[:, :, None, None]).permute(0, 2, 3, 1)


def loop_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: None,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """``selective_scan`` as a loop over the length in PyTorch; u, delta (b, d, l); B, C (b, g, n,
    l); every state is kept for backward."""
    assert delta_softplus  # as MedMamba calls it, and without z
    groups = u.shape[1] // B.shape[1]
    wide, delta = u.float(), F.softplus(delta.float() + delta_bias[:, None])
    B, C = (t.float().repeat_interleave(groups, 1) for t in (B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    driven = torch.einsum("bdl,bdnl->bdln", delta * wide, B)
    h, outputs = torch.zeros_like(decay[:, :, 0]), []
    for a, b, c in zip(decay.unbind(2), driven.unbind(2), C.unbind(3), strict=True):
        h = a * h + b
        outputs.append((h * c).sum(-1))
    return (torch.stack(outputs, 2) + D[:, None] * wide).to(u.dtype)


def mamba_scan(device: torch.device) -> tuple[Scan | None, str]:
    """mamba_ssm's kernel where there is one, and one clause about it. Its package installs without
    the kernel unless asked for it."""
    if device.type != "cuda":
        return None, "runs on an NVIDIA GPU only"
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError) as error:
        return None, f"cannot be imported ({str(error).splitlines()[0]})"
    if getattr(module, "selective_scan_cuda", None) is None:
        return None, "is installed without its CUDA kernel"
    scan: Scan = module.selective_scan_fn
    return scan, "is importable"
