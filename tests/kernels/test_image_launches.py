"""How many kernels the GPU scan of an image launches, PyTorch's included, counted without a GPU.
That of sequences: test_triton_sequences.py."""

from collections import Counter

import pytest
import torch
from launches import launches_of

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Leave memory as it is: there is none."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
@pytest.mark.parametrize("r", [3, 12], ids=["delta projected inside", "delta projected before"])
def test_a_scan_of_an_image_is_few_kernels(r: int, chunked: bool, dtype: torch.dtype) -> None:
    from medmambase_kernels._triton import selective_scan_2d as images

    b, side, d, n = 1 if chunked else 128, 16, 96, 16
    with torch.device("meta"):
        x, x_dbl = torch.empty(b, side, side, d, dtype=dtype), torch.empty(b, side, side, 4, r + 2 * n, dtype=dtype)
        weights = (torch.empty(4, d, r), torch.empty(4, d), torch.empty(4, d, n), torch.empty(4, d))
        kept = torch.empty(images.kept_shape(x, x_dbl, *weights))
    given, casts = (x, x_dbl, *weights, dtype, True), int(dtype != torch.float32)  # in float32 nothing is cast
    forward = launches_of(lambda: images.forward(*given, True))
    wanted = Counter({"image_pack.pack": 1, "scan_forward.forward": 1 + chunked, "scan_forward.carry": chunked})
    wanted += Counter({"sum": 1, "_to_copy": casts})  # of y; x is widened by pack
    assert +forward.counts == wanted
    assert forward.total <= 5 + casts
    backward = launches_of(lambda: images.backward(x, *given, kept))
    wanted = Counter({"image_pack.pack": 1, "scan_backward.backward": 1})
    wanted += Counter({"scan_backward.adjoint_ends": chunked, "scan_forward.carry": chunked})
    wanted += Counter({"image_pack.unpack": 1, "image_pack.totals": 1, "_to_copy": casts})  # of dy
    assert +backward.counts == wanted
    assert forward.total + backward.total <= 11 + 2 * casts
