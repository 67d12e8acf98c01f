"""What all tests share: the tolerances, poisoned memory, engines, and the optional folder of
reference numbers."""

import os

# A process of tests keeps one core busy, however it was started: with more threads, a training
# takes as many as are fast at the moment, which decides its last digits. Where a test itself starts
# more, those that wait leave the core to others. OpenMP reads this when torch loads it, here and in
# the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

import csv
import ctypes
import importlib.util
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from triton_interpreter import make_the_interpreter_quick

from medmambase.data import phantom

with torch.device("cpu"):
    # torch keeps which functions make tensors when it first meets a device as a context; should
    # that be inside a test, the poisoned ones, and torch.empty takes no notice of such a device.
    torch.empty(0)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined: Triton decides at its decorator

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

HAS_TRITON = importlib.util.find_spec("triton") is not None
DRAWN = {
    "report.figures": ("curves", "confusion"),
    "report.performance_figures": ("roc", "pr", "calibration", "mistakes"),
    "explanation.figures": ("sheet_of", "recalibration", "gates_of", "faithfulness_of"),
}
# Settings of a small training, as a file.
SMALL = 'model = "nano"\ndepths = [1, 1, 1, 1]\nimage_size = 32\nepochs = 3\nbatch_size = 8\nlr = 1e-3\n'
TRITON = pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"))
ENGINES = ("cpu", "torch", TRITON)  # in no order: a test of one of them names it

# Seconds after which a test that waits gives up: a hundred times what an idle machine needs, so
# that it ends a test that hangs and says nothing about a machine that is busy.
PATIENCE = 1800

UNDER_WINE = sys.platform == "win32" and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")

# Largest difference from the definition over the largest magnitude. Arithmetic is float32
# throughout, so half-precision results differ by their last rounding only.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-architectures",
        action="store_true",
        help="compile every launch of every Triton kernel for every GPU generation, which takes an hour of one core",
    )


def engine_device(engine: str) -> torch.device:
    """Where tests run an engine: Triton on the GPU if there is one, everything else on the CPU."""
    return torch.device("cuda" if engine == "triton" and torch.cuda.is_available() else "cpu")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; infinite for anything that is not a number."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    difference = (actual.detach().double().cpu() - expected.detach().double().cpu()).abs().max().item()
    scale = expected.detach().double().abs().max().item()
    return difference / max(scale, 1e-30) if difference == difference else float("inf")


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` and its kin return with NaN, so that an output nobody wrote cannot
    be right by luck."""

    def poisoned(make):
        def filled(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() and not t.requires_grad else t

        return filled

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    if HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1":
        make_the_interpreter_quick()


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Each test starts from the same random numbers, and from the threads it found."""
    torch.manual_seed(0)
    yield


def reference_folder() -> Path | None:
    """The folder beside the project that holds reference numbers and images, known by its contents;
    None if there is none."""
    found = sorted(Path(__file__).resolve().parents[2].glob("*/parity/meta.json"))
    return found[0].parents[1] if found else None


@pytest.fixture
def shared() -> Path:
    """``reference_folder``; the test is skipped where it is absent."""
    folder = reference_folder()
    if folder is None:
        pytest.skip("no folder of reference numbers beside the project")
    return folder


@pytest.fixture(scope="session")
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where compiled kernels are kept, so that no test compiles what another has compiled: beside
    pytest's own records, if it keeps any, and then for its next run too."""
    records = getattr(request.config, "cache", None)
    return str(tmp_path_factory.mktemp("compiled") if records is None else records.mkdir("compiled_kernels"))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt, as in a terminal. A script's background job inherits
    that it is ignored, and so would the tests that such a job runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ignored_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C be ignored by this process and those it starts, as in a script's background
    job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C while that step of the optimiser is computed, counted from 1."""
    original, calls = torch.optim.AdamW.step, iter(range(1, 10**6))

    def stepped(self, *args):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)


@pytest.fixture(params=[name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)])
def end(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal by which the system ends a process, with the disposition of a process started by a
    shell; under nohup, say, the tests themselves would ignore SIGHUP."""
    number = signal.Signals[request.param]
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


@pytest.fixture
def ignored_end(end: signal.Signals) -> signal.Signals:
    """The same signal, ignored by this process and those it starts."""
    signal.signal(end, signal.SIG_IGN)
    return end


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom set, in a folder with a blank and letters outside ASCII; never changed."""
    return phantom.write_phantom(tmp_path_factory.mktemp("data") / "Daten ü 肺", images_per_class=5, size=32)


def leave_out_pictures(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Leave out drawing, most of the time of a small run, where other tests look at it."""
    for module in modules or DRAWN:
        for name in DRAWN[module]:
            monkeypatch.setattr(f"medmambase.evaluation.{module}.{name}", lambda *_, **__: None)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """``leave_out_pictures`` in a test."""
    leave_out_pictures(monkeypatch)


@pytest.fixture(scope="session")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs: se-001 and se-002 with other seeds, and plain-001 without
    squeeze-and-excitation; never changed."""
    from medmambase.commands import train

    runs = tmp_path_factory.mktemp("runs")
    size = ["--model", "nano", "--image-size", "32", "--epochs", "1", "--batch-size", "8"]
    for name, words in (("se", []), ("se", ["--seed", "1"]), ("plain", ["--se", "off"])):
        with pytest.MonkeyPatch.context() as patch:
            leave_out_pictures(patch, *([] if words else ["explanation.figures"]))
            assert train.main([str(images), "--runs", str(runs), "--name", name, *size, *words]) == 0
    return runs


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, in a folder with a blank and letters outside ASCII."""
    return Path(shutil.copytree(trained / "se-001", tmp_path / "lauf ü"))


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Flags for a small network whose runs lie in tmp_path."""
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    return ["--config", str(tmp_path / "small.toml"), "--runs", str(tmp_path)]
