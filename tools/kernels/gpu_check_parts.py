"""The parts of gpu_check.py: what each finds, and what may hinder it.

What an operator is, its cases, how it is timed and what it is held to are medmambase_kernels.bench;
what a network is timed by is medmambase/model/measure.py. This file only says which of it to run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from medmambase.config import PRESETS, ModelConfig
from medmambase.doctor.torch_build import driver_and_clock, nvidia_smi
from medmambase.machine import environment
from medmambase.model.cuda_graph import CudaGraphs
from medmambase.model.measure import network_rows, new_network
from medmambase.model.network import MedMambaSE
from medmambase_kernels.bench import cases as bench_cases
from medmambase_kernels.bench.cases import OPERATORS, Case
from medmambase_kernels.bench.floors import card
from medmambase_kernels.bench.measure import Bench, check, name_of
from medmambase_kernels.bench.original import mamba_scan

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TIMED = DTYPES[:2]
BATCHES = (64, 16, 1)
Row = dict[str, Any]
Finding = tuple[str, Callable[[], Row]]


@dataclass(frozen=True)
class Setting:
    """Where to check, whether at tiny sizes, and how many seconds are left."""

    device: torch.device
    tiny: bool
    seconds_left: Callable[[], float]

    @property
    def bench(self) -> Bench:
        """How the operators are timed here."""
        mamba, _ = mamba_scan(self.device)
        if self.device.type != "cuda":
            return Bench(self.device, repeat=3)
        properties = torch.cuda.get_device_properties(self.device)
        found = card(properties, driver_and_clock(str(getattr(properties, "uuid", "")))[1])
        return Bench(self.device, repeat=3 if self.tiny else None, card=found, mamba=mamba)


@dataclass(frozen=True)
class Part:
    """``findings`` lists what is to be found, each under a key of its own; ``hindered`` says in one
    clause why this cannot be done here, or nothing."""

    findings: Callable[[Setting], Iterable[Finding]]
    hindered: Callable[[Setting], str]


def device_of(wish: str) -> torch.device | None:
    """The device that was asked for; None where PyTorch cannot use it."""
    try:
        device = torch.device(wish)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError):  # torch raises either, with or without CUDA in its build
        return None
    return device if device.type in ("cpu", "cuda") else None


def machine_of(device: torch.device) -> Row:
    """Describe what a measurement may depend on: the GPU, its driver and clocks, versions, and the
    kernels' source."""
    machine: Row = dict(environment(device)) | {"sources": _sources()}
    for name in ("mamba-ssm", "causal-conv1d"):
        try:
            machine[name] = version(name)
        except PackageNotFoundError:
            machine[name] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver, clock = driver_and_clock(str(getattr(properties, "uuid", "")))
        now = nvidia_smi("--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv,noheader")
        machine |= {
            "driver": driver, "clock_hz": clock, "now": (now or "").strip(),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
        }  # fmt: skip  # one entry of the file
    return machine


def _sources() -> str:
    """A number that changes with the kernels."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "kernels" / "medmambase_kernels").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _here(setting: Setting) -> str:
    return ""


def _timed_cases(setting: Setting) -> Iterator[Case]:
    if setting.tiny:
        yield from (Case(operator, 1, 4, 4, 8, torch.float32, 1) for operator in OPERATORS)
        return
    for dtype in TIMED:
        for operator in OPERATORS:
            for size in bench_cases.SIZES:
                yield from bench_cases.cases([operator], [size], (1, 2, 3, 4), BATCHES, [dtype])


def _exact(setting: Setting) -> Iterator[Finding]:
    """Every operator and all its gradients against the float64 definition, in three dtypes."""
    for operator in OPERATORS:
        for dtype in DTYPES:
            cases = [Case(operator, 1, 3, 3, 8, dtype)] if setting.tiny else bench_cases.reduced(operator, dtype)
            yield f"{operator} {name_of(dtype)}", partial(_exact_row, cases, setting)


def _exact_row(cases: list[Case], setting: Setting) -> Row:
    verdict = check(cases, setting.device)
    return {"error": str(verdict.error), "where": verdict.where, "tolerance": verdict.tolerance,
            "failed": not verdict.passed}  # fmt: skip  # one row


def _twice(setting: Setting) -> Iterator[Finding]:
    """Every operator and all its gradients twice: the same bits."""
    for operator in OPERATORS:
        for dtype in DTYPES:
            shape = (2, 4, 4, 8) if setting.tiny else (16, 32, 32, 96)
            yield f"{operator} {name_of(dtype)}", partial(_twice_row, Case(operator, *shape, dtype), setting)


def _twice_row(case: Case, setting: Setting) -> Row:
    computation = bench_cases.operator(case, setting.device)
    dy = torch.ones_like(computation.forward())
    first, second = computation.backward(dy), computation.backward(dy)
    names = ("y", *(f"gradient of {name}" for name in computation.named))
    different = [name for name, one, other in zip(names, first, second, strict=True) if not torch.equal(one, other)]
    return {"different": different, "failed": bool(different)}


def _operators(setting: Setting) -> Iterator[Finding]:
    """Times of every operator at the stages of ``tiny``, beside mamba-ssm's kernel, and for
    selective_scan_2d beside the original's pipeline around it."""
    bench = setting.bench
    for case in _timed_cases(setting):
        yield _key(case), partial(_times, bench, case)


def _key(case: Case) -> str:
    return (f"{case.operator} {name_of(case.dtype)} batch {case.batch} {case.channels} ch. "
            f"{case.height}x{case.width}")  # fmt: skip  # one name


def _times(bench: Bench, case: Case) -> Row:
    rows = [asdict(row) for row in bench.rows(case)]
    return {"passes": rows, "failed": any(row["failed"] for row in rows)}


def _network(setting: Setting) -> Iterator[Finding]:
    """A training step and a prediction of ``tiny``: as it is, with the original's operators, and as
    one CUDA graph."""
    name, size = ("small", 32) if setting.tiny else ("tiny", 128)
    config = ModelConfig(depths=(1, 1), dims=(8, 16)) if setting.tiny else PRESETS["tiny"]
    network = new_network(config, setting.device)
    for dtype in TIMED[:1] if setting.tiny else TIMED:
        for batch in (1,) if setting.tiny else BATCHES:
            key = f"{name_of(dtype)} batch {batch}"
            yield f"{key} eager", partial(_eager, name, network, size, batch, dtype, setting)
            yield f"{key} graphed", partial(_graphed, network, size, batch, dtype, setting)


def _eager(name: str, network: MedMambaSE, size: int, batch: int, dtype: torch.dtype, setting: Setting) -> Row:
    rows = [asdict(row) for row in network_rows(name, network, [size], [batch], [dtype], setting.bench)]
    return {"rows": rows, "failed": any(row["failed"] for row in rows)}


def _graphed(network: MedMambaSE, size: int, batch: int, dtype: torch.dtype, setting: Setting) -> Row:
    """Times of a training step (forward, loss, backward, AdamW) as one CUDA graph, and of the
    network for prediction, which replays one by itself; without a GPU, of both without graphs."""
    device = setting.device
    images = torch.rand(batch, network.config.in_chans, size, size, device=device)
    labels = torch.arange(batch, device=device) % network.config.num_classes
    gpu = device.type == "cuda"
    # So small a rate that the network stays what it is.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True, capturable=gpu)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=not gpu):
            logits: torch.Tensor = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    network.train()
    replay: Callable[[], object] = CudaGraphs(device).capture(step)[0] if gpu else step
    found: Row = {"training step": _measured(setting, replay)}
    optimizer.zero_grad(set_to_none=True)
    frozen = network.eval().for_prediction()

    def predict() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: torch.Tensor = frozen(images)
        return logits

    return found | {"prediction": _measured(setting, predict)}


def _measured(setting: Setting, work: Callable[[], object]) -> Row:
    measured = setting.bench.measure(work)
    return {"ms": measured.times.median, "spread_ms": measured.times.spread, "call_ms": measured.call_ms,
            "repetitions": len(measured.times.all)}  # fmt: skip  # one entry


def _races(setting: Setting) -> Iterator[Finding]:
    """Every operator at tiny sizes under compute-sanitizer's racecheck: the pipelined loops read
    shared memory that their copies write."""
    yield "racecheck", partial(_under_sanitizer, "racecheck", setting)
    yield "memcheck", partial(_under_sanitizer, "memcheck", setting)


def _under_sanitizer(tool: str, setting: Setting) -> Row:
    program = shutil.which("compute-sanitizer")
    assert program is not None  # else the part is hindered
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        inner = [sys.executable, str(ROOT / "tools" / "kernels" / "gpu_check.py"), "--only", "exact", "--tiny",
                 "--device", str(setting.device), "--json", str(Path(folder) / "under.json")]  # fmt: skip  # flags
        return _ran([program, "--tool", tool, "--error-exitcode", "9", *inner], setting)


def _no_sanitizer(setting: Setting) -> str:
    if setting.device.type != "cuda":
        return "compute-sanitizer watches a GPU"
    return "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed (it comes with CUDA)"


def _suite(setting: Setting) -> Iterator[Finding]:
    """The tests of the kernels, which run the Triton kernels on the GPU where there is one."""
    tests = ["tests/kernels/test_launch_table.py"] if setting.tiny else ["tests/kernels"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    yield "pytest", partial(_ran, command, setting)


def _no_tests(setting: Setting) -> str:
    return "" if (ROOT / "tests" / "kernels").is_dir() else "there are no tests beside this program"


def _ran(command: list[str], setting: Setting) -> Row:
    """Run a program, for as long as there is time; keep the end of what it says."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace",
            timeout=setting.seconds_left() + 60, check=False,
        )  # fmt: skip  # one call
    except subprocess.TimeoutExpired:
        return {"failed": True, "note": "it took longer than the time that was left; run this part alone"}
    said = (done.stdout + done.stderr).strip().splitlines()
    return {"exit": done.returncode, "said": said[-12:], "failed": done.returncode != 0}


PARTS = {  # in order of what is wanted first, should the time be up
    "exact": Part(_exact, _here),
    "twice": Part(_twice, _here),
    "operators": Part(_operators, _here),
    "network": Part(_network, _here),
    "races": Part(_races, _no_sanitizer),
    "suite": Part(_suite, _no_tests),
}
