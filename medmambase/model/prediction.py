"""A frozen network on one image on a CPU: recorded the first time, then only repeated. Python's
share of a prediction falls from half to a few per cent.

The same boxes in the same order as ``layers.py``, written as steps that leave their results in
memory of their own. Last stop before: ``network.py``.
"""

import threading
from math import prod
from typing import Any

import torch
from torch import Tensor

from medmambase.model.layers import PATCH, SS2D, OnMaps
from medmambase_kernels import Recording, corners, depthwise_silu, describe_backend, gated_norm, selective_scan_2d

_MOST = 4  # sizes of images whose recordings are kept, each with all its maps
_NUMBERS = 1 << 18  # of an image and its batch up to which Python's share is worth recording


class Recorded:
    """From an image's patches to the stages' maps, by recordings for each size of image that was
    met."""

    def __init__(self) -> None:
        self._recordings: dict[tuple[int, ...], tuple[Recording, Tensor, list[Tensor]]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, _: object) -> "Recorded":
        return Recorded()  # whose weights will be others

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, _: dict[str, object]) -> None:
        Recorded.__init__(self)

    @torch.inference_mode()
    def __call__(self, network: Any, x: Tensor, last: bool) -> list[Tensor]:
        """x (b, h, w, c), the patches, and the frozen network -> each stage's map, or the last
        alone."""
        key = (*x.shape, torch.get_num_threads())
        with self._lock:
            if key not in self._recordings:
                while len(self._recordings) >= _MOST:
                    del self._recordings[next(iter(self._recordings))]
                start = x.clone(memory_format=torch.contiguous_format)
                with Recording() as recording:
                    self._recordings[key] = recording, start, _maps(recording, network, start)
            else:
                recording, start, _ = self._recordings[key]
                start.copy_(x)
                recording.replay()
            maps = self._recordings[key][2]
            return [each.clone() for each in (maps[-1:] if last else maps)]


def can_record(network: Any, image: Tensor) -> bool:
    """Whether every step from there on is one that a recording can repeat: vector code on whole
    vectors, float32, and nobody who watches."""
    watched = (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
    )
    return (
        image.device.type == "cpu" and image.dtype == torch.float32 == next(network.parameters()).dtype and not watched
        and type(image) is Tensor
        and 0 < len(image) * prod(-(-side // PATCH) for side in image.shape[2:]) * network.config.dims[0] <= _NUMBERS
        and network.config.dims[0] % 32 == 0 and describe_backend("cpu").startswith("cpu:")
    )  # fmt: skip  # a list of conditions


def _maps(recording: Recording, network: Any, x: Tensor) -> list[Tensor]:
    maps, x = [], network.embedding.norm(network.embedding.proj(x))
    for stage in network.stages:
        if stage.merging is not None:
            x = _merge(recording, stage.merging, x)
        for block in stage.blocks:
            x = _block(recording, block, x)
        maps.append(x)
    return maps


def _pad(x: Tensor, out: Tensor) -> None:
    out.zero_()[:, : x.shape[1], : x.shape[2]].copy_(x)


def _merge(recording: Recording, merging: Any, x: Tensor) -> Tensor:
    b, h, w, c = x.shape
    if merging.pad and (h % 2 or w % 2):
        x = recording.call(_pad, (b, h + h % 2, w + w % 2, c), x)
    y: Tensor = merging.reduction(merging.norm(corners(x)))
    return y


def _block(recording: Recording, block: Any, x: Tensor) -> Tensor:
    conv, ssm = x.chunk(2, -1)
    y = torch.empty_like(x)
    of_conv, of_ssm = y.chunk(2, -1)
    *steps, last = block.conv_branch
    for step in steps:
        if isinstance(step, OnMaps):
            norm: Any = step[0]
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            conv = recording.call(torch.addcmul, tuple(conv.shape), norm.bias - norm.running_mean * scale, conv, scale)
        else:
            conv = step(conv)
    last(conv, out=of_conv)
    _ssm(block.ssm_branch, block.ssm_norm(ssm), ssm if block.inner_residual else None, of_ssm)
    if block.se is not None:
        y = block.se(y)
    if block.mix is not None:
        mixed: Tensor = block.mix(y, x)
        return mixed
    y = y.unflatten(-1, (2, -1)).transpose(-1, -2)  # the channels' shuffle
    return recording.call(torch.add, tuple(y.shape), x.view(y.shape), y).view(x.shape)


def _ssm(branch: SS2D, x: Tensor, add: Tensor | None, out: Tensor) -> None:
    assert branch.to_columns is not None and branch.conv.bias is not None and branch.A is not None  # frozen
    x, z = branch.in_proj(x).chunk(2, -1)
    x = depthwise_silu(x, branch.conv.weight, branch.conv.bias)
    columns = branch.to_columns(x).unflatten(-1, branch.x_proj.shape[:2])
    y = selective_scan_2d(x, columns, branch.dt_weight, branch.dt_bias, branch.A, branch.D)
    branch.out_proj(gated_norm(y, z, branch.norm.weight, branch.norm.bias, branch.norm.eps), add, out)
