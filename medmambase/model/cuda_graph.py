"""Capture what a function computes on a GPU as a CUDA graph: one launch then replays all of its
kernels, in a small part of the time that Python needs to launch them one by one.

No compiler is needed for it, so it works on Windows too.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
_WARM_UPS = 3  # runs before the capture, in which kernels are compiled and libraries take their memory


class CudaGraphs:
    """CUDA graphs of one device that share their memory: no two of them may run at once, and what
    one has computed is gone when another is replayed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Run ``compute`` three times, then capture it, which runs nothing. Returns a function that
        replays it, on the same memory, and the result, which each replay writes anew.

        What ``compute`` reads and writes must stay in its place for as long as it is replayed. It
        must not wait for the GPU or copy from the host; Python numbers stay as they were. Raises
        RuntimeError where it cannot be captured; the device can then be used as before.
        """
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    compute()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    result = compute()
            except BaseException:
                # A capture that fails leaves its stream as the current one, and the generator of
                # random numbers in the belief that it is being captured.
                torch.cuda.set_stream(current)
                fresh = torch.Generator(self._device).graphsafe_get_state()
                torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)
                raise
        return graph.replay, result
