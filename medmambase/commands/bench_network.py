"""The network's part of ``medmambase-bench``: a training step and a prediction, beside the same
network with the original's operators.

Last stop before: ``commands/bench.py``, which prints the rows. Next stop:
``medmambase_kernels/bench/measure.py``, which holds the clock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medmambase.config import PRESETS
from medmambase.model.layers import lay_out
from medmambase.model.network import MedMambaSE
from medmambase.model.original import with_original_operators
from medmambase_kernels.bench.cases import DIRECTIONS, loop_scan, original_gate, original_scan_2d
from medmambase_kernels.bench.measure import Bench, name_of, one_line, relative_error


@dataclass(frozen=True)
class NetworkRow:
    """One line of the network's table; ``original`` is the same network with the original's
    operators, around ``original_scan``."""

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


def network_rows(
    model: str, sizes: Sequence[int], batches: Sequence[int], dtypes: Sequence[torch.dtype], bench: Bench
) -> Iterator[NetworkRow]:
    """A training step (forward, loss, backward, AdamW) and a prediction of a new network, beside
    the same network with the original's operators."""
    torch.manual_seed(0)
    network = MedMambaSE(PRESETS[model]).to(bench.device)
    lay_out(network)  # as training does
    scan, scan_name = (
        (bench.mamba, "mamba_ssm's kernel") if bench.mamba is not None else (loop_scan, "a loop in eager PyTorch")
    )
    original = with_original_operators(network, partial(original_scan_2d, scan), original_gate)
    config = network.config
    for dtype in dtypes:
        for size in sizes:
            for batch in batches:
                images = torch.rand(batch, config.in_chans, size, size, device=bench.device)
                labels = torch.arange(batch, device=bench.device) % config.num_classes
                maps = (
                    depth * dim * (size // 4 // 2**i) ** 2
                    for i, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True))
                )
                compared = scan is not loop_scan or batch * DIRECTIONS * config.state * sum(maps) <= bench.most_states
                for what in ("training step", "prediction"):
                    row = NetworkRow(model, size, batch, name_of(dtype), what)
                    try:
                        row = replace(row, **_network_figures(network, images, labels, dtype, what, bench))
                        if compared and row.ms is not None:
                            row = replace(
                                row,
                                **_beside(network, original, images, labels, dtype, what, bench, row.ms),
                                original_scan=scan_name,
                            )
                    except Exception as error:  # noqa: BLE001  # whatever an engine raises costs this line, not the others
                        whose, spared = (
                            "" if row.ms is None else "original: ",
                            isinstance(error, torch.OutOfMemoryError),
                        )
                        row = replace(row, note=f"{whose}{type(error).__name__}: {one_line(error)}", failed=not spared)
                    yield row


def _network_figures(
    network: MedMambaSE, images: Tensor, labels: Tensor, dtype: torch.dtype, what: str, bench: Bench
) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-6, fused=True
    )  # so small that the network stays what it is

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
    theirs = _network_figures(original, images, labels, dtype, what, bench)
    return {"original_ms": theirs["ms"], "original_ratio": theirs["ms"] / ms, "original_peak_mb": theirs["peak_mb"]}
