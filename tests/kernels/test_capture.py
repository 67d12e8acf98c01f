"""Launches are captured and replayed on the same memory."""

import pytest
import torch
from conftest import relative_error

from medmambase_kernels import FrozenConvolution, Recording


def test_a_recording_takes_its_steps_again_and_only_one_is_open() -> None:
    x, convolution = torch.randn(1, 4, 4, 16), FrozenConvolution(torch.randn(16, 16, 3, 3))
    with Recording() as recording:
        y = recording.call(torch.add, (1, 4, 4, 16), convolution(x), x)
        with pytest.raises(RuntimeError, match="open in this thread already"), Recording():
            pass
    x.copy_(torch.randn_like(x))
    recording.replay()
    assert relative_error(y, convolution(x) + x) < 1e-6


def test_the_open_recording_is_known_by_its_thread() -> None:
    assert Recording.current() is None
    with Recording() as recording:
        assert Recording.current() is recording
    assert Recording.current() is None
