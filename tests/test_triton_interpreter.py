"""The quick interpreter gives the bits of the interpreter as it comes with Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HAS_TRITON
from torch import Tensor

from medmambase_kernels import selective_scan, selective_scan_2d


def results() -> list[Tensor]:
    """Outputs and gradients of both scans, with tails of tiles, in single and half precision."""
    g = torch.Generator().manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        sequence = [torch.randn(shape, generator=g).to(dtype) for shape in ((1, 3, 9), (1, 3, 9))]
        sequence += [torch.rand(3, 2, generator=g) - 1.5]
        sequence += [torch.randn(1, 2, 9, generator=g).to(dtype) for _ in "BC"]
        image = [torch.randn(1, 3, 5, 3, generator=g).to(dtype), torch.randn(1, 3, 5, 4, 6, generator=g).to(dtype)]
        image += [torch.randn(4, 3, 2, generator=g), torch.randn(4, 3, generator=g), -torch.rand(4, 3, 2, generator=g)]
        image += [torch.randn(4, 3, generator=g)]
        for scan, arguments in ((selective_scan, sequence), (selective_scan_2d, image)):
            leaves = [t.detach().requires_grad_() for t in arguments]
            y = scan(*leaves, backend="triton")
            y.float().square().sum().backward()
            found += [y.detach(), *(t.grad for t in leaves if t.grad is not None)]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON or torch.cuda.is_available(), reason="there is no interpreter to compare with")
def test_its_results_have_the_bits_of_the_interpreter_as_it_comes(tmp_path: Path) -> None:
    saved = tmp_path / "results.pt"
    subprocess.run(
        [sys.executable, __file__, str(saved)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    expected, found = torch.load(saved), results()
    assert len(found) == len(expected) == 26
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    torch.save(results(), sys.argv[1])
