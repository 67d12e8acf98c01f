"""Launches are captured and replayed on the same memory."""

import pytest
import torch
from conftest import relative_error

from medmambase_kernels import Capture, FrozenConv2d


def test_a_capture_takes_its_steps_again_and_only_one_is_open() -> None:
    x, convolution = torch.randn(1, 4, 4, 16), FrozenConv2d(torch.randn(16, 16, 3, 3))
    with Capture() as capture:
        y = capture.call(torch.add, (1, 4, 4, 16), convolution(x), x)
        with pytest.raises(RuntimeError, match="open in this thread already"), Capture():
            pass
    x.copy_(torch.randn_like(x))
    capture.replay()
    assert relative_error(y, convolution(x) + x) < 1e-6


def test_the_open_capture_is_known_by_its_thread() -> None:
    assert Capture.current() is None
    with Capture() as capture:
        assert Capture.current() is capture
    assert Capture.current() is None
