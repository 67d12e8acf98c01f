"""The chooser: an explicit wish is met or refused with a reason; only the automatic choice falls
back, and says so once."""

import importlib.util
import warnings
from collections.abc import Iterator

import pytest
import torch

from medmambase_kernels import BackendError, backend, describe_backend, selective_scan, use_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where Triton compiles: no interpreter, Triton installed, a card of compute
    capability 9.0."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: object() if name == "triton" else find(name, *rest)
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    backend._announce.cache_clear()


def test_the_argument_comes_before_use_backend_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAMBASE_BACKEND", "reference")
    assert backend.choose(CPU, torch.float32, None) == backend.Choice("reference", "asked for by MEDMAMBASE_BACKEND")
    with use_backend("cpu"):
        assert backend.choose(CPU, torch.float32, None) == backend.Choice("cpu", "asked for by use_backend")
        assert backend.choose(CPU, torch.float32, "reference") == backend.Choice(
            "reference", "asked for by the backend argument"
        )
        with use_backend("auto"):
            assert backend.choose(CPU, torch.float32, None).name == "reference"
    assert backend.choose(CPU, torch.float32, None).name == "reference"


@pytest.mark.parametrize("wish", ["argument", "use_backend", "environment"])
def test_a_name_that_does_not_exist_is_refused_with_its_origin(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"no backend 'cuda' \(from .*'triton', 'cpu', 'torch', 'reference'"):
        if wish == "use_backend":
            with use_backend("cuda"):
                pass
        if wish == "environment":
            monkeypatch.setenv("MEDMAMBASE_BACKEND", "cuda")
        backend.choose(CPU, torch.float32, "cuda" if wish == "argument" else None)


def test_on_a_gpu_with_triton_triton_is_chosen(compiled: None) -> None:
    assert backend.choose(GPU, torch.bfloat16, None).name == "triton"
    assert describe_backend("cpu") == "cpu: the tensors are on the CPU"


@pytest.mark.usefixtures("compiled")
def test_a_gpu_that_is_not_there_is_described_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: pytest.fail("asked a GPU that is not there")
    )
    assert describe_backend("cuda").startswith("torch: ")
    assert "sees no CUDA GPU" in describe_backend("cuda")


@pytest.mark.usefixtures("compiled")
def test_a_wish_for_triton_that_cannot_be_met_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="needs a CUDA GPU"):
        backend.choose(CPU, torch.float32, "triton")
    with pytest.raises(BackendError, match="not float64"):
        backend.choose(GPU, torch.float64, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(BackendError, match=r"older than compute capability 8\.0"):
        backend.choose(GPU, torch.float32, "triton")
    without(monkeypatch, "triton")
    with pytest.raises(BackendError, match="Triton is not installed"):
        backend.choose(GPU, torch.float32, "triton")


@pytest.mark.usefixtures("compiled")
def test_an_automatic_choice_that_falls_back_on_a_gpu_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "triton")
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert backend.choose(GPU, torch.float32, None).name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose(GPU, torch.float32, None).name == "torch"


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found out about llvmlite, and said, is forgotten before and after."""
    caches = (backend._look_for_vectors, backend._announce)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_llvmlite_the_portable_engine_takes_over_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "llvmlite")
    with pytest.warns(RuntimeWarning, match="llvmlite is not installed"):
        assert backend.choose(CPU, torch.float32, None).name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose(CPU, torch.bfloat16, None).name == "torch"
    with pytest.raises(
        BackendError, match=r"'cpu' was asked for .*llvmlite is not installed \(pip install llvmlite\); ask for 'torch'"
    ):
        backend.choose(CPU, torch.float32, "cpu")


@pytest.mark.usefixtures("fresh")
def test_a_processor_that_llvm_does_not_know_gets_the_portable_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from llvmlite import binding

    from medmambase_kernels._cpu import compiler as machine_cpu

    def unknown(triple: str) -> None:
        raise RuntimeError(f"No available targets are compatible with triple {triple!r}")

    monkeypatch.setattr(binding.Target, "from_triple", unknown)
    monkeypatch.setattr(machine_cpu, "target", machine_cpu.target.__wrapped__)
    with pytest.warns(RuntimeWarning, match="llvmlite does not work here.*No available targets"):
        assert backend.choose(CPU, torch.float32, None).name == "torch"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("step", ["get_host_cpu_features", "create_mcjit_compiler"])
def test_a_machine_that_lets_no_code_be_made_gets_the_portable_engine(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llvmlite import binding

    from medmambase_kernels._cpu import compiler as machine_cpu

    def refused(*_: object) -> None:
        raise RuntimeError("no executable memory")

    monkeypatch.setattr(binding, step, refused)
    monkeypatch.setattr(machine_cpu, "lanes", machine_cpu.lanes.__wrapped__)
    with pytest.warns(RuntimeWarning, match="llvmlite does not work here: no executable memory"):
        assert backend.choose(CPU, torch.float32, None).name == "torch"
    with pytest.raises(BackendError, match="no executable memory"):
        backend.choose(CPU, torch.float32, "cpu")


def test_float64_on_the_cpu_runs_as_plain_pytorch_asked_or_not() -> None:
    assert backend.choose(CPU, torch.float64, None).name == "torch"
    assert backend.choose(CPU, torch.float64, "cpu").name == "torch"


def test_vector_code_is_refused_for_tensors_elsewhere() -> None:
    with pytest.raises(BackendError, match="the tensors are on cuda"):
        backend.choose(GPU, torch.float32, "cpu")


def test_an_engine_that_does_not_load_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("DLL load failed while importing libtriton")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"DLL load failed.*ask for backend 'torch'"):
        backend.engine("selective_scan", "triton")


def test_a_wish_made_in_one_thread_does_not_reach_another() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(backend.choose, CPU, torch.float32, None).result().name == "cpu"


def test_the_operators_can_be_compiled_without_a_graph_break() -> None:
    args = [torch.randn(2, 4, 5), torch.rand(2, 4, 5), -torch.rand(4, 2), torch.randn(2, 2, 5), torch.randn(2, 2, 5)]
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), selective_scan(*args, backend="cpu"))
