"""The chooser: an explicit wish is met or refused with a reason; only the automatic choice falls
back, and says so once."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import relative_error

import medmambase_kernels
from medmambase_kernels import (
    BackendError,
    backend,
    depthwise_silu,
    describe_backend,
    selective_scan,
    squeeze_excite,
    use_backend,
)
from medmambase_kernels._cpu import availability as cpu_availability

CPU, GPU, SCAN = torch.device("cpu"), torch.device("cuda"), "selective_scan"


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


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was found out about the backends, decided and said, is forgotten before and after."""
    caches = (cpu_availability._missing, backend._decide_once, backend._announce, backend.availability, backend.engine)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_the_argument_comes_before_use_backend_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMAMBASE_BACKEND", "reference")
    assert backend.choose(SCAN, CPU, torch.float32, None) == backend.Choice(
        "reference", "asked for by MEDMAMBASE_BACKEND"
    )
    with use_backend("cpu"):
        assert backend.choose(SCAN, CPU, torch.float32, None) == backend.Choice("cpu", "asked for by use_backend")
        assert backend.choose(SCAN, CPU, torch.float32, "reference") == backend.Choice(
            "reference", "asked for by the backend argument"
        )
        with use_backend("auto"):
            assert backend.choose(SCAN, CPU, torch.float32, None).name == "reference"
    assert backend.choose(SCAN, CPU, torch.float32, None).name == "reference"


@pytest.mark.parametrize("wish", ["argument", "use_backend", "environment"])
def test_a_name_that_does_not_exist_is_refused_with_its_origin(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"no backend 'cuda' \(from .*'triton', 'cpu', 'torch', 'reference'"):
        if wish == "use_backend":
            with use_backend("cuda"):
                pass
        if wish == "environment":
            monkeypatch.setenv("MEDMAMBASE_BACKEND", "cuda")
        backend.choose(SCAN, CPU, torch.float32, "cuda" if wish == "argument" else None)


def test_on_a_gpu_with_triton_triton_is_chosen(compiled: None) -> None:
    assert backend.choose(SCAN, GPU, torch.bfloat16, None).name == "triton"
    assert describe_backend("cpu") == "cpu: the tensors are on the CPU"


@pytest.mark.usefixtures("compiled")
def test_a_gpu_that_is_not_there_is_described_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: pytest.fail("asked a GPU that is not there")
    )
    assert describe_backend("cuda").startswith("torch: ")
    assert "sees no NVIDIA GPU for cuda, and Triton needs one" in describe_backend("cuda")
    without(monkeypatch, "triton")  # which would not help to install
    assert "sees no NVIDIA GPU for cuda, and Triton needs one" in describe_backend("cuda")


@pytest.mark.usefixtures("compiled")
def test_a_wish_for_triton_that_cannot_be_met_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        backend.choose(SCAN, CPU, torch.float32, "triton")
    with use_backend("triton", "--backend"), pytest.raises(BackendError, match=r"asked for \(--backend\), but the"):
        backend.choose(SCAN, CPU, torch.float32, None)
    with pytest.raises(BackendError, match="not float64"):
        backend.choose(SCAN, GPU, torch.float64, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(BackendError, match=r"older than compute capability 8\.0"):
        backend.choose(SCAN, GPU, torch.float32, "triton")
    without(monkeypatch, "triton")
    with pytest.raises(BackendError, match="Triton is not installed"):
        backend.choose(SCAN, GPU, torch.float32, "triton")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        backend.choose(SCAN, CPU, torch.float32, "triton")


@pytest.mark.usefixtures("compiled")
def test_an_automatic_choice_that_falls_back_on_a_gpu_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "triton")
    with pytest.warns(RuntimeWarning, match="Triton is not installed"):
        assert backend.choose(SCAN, GPU, torch.float32, None).name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose(SCAN, GPU, torch.float32, None).name == "torch"


def test_without_llvmlite_the_portable_engine_takes_over_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "llvmlite")
    with pytest.warns(RuntimeWarning, match="llvmlite is not installed"):
        assert backend.choose(SCAN, CPU, torch.float32, None).name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose(SCAN, CPU, torch.bfloat16, None).name == "torch"
    with pytest.raises(
        BackendError, match=r"'cpu' was asked for .*llvmlite is not installed \(pip install llvmlite\); ask for 'torch'"
    ):
        backend.choose(SCAN, CPU, torch.float32, "cpu")


def test_a_processor_that_llvm_does_not_know_gets_the_portable_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from llvmlite import binding

    from medmambase_kernels._cpu import compiler as machine_cpu

    def unknown(triple: str) -> None:
        raise RuntimeError(f"No available targets are compatible with triple {triple!r}")

    monkeypatch.setattr(binding.Target, "from_triple", unknown)
    monkeypatch.setattr(machine_cpu, "target", machine_cpu.target.__wrapped__)
    with pytest.warns(RuntimeWarning, match="llvmlite does not work here.*No available targets"):
        assert backend.choose(SCAN, CPU, torch.float32, None).name == "torch"


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
        assert backend.choose(SCAN, CPU, torch.float32, None).name == "torch"
    with pytest.raises(BackendError, match="no executable memory"):
        backend.choose(SCAN, CPU, torch.float32, "cpu")


def test_float64_on_the_cpu_runs_as_plain_pytorch_asked_or_not() -> None:
    assert backend.choose(SCAN, CPU, torch.float64, None).name == "torch"
    assert backend.choose(SCAN, CPU, torch.float64, "cpu").name == "torch"


def test_vector_code_is_refused_for_tensors_elsewhere() -> None:
    with pytest.raises(BackendError, match="the tensors are on cuda"):
        backend.choose(SCAN, GPU, torch.float32, "cpu")


def test_a_backend_that_does_not_load_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("DLL load failed while importing libtriton")

    backend.availability("triton")
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"DLL load failed.*ask for backend 'torch'"):
        backend.engine("selective_scan", "triton")


TOY = {  # a backend of one operator
    "__init__.py": "",
    "availability.py": """
DEVICES, OPERATORS = ("cpu",), ("depthwise_silu",)
prepared = []

def obstacle(device, dtype):
    return None

def prepare():
    prepared.append(True)
""",
    "depthwise_silu.py": """
from medmambase_kernels._torch import depthwise_silu as portable

kept_shape = portable.kept_shape
calls = []

def forward(*arguments):
    calls.append("forward")
    return portable.forward(*arguments)

def backward(*arguments):
    calls.append("backward")
    return portable.backward(*arguments)
""",
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a backend that has depthwise_silu alone, beside the portable ones."""
    folder = tmp_path / "_toy"
    folder.mkdir()
    for name, text in TOY.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(medmambase_kernels, "__path__", [*medmambase_kernels.__path__, str(tmp_path)])
    monkeypatch.setattr(backend, "BACKENDS", ("toy", "torch", "reference"))
    yield "toy"
    for name in [name for name in sys.modules if name.startswith("medmambase_kernels._toy")]:
        del sys.modules[name]


def test_a_backend_of_one_operator_runs_that_one_and_leaves_the_others_to_the_portable_backend(toy: str) -> None:
    x, weight, bias = torch.randn(1, 3, 4, 5), torch.randn(5, 1, 3, 3).requires_grad_(), torch.randn(5)
    y = depthwise_silu(x, weight, bias)
    y.sum().backward()
    (dweight,) = torch.autograd.grad(depthwise_silu(x, weight, bias, backend="reference").sum(), weight)
    assert relative_error(weight.grad, dweight) < 1e-5
    module = backend.engine("depthwise_silu", toy)
    assert module.calls == ["forward", "backward"]
    assert backend.availability(toy).prepared == [True]
    gate = (torch.randn(1, 2, 2, 4), torch.randn(2, 4), torch.randn(4, 2))
    with pytest.warns(
        RuntimeWarning, match="falls back to backend 'torch' on cpu.*'toy' cannot run: it has no squeeze"
    ):
        assert torch.equal(squeeze_excite(*gate), squeeze_excite(*gate, backend="torch"))
    assert describe_backend(operator="depthwise_silu") == "toy: the tensors are on the CPU"
    assert describe_backend(operator="gated_norm").startswith("torch: ")


@pytest.mark.parametrize("how", ["argument", "use_backend"])
def test_an_explicit_wish_for_an_operator_that_the_backend_lacks_names_both(toy: str, how: str) -> None:
    gate = (torch.randn(1, 2, 2, 4), torch.randn(2, 4), torch.randn(4, 2))
    message = "'toy' was asked for .*it has no squeeze_excite, only depthwise_silu; ask for 'torch'"
    with pytest.raises(BackendError, match=message):
        if how == "argument":
            squeeze_excite(*gate, backend=toy)
        with use_backend(toy):
            squeeze_excite(*gate)


def test_a_wish_made_in_one_thread_does_not_reach_another() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(backend.choose, SCAN, CPU, torch.float32, None).result().name == "cpu"


def test_the_operators_can_be_compiled_without_a_graph_break() -> None:
    args = [torch.randn(2, 4, 5), torch.rand(2, 4, 5), -torch.rand(4, 2), torch.randn(2, 2, 5), torch.randn(2, 2, 5)]
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), selective_scan(*args, backend="cpu"))
