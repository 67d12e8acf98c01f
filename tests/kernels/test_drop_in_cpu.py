"""Where it is asked for, "cuda" means the CPU in other people's code, and afterwards no longer."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medmambase_kernels import drop_in
from medmambase_kernels.drop_in.__main__ import main

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so cuda works without")

WAYS: dict[str, Callable[[], Tensor]] = {
    "x.cuda()": lambda: torch.ones(2).cuda(),
    "x.cuda(0)": lambda: torch.ones(2).cuda(0, non_blocking=True),
    "x.to(name)": lambda: torch.ones(2).to("cuda", non_blocking=True),
    "x.to(number)": lambda: torch.ones(2).to(0),
    "x.to(device, dtype)": lambda: torch.ones(2, dtype=torch.int64).to(torch.device("cuda", 1), torch.float32),
    "x.to(device=)": lambda: torch.ones(2).to(device="cuda:1"),
    "x.new_ones": lambda: torch.zeros(2).new_ones(2, device="cuda"),
    "x.to(device=number)": lambda: torch.ones(2).to(device=0),
    "torch.ones of a number": lambda: torch.ones(2, device=1),
    "torch.ones": lambda: torch.ones(2, device="cuda"),
    "torch.tensor": lambda: torch.tensor([1.0, 1.0], device=torch.device("cuda")),
    "torch.ones_like": lambda: torch.ones_like(torch.zeros(2), device="cuda"),
    "module.cuda()": lambda: nn.LayerNorm(2).cuda().weight,
    "module.cuda(0)": lambda: nn.LayerNorm(2).cuda(0).weight,
    "module.to(name)": lambda: nn.LayerNorm(2).to("cuda:0").weight,
    "module.to(number)": lambda: nn.LayerNorm(2).to(0).weight,
    "a module made there": lambda: nn.LayerNorm(2, device="cuda").weight,
    "DataParallel": lambda: nn.DataParallel(nn.LayerNorm(2), device_ids=[0]).cuda().module.weight,
}
CALLS: dict[str, Callable[[], object]] = {
    "synchronize": lambda: torch.cuda.synchronize(),
    "set_device": lambda: torch.cuda.set_device(0),
    "reset_peak_memory_stats": lambda: torch.cuda.reset_peak_memory_stats(),
    "a device entered": lambda: torch.cuda.device(1).__enter__(),
    "pin_memory": lambda: torch.ones(2).pin_memory(),
}


@pytest.fixture
def on_cpu() -> Iterator[None]:
    drop_in.install(quiet=True, cpu=True)
    yield
    drop_in.uninstall()


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_asked_for_on_cuda_is_on_the_cpu(way: str, on_cpu: None) -> None:
    t = WAYS[way]()
    assert t.device.type == "cpu" and t.dtype == torch.float32 and t.tolist() == [1, 1]


@pytest.mark.parametrize("call", CALLS)
def test_what_needs_nothing_on_a_cpu_does_nothing(call: str, on_cpu: None) -> None:
    CALLS[call]()


@pytest.mark.parametrize("cpu", [False, True])
def test_without_the_wish_and_afterwards_torch_is_as_it_was(cpu: bool) -> None:
    names = ("device", "synchronize", "set_device", "reset_peak_memory_stats", "reset_max_memory_allocated")
    before = [torch.load, *(getattr(torch.cuda, name) for name in names)]
    drop_in.install(quiet=True, cpu=cpu)
    drop_in.uninstall()
    assert [torch.load, *(getattr(torch.cuda, name) for name in names)] == before
    drop_in.install(quiet=True)
    try:
        for way in (*WAYS.values(), *CALLS.values()):
            with pytest.raises((AssertionError, AttributeError, RuntimeError, ValueError)):
                way()
    finally:
        drop_in.uninstall()


def test_weights_that_were_saved_on_a_gpu_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "w.pt")
    drop_in.install(quiet=True, cpu=True)
    try:
        for where in (None, "cuda:0", torch.device("cuda"), {"cuda:0": "cuda:1"}, lambda storage, _: storage):
            assert torch.load(tmp_path / "w.pt", map_location=where)["w"].tolist() == [1, 1]
    finally:
        drop_in.uninstall()


def test_cuda_as_default_device_is_the_cpu(on_cpu: None) -> None:
    torch.set_default_device("cuda")
    try:
        assert torch.ones(2).device.type == "cpu"
    finally:
        torch.set_default_device(None)
    with torch.device("cuda"):
        assert torch.ones(2).device.type == "cpu"


def test_gradients_pass(on_cpu: None) -> None:
    x = torch.ones(2, requires_grad=True)
    (x.cuda() * 3).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3, 3]


SCRIPT = """
import sys
from mamba_ssm import Mamba
import torch
net = Mamba(8).cuda()
net(torch.randn(1, 3, 8, device="cuda")).sum().backward()
print(sys.argv[1:], next(net.parameters()).device)
"""


def test_a_script_for_a_gpu_runs_with_the_flag_and_is_told_of_it_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    monkeypatch.setattr("medmambase_kernels.drop_in.__main__._prepare_workers", lambda *_: None)
    try:
        assert main(["--cpu", str(tmp_path / "train.py"), "--cpu", "9"]) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first.endswith('; "cuda" means the CPU') and "on backend cpu" in first
        assert last == "['--cpu', '9'] cpu"
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA") as caught:
            main([str(tmp_path / "train.py")])
        assert caught.value.__notes__ == [
            'There is no GPU that torch can use. With --cpu before the file, "cuda" means the CPU.'
        ]
        for line in ("torch.ones(2).to('gpu')", "assert torch.cuda.is_available(), 'this needs CUDA'"):
            (tmp_path / "train.py").write_text(f"import torch\n{line}\n", encoding="utf-8")
            with pytest.raises((AssertionError, RuntimeError), match=r"(?i)CUDA") as caught:
                main([str(tmp_path / "train.py")])
            assert not hasattr(caught.value, "__notes__")  # the flag would not help
    finally:
        drop_in.uninstall()
