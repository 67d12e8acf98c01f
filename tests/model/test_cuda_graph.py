"""A CUDA graph is captured on a stream of its own, after runs that warm up; one that fails leaves
the device as it was. A stand-in for ``torch.cuda`` notes what is asked of it."""

from types import SimpleNamespace

import pytest
import torch

from medmambase.model import cuda_graph
from medmambase.model.cuda_graph import CudaGraphs


class Cuda:
    """Stands for ``torch.cuda``: notes what is asked of it, and knows which stream is current."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.current = "main"
        self.default_generators = [self]

    def Stream(self, device: object) -> "Cuda":  # noqa: N802  # torch's name
        return self

    def wait_stream(self, other: object) -> None:
        self.asked.append("wait")

    def graph_pool_handle(self) -> str:
        return "pool"

    def device(self, device: object) -> "_Entered":
        return _Entered(self, self.current, restores=False)

    def stream(self, stream: object) -> "_Entered":
        return _Entered(self, "side")

    def graph(self, graph: object, pool: str, stream: object) -> "_Entered":
        self.asked.append(f"capture into {pool}")
        return _Entered(self, "side", only_where_it_works=True)

    def current_stream(self) -> "Cuda":
        return self

    def set_stream(self, stream: object) -> None:
        self.current = "main"

    def current_device(self) -> int:
        return 0

    def graphsafe_set_state(self, state: object) -> None:
        self.asked.append("fresh generator")

    def graphsafe_get_state(self) -> None:
        pass

    def CUDAGraph(self) -> "Cuda":  # noqa: N802  # torch's name
        return self

    def replay(self) -> None:
        self.asked.append("replay")


class _Entered:
    def __init__(self, cuda: Cuda, stream: str, restores: bool = True, only_where_it_works: bool = False) -> None:
        self.cuda, self.stream, self.before, self.restores = cuda, stream, cuda.current, restores
        self.only_where_it_works = only_where_it_works

    def __enter__(self) -> None:
        self.cuda.current = self.stream

    def __exit__(self, kind: object, *_: object) -> None:
        if self.restores and not (kind and self.only_where_it_works):
            self.cuda.current = self.before


def test_a_function_is_warmed_up_on_a_side_stream_then_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=cuda))
    streams: list[str] = []
    replay, result = CudaGraphs(torch.device("cuda")).capture(lambda: streams.append(cuda.current) or len(streams))
    assert streams == ["side"] * 4 and result == 4
    assert cuda.asked == ["wait", "wait", "capture into pool"]
    assert cuda.current == "main"
    replay()
    assert cuda.asked[-1] == "replay" and len(streams) == 4


def test_after_a_capture_that_fails_stream_and_generator_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=cuda, Generator=lambda device: cuda))
    runs = iter([1, 1, 1])
    with pytest.raises(StopIteration):
        CudaGraphs(torch.device("cuda")).capture(lambda: next(runs))
    assert cuda.current == "main" and cuda.asked[-1] == "fresh generator"
