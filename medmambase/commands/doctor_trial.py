"""Test in a separate process whether PyTorch loads, which backend runs, whether it is right, and
how fast it is; print one JSON line after each test.

doctor/facts.py starts it as ``python -m medmambase.commands.doctor_trial``.
"""

import json
import statistics
import sys
import time
import warnings
from typing import Any


def main() -> int:
    """Run the trial. Returns 0; an exception ends the process, and the doctor shows its last
    line."""
    import torch

    gpu = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if gpu else None
    tell(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        sees_gpu=gpu,
        builds=torch.cuda.get_arch_list(),
        capability=capability,
    )

    from medmambase_kernels import describe_backend, selective_scan, squeeze_excite

    warnings.simplefilter("ignore")  # the doctor says itself what an automatic choice gave up
    device = torch.device("cuda" if gpu else "cpu")
    backend, _, reason = describe_backend(device).partition(": ")
    tell(backend=backend, reason=reason)

    def wait() -> None:
        if gpu:
            torch.cuda.synchronize()

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    began = time.perf_counter()
    squeeze_excite(random(1, 4, 4, 8), random(2, 8), random(8, 2))
    wait()
    tell(kernel_s=time.perf_counter() - began)

    def arguments(b: int, d: int, l: int, n: int) -> list[torch.Tensor]:
        return [
            random(b, d, l),
            random(b, d, l).abs() * 0.1,
            -random(d, n).abs(),
            random(b, n, l),
            random(b, n, l),
            random(d),
        ]

    inputs = arguments(2, 40, 33, 16)
    tell(
        error=max(
            _difference(ours, exact)
            for ours, exact in zip(
                _all(selective_scan, inputs, None), _all(selective_scan, inputs, "reference"), strict=True
            )
        )
    )

    inputs, times = arguments(16, 96, 256, 16), []
    for _ in range(6):
        wait()
        began = time.perf_counter()
        _all(selective_scan, inputs, None)
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    tell(scan_ms=statistics.median(times[1:]))
    return 0


def tell(**found: Any) -> None:
    """Print a line at once, because the next step may end the process."""
    print(json.dumps(found), flush=True)


def _all(scan: Any, inputs: list[Any], backend: str | None) -> list[Any]:
    """Return the result and all gradients, those of the definition in float64."""
    mine = [(t.double().cpu() if backend else t).detach().requires_grad_() for t in inputs]
    y = scan(*mine, backend=backend)
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in mine)]


def _difference(ours: Any, exact: Any) -> float:
    return float((ours.double().cpu() - exact).abs().max() / exact.abs().max())


if __name__ == "__main__":
    sys.exit(main())
