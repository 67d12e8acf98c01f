"""Put ``selective_scan_2d`` in the place of the scans of a network's SS2D modules.

VMamba's first SS2D (Liu et al., 2024), which VM-UNet, MedMamba and many others carry, lays an image
out in four orders, projects each, scans them as groups and turns them back; its ``forward_core``
takes (b, d, h, w) and returns four (b, d, h w), which are then added. The same four weights give
``selective_scan_2d`` all that it needs, so the sum is made at once.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels.selective_scan_2d import selective_scan_2d

_LIMIT = 1e-5  # of the difference, over the largest magnitude
_WEIGHTS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
_TIMES = 3


@dataclass(frozen=True)
class Fused:
    """A module that was looked at. difference: of both ways, over the largest magnitude; taken:
    whether it was small enough. before, after: milliseconds of the core for one image, forward."""

    name: str
    difference: float
    before: float
    after: float

    @property
    def taken(self) -> bool:
        """Whether the module now runs the other way."""
        return self.difference <= _LIMIT

    def __str__(self) -> str:
        if not self.taken:
            return f"{self.name}: left as it is, since it would differ by {self.difference:.1e}"
        return f"{self.name}: {self.before:.2f} ms -> {self.after:.2f} ms, difference {self.difference:.1e}"


def fuse(model: nn.Module, size: int) -> Iterator[Fused]:
    """Try each SS2D of a model on random images of ``size`` positions a side, and replace its core
    where both ways agree."""
    for name, module in model.named_modules():
        core = getattr(module, "forward_core", None)
        if core is None or (isinstance(core, partial) and core.func is _core) or not _fits(module):
            continue
        weight = module.get_parameter("x_proj_weight")
        x = torch.randn(1, weight.shape[2], size, size + 1, device=weight.device)
        with torch.no_grad():
            theirs = core(x)
            if not (isinstance(theirs, tuple) and len(theirs) == 4):
                continue
            ours = partial(_core, module)
            expected = _total(theirs)
            difference = (_total(ours(x)) - expected).abs().max() / expected.abs().max()
            before, after = (_milliseconds(partial(way, x)) for way in (core, ours))
        found = Fused(name or type(module).__name__, difference.item(), before, after)
        if found.taken:
            module.forward_core = ours
        yield found


def _total(parts: tuple[Any, ...]) -> Tensor:
    return sum(parts[1:], parts[0]).double()


def _fits(module: nn.Module) -> bool:
    """Whether it has the five weights, of four directions and of one size."""
    weights = [getattr(module, name, None) for name in _WEIGHTS]
    if not all(isinstance(t, Tensor) for t in weights):
        return False
    x_proj, dt_weight, dt_bias, A, D = (t for t in weights if isinstance(t, Tensor))
    if x_proj.dim() != 3 or dt_weight.dim() != 3 or A.dim() != 2:
        return False
    k, d, r = dt_weight.shape
    n = A.shape[1]
    return k == 4 and x_proj.shape == (k, r + 2 * n, d) and dt_bias.shape == (k, d) and len(A) == len(D) == k * d


def _core(module: Any, x: Tensor) -> tuple[Tensor, float, float, float]:
    """``forward_core``: the sum of the four directions, and three zeros to add to it."""
    b, d, h, w = x.shape
    image = x.permute(0, 2, 3, 1).float()
    projected = F.linear(image, module.x_proj_weight.flatten(0, 1).float()).unflatten(-1, (4, -1))
    A = -torch.exp(module.A_logs.float()).view(4, d, -1)
    y = selective_scan_2d(
        image, projected, module.dt_projs_weight, module.dt_projs_bias, A, module.Ds.view(4, d), out_dtype=torch.float32
    )
    return y.permute(0, 3, 1, 2).reshape(b, d, h * w), 0.0, 0.0, 0.0


def _milliseconds(work: Callable[[], object]) -> float:
    """The fastest of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)
