"""SS2D for prediction: what is laid out once for the scan of small maps gives the scan's result."""

import pytest
import torch
from conftest import HAS_TRITON, engine_device, relative_error
from torch import nn

from medmambase.model.frozen_ss2d import FrozenSS2D
from medmambase.model.layers import SS2D
from medmambase_kernels import use_backend

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def drawn(channels: int, state: int) -> SS2D:
    """A branch in which every weight counts."""
    branch = SS2D(channels, state).eval().to(engine_device("triton"))
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


@pytest.mark.parametrize(
    ("h", "w", "channels", "state"), [(2, 2, 33, 3), (1, 1, 8, 4)], ids=["padded tables", "one position"]
)
def test_a_small_map_is_scanned_from_tables_that_were_made_once(h: int, w: int, channels: int, state: int) -> None:
    branch = drawn(channels, state)
    x = torch.randn(1, h, w, 2 * channels, device=engine_device("triton"))
    plan = FrozenSS2D(branch)
    with torch.no_grad():
        with use_backend("reference"):
            expected = plan._scan(x)
        with use_backend("triton"):
            parts = plan._parts(x)
    assert len(parts) == 4 and relative_error(parts.sum(0), expected) < 1e-5


def test_rows_that_are_too_wide_are_left_to_the_operator() -> None:
    plan, x = FrozenSS2D(drawn(2, 33)), torch.randn(1, 1, 2, 4, device=engine_device("triton"))
    with torch.no_grad(), use_backend("triton"):
        parts = plan._parts(x)
        assert torch.equal(parts[0], plan._scan(x)) and len(parts) == 1
