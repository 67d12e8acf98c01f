"""What a person reads of the machine."""

import pytest
import torch

from medmambase.machine import device_name


@pytest.mark.parametrize(("threads", "said"), [(1, "cpu (1 thread)"), (2, "cpu (2 threads)")])
def test_one_thread_is_one_thread(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device_name(torch.device("cpu")) == said
