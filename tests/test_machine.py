"""What a person reads of the machine."""

import re
import sys
from pathlib import Path

import pytest
import torch

from medmambase import machine
from medmambase.config import ConfigError
from medmambase.data import drawn_ahead
from medmambase.data.decoded import on_demand
from medmambase.machine import choose_device, device_name


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "what"}, None),
        ({}, None),
    ],
)
def test_a_container_has_the_processors_that_its_quota_keeps_busy(
    files: dict[str, str], count: int | None, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / ("" if name == "cpu.max" else "cpu") / name).write_text(text, encoding="ascii")
    assert machine._quota(tmp_path) == (count or sys.maxsize)


def test_whoever_shares_out_work_asks_how_many_processors_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, threads, processes in ((1, 1, 1), (4, 4, 2), (64, 8, 8)):
        monkeypatch.setattr(on_demand, "cores", lambda count=count: count)
        monkeypatch.setattr(drawn_ahead, "cores", lambda count=count: count)
        assert (on_demand.threads(), drawn_ahead.processes(None)) == (threads, processes)
    assert machine.cores() >= 1


@pytest.mark.parametrize(("threads", "said"), [(1, "cpu (1 thread)"), (2, "cpu (2 threads)")])
def test_one_thread_is_one_thread(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device_name(torch.device("cpu")) == said


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_device_that_there_is_not_is_refused_with_those_that_there_are(
    gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    there = "cpu or cuda:0 or cuda:1" if gpus else "cpu"
    for wish, why in (("tpu", "PyTorch knows no such device"), ("hpu", "[^;]*"), ("mps:9", "[^;']*")):
        with pytest.raises(ConfigError) as raised:
            choose_device(wish, "--device")
        said = rf"--device {wish} cannot be used \({why}\); give {there}, or leave it out to choose automatically"
        assert re.fullmatch(said, str(raised.value))
