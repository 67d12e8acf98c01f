"""Measure a network: the operators that it calls, and the times of a training step and of a
prediction, beside the same network with the original's operators.

An operator is held to its definition on the maps of the network before the network is timed; see
``medmambase_kernels.bench``.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from medmambase.config import ModelConfig
from medmambase.model.layers import lay_out
from medmambase.model.network import MedMambaSE
from medmambase.model.original import with_original_operators
from medmambase_kernels import use_backend
from medmambase_kernels.bench.cases import Case
from medmambase_kernels.bench.measure import Bench, name_of, one_line, relative_error
from medmambase_kernels.bench.original import loop_scan, original_gate, original_scan_2d


@dataclass(frozen=True)
class NetworkRow:
    """One line of the network's table; ``original`` is the same network with the original's
    operators, around ``original_scan``. Times in ms, memory in MB (10^6 bytes)."""

    model: str
    size: int
    batch: int
    dtype: str
    what: str
    ms: float | None = None
    spread_ms: float | None = None
    repetitions: int = 0
    images_per_s: float | None = None
    call_ms: float | None = None
    peak_mb: float | None = None
    original_ms: float | None = None
    original_ratio: float | None = None
    original_peak_mb: float | None = None
    original_scan: str | None = None
    note: str = ""
    failed: bool = False


class _Calls(TorchDispatchMode):
    """Keeps the calls of our operators, by the names of their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.found: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "medmambase":
            names = [argument.name for argument in function._schema.arguments]
            self.found.append((function._schema.name.split("::")[1], dict(zip(names, args, strict=False))))
        return function(*args, **(kwargs or {}))


def new_network(config: ModelConfig, device: torch.device) -> MedMambaSE:
    """Make a network with new weights, laid out as training does."""
    torch.manual_seed(0)
    network = MedMambaSE(config).to(device)
    lay_out(network)
    return network


def operators_of(network: MedMambaSE, size: int, dtype: torch.dtype) -> list[Case]:
    """List the operators that a network calls for one image of ``size`` pixels, in order.

    A copy of the network runs on the meta device, without memory: nothing is computed.
    """
    weightless = deepcopy(network).to("meta").eval()
    with torch.no_grad(), use_backend("torch"), _Calls() as calls:
        weightless(torch.empty(1, network.config.in_chans, size, size, device="meta"))
    return [_case(name, arguments, dtype) for name, arguments in calls.found]


def _case(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> Case:
    def size(argument: str, axis: int) -> int:
        return int(arguments[argument].shape[axis]) if argument in arguments else 0

    first = next(iter(arguments))
    b, h, w, d = (size(first, axis) for axis in range(4))
    d = size("squeeze", 1) or d  # of a gate that takes two branches the first has half of the channels
    sizes = {"state": size("A", -1), "rank": size("dt_weight", 2), "hidden": size("squeeze", 0)}
    return Case(name, b, h, w, d, dtype, **{field: value for field, value in sizes.items() if value})


def network_rows(
    model: str,
    network: MedMambaSE,
    sizes: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[torch.dtype],
    bench: Bench,
) -> Iterator[NetworkRow]:
    """Time a training step (forward, loss, backward, AdamW) and a prediction of a network, called
    ``model`` in the rows, beside the same network with the original's operators."""
    config = network.config
    scan, scan_name = (
        (bench.mamba, "mamba_ssm's kernel") if bench.mamba is not None else (loop_scan, "a loop in eager PyTorch")
    )
    original = with_original_operators(network, partial(original_scan_2d, scan), original_gate)
    for dtype in dtypes:
        for size in sizes:
            states = sum(case.rows * case.state for case in operators_of(network, size, dtype))
            for batch in batches:
                images = torch.rand(batch, config.in_chans, size, size, device=bench.device)
                labels = torch.arange(batch, device=bench.device) % config.num_classes
                compared = scan is not loop_scan or batch * states <= bench.most_states
                for what in ("training step", "prediction"):
                    row = NetworkRow(model, size, batch, name_of(dtype), what)
                    try:
                        row = replace(row, **_figures(network, images, labels, dtype, what, bench))
                        if compared and row.ms is not None:
                            beside = _beside(network, original, images, labels, dtype, what, bench, row.ms)
                            row = replace(row, **beside, original_scan=scan_name)
                    except Exception as error:  # noqa: BLE001  # whatever a backend raises costs this line, not the others
                        whose = "" if row.ms is None else "original: "
                        spared = isinstance(error, torch.OutOfMemoryError)
                        row = replace(row, note=f"{whose}{type(error).__name__}: {one_line(error)}", failed=not spared)
                    yield row


def _figures(
    network: MedMambaSE, images: Tensor, labels: Tensor, dtype: torch.dtype, what: str, bench: Bench
) -> dict[str, Any]:
    # So small a rate that the network stays what it is.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def forward() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(images)
        return logits.float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(), labels).backward()
        optimizer.step()

    if what == "prediction":
        network.eval()
        with torch.inference_mode():
            measured = bench.measure(forward)
    else:
        network.train()
        measured = bench.measure(step)
        optimizer.zero_grad(set_to_none=True)
    ms = measured.times.median
    return {
        "ms": ms, "spread_ms": measured.times.spread, "repetitions": len(measured.times.all),
        "images_per_s": 1e3 * len(images) / ms, "call_ms": measured.call_ms, "peak_mb": measured.peak_mb,
    }  # fmt: skip  # one line of the table


def _beside(
    network: MedMambaSE,
    original: MedMambaSE,
    images: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    what: str,
    bench: Bench,
    ms: float,
) -> dict[str, Any]:
    original.load_state_dict(dict(zip(original.state_dict(), network.state_dict().values(), strict=True)))
    with torch.inference_mode():
        error = relative_error(original.eval()(images), network.eval()(images))
    if not error <= 1e-3:  # on a GPU PyTorch rounds the inputs of convolutions to TF32 even here
        return {"note": f"the original's logits differ from ours by {error:.1e}, not compared", "failed": True}
    theirs = _figures(original, images, labels, dtype, what, bench)
    return {"original_ms": theirs["ms"], "original_ratio": theirs["ms"] / ms, "original_peak_mb": theirs["peak_mb"]}
