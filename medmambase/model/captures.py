"""Replay predictions of one size instead of telling a device anew, step by step, what to do: of a
small input Python has the larger share.

On a CPU the launches of our kernels are captured and replayed (``Captures``), on a GPU a CUDA graph
(``GraphCaptures``). Both are for weights that no longer change.
"""

import threading
import warnings
from collections.abc import Callable, Hashable
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from medmambase.config import ModelConfig
from medmambase.model.classifier import Classifier
from medmambase.model.cuda_graph import CudaGraphs
from medmambase.model.layers import PATCH
from medmambase_kernels import Capture, describe_backend

_MOST = 4  # sizes of images whose captures are kept, each with all its maps
# Numbers in the first map of an image and its batch up to which Python's share is worth a capture:
# on a CPU measured; on a GPU predicted, twice a batch of 64 images of 128 pixels in `tiny`.
_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 24}

_REMEMBERED = 256  # kinds of input that were met once: more of them are no reason to grow

Compute = Callable[[Tensor], list[Tensor]]


class Captures:
    """From an image's patches to the stages' maps, by one capture for each size of image that was
    met. A copy has none: its weights will be others."""

    def __init__(self) -> None:
        self._of_size: dict[tuple[int, ...], tuple[Capture, Tensor, list[Tensor]]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Captures, ()  # of a copy, and of a pickle

    def __len__(self) -> int:
        return len(self._of_size)

    @torch.inference_mode()
    def __call__(self, compute: Compute, patches: Tensor, last: bool) -> list[Tensor]:
        """What ``compute`` makes of patches (b, h, w, c): each stage's map, or the last alone."""
        key = (*patches.shape, torch.get_num_threads())
        with self._lock:
            if key not in self._of_size:
                while len(self._of_size) >= _MOST:
                    del self._of_size[next(iter(self._of_size))]
                start = patches.clone(memory_format=torch.contiguous_format)
                with Capture() as capture:
                    self._of_size[key] = capture, start, compute(start)
            else:
                capture, start, _ = self._of_size[key]
                start.copy_(patches)
                capture.replay()
            maps = self._of_size[key][2]
            return [each.clone() for each in (maps[-1:] if last else maps)]


class GraphCaptures:
    """From an image's patches to the stages' maps, by a CUDA graph for each of the first four kinds
    of input that are met twice: shape, dtype, autocast, backend and stream. A copy has none: its
    weights will be others."""

    def __init__(self, graphs: Callable[[torch.device], Any] = CudaGraphs) -> None:
        self._make = graphs
        self._of_kind: dict[Hashable, tuple[Callable[[], None], Tensor, list[Tensor]]] = {}
        self._met: set[Hashable] = set()
        self._refused = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphCaptures, ()  # of a copy, and of a pickle

    def __len__(self) -> int:
        return len(self._of_kind)

    def __call__(self, compute: Compute, patches: Tensor, last: bool) -> list[Tensor]:
        """What ``compute`` makes of patches (b, h, w, c): each stage's map, or the last alone. Goes
        on without a graph, with a warning, where there can be none."""
        kind = _kind(patches)
        # What is kept must be neither a tensor of inference mode, which could not be written
        # outside of it, nor part of a computation that has gradients.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if kind in self._of_kind or (self._worth(kind) and self._capture(kind, compute, patches)):
                replay, start, maps = self._of_kind[kind]
                start.copy_(patches)
                replay()
                return [each.clone() for each in (maps[-1:] if last else maps)]
        return compute(patches)

    def _worth(self, kind: Hashable) -> bool:
        """Whether to capture a kind of input: one that is met once would be slower by it."""
        if self._refused or len(self._of_kind) >= _MOST:
            return False
        if kind in self._met:
            return True
        if len(self._met) < _REMEMBERED:
            self._met.add(kind)
        return False

    def _capture(self, kind: Hashable, compute: Compute, patches: Tensor) -> bool:
        """Capture a kind of input, if a replay gives the same bits as the computation."""
        start = torch.zeros_like(patches, memory_format=torch.contiguous_format)
        try:
            # Memory of its own: another stream may replay another graph at the same time.
            replay, maps = self._make(patches.device).capture(partial(compute, start))
            start.copy_(patches)
            replay()
            exact = all(map(torch.equal, maps, compute(start)))
        except RuntimeError as error:  # whatever CUDA or the memory of the GPU has against it
            return self._refuse(str(error).splitlines()[0][:200])
        if not exact:
            return self._refuse("a replay differs from the computation")
        self._of_kind[kind] = replay, start, maps
        return True

    def _refuse(self, why: str) -> bool:
        self._refused = True
        warnings.warn(f"predictions go on without CUDA graphs: {why}", RuntimeWarning, stacklevel=2)
        return False


def _kind(patches: Tensor) -> Hashable:
    device = patches.device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return tuple(patches.shape), patches.dtype, device, autocast, describe_backend(device, patches.dtype), stream


def can_be_graphed(network: Classifier, image: Tensor) -> bool:
    """Whether a prediction of the image may be a CUDA graph."""
    return (
        image.device.type == "cuda"
        and _unwatched(image)
        and not torch.cuda.is_current_stream_capturing()
        and _small(network, image)
    )


def can_be_captured(network: Classifier, image: Tensor) -> bool:
    """Whether every step from there on is one that can be replayed on a CPU: vector code on whole
    vectors, float32, and nobody who watches."""
    return (
        image.device.type == "cpu" and image.dtype == torch.float32 == next(network.parameters()).dtype
        and _unwatched(image) and not torch.is_autocast_enabled("cpu") and _small(network, image)
        and _width(network) % 32 == 0 and describe_backend("cpu").startswith("cpu:")
    )  # fmt: skip  # a list of conditions


def _unwatched(image: Tensor) -> bool:
    """Whether nobody looks at each step, who would miss those of a replay."""
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state()
    return not watched and type(image) is Tensor


def _width(network: Classifier) -> int:
    return cast(ModelConfig, network.config).dims[0]


def _small(network: Classifier, image: Tensor) -> bool:
    numbers = len(image) * prod(-(-side // PATCH) for side in image.shape[2:]) * _width(network)
    return 0 < numbers <= _NUMBERS[image.device.type]
