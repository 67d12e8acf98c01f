"""Several processes that train together do what one would do with a batch as large as theirs
together."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE, UNDER_WINE, relative_error
from safetensors.torch import load_file
from torch import nn

from kill_test import at_step, image_set
from medmambase import MedMambaSE, ModelConfig, distributed
from medmambase.config import Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import Progress
from medmambase.distributed import ALONE, Ranks, SynchronisedBatchNorm, synchronise_batch_norms
from medmambase.training import checkpoint, loop

# So high a rate that no two images stay alike enough for rounding to order them: the AUC shows it.
CONFIG = TrainConfig(lr=1e-2, epochs=2, batch_size=4, image_size=16, warmup=0.5, ema=0.9, patience=0, weight_decay=0.05)
MODEL = ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16), drop_path=0.0)


def train(
    run: Path,
    config: TrainConfig,
    ranks: Ranks = ALONE,
    resume: bool = False,
    progress: Progress = lambda items, total, text: items,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = MedMambaSE(MODEL, preprocessing=Preprocessing(size=16, channels=1))
    run.mkdir(parents=True, exist_ok=True)
    loop.train(
        network, image_set(29, "train"), image_set(11, "val"), config, run, torch.float32, progress, lambda epoch: None,
        resume=resume, ranks=ranks,
    )  # fmt: skip  # as it is declared
    return network.state_dict()


def one_of_two(rank: int, port: int, work: str, run: str, settings: dict[str, Any]) -> Any:
    """In a process of its own, as torchrun would start it."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with distributed.joined("cpu") as ranks:
        assert (ranks.rank, ranks.count, ranks.first) == (rank, 2, rank == 0)
        if work == "train":
            return train(Path(run), TrainConfig.from_dict(settings), ranks, resume=True)
        if work == "train until step 5":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited
            with suppress(KeyboardInterrupt):
                # As the terminal's Ctrl-C: one process gets it, all stop after the same step.
                train(
                    Path(run),
                    TrainConfig.from_dict(settings),
                    ranks,
                    progress=at_step(4, lambda: signal.raise_signal(signal.SIGINT)),
                )
            return None
        if work == "agree":
            return ranks.agree("run ü\udcff" if ranks.first else "")
        if work == "write":
            try:
                ranks.write(lambda: Path(run, "absent", "x").write_text("x", encoding="utf-8"))
            except Exception as error:  # noqa: BLE001  # whatever the reader lets through is what is looked for
                return type(error).__name__
        torch.manual_seed(3)
        x = torch.randn(7, 4, 3, 5)
        mine = ranks.share(torch.arange(7))
        norm = SynchronisedBatchNorm(nn.BatchNorm2d(4)).train()
        part = x[mine].requires_grad_()
        y = norm(part)
        (y * torch.arange(7.0)[mine].view(-1, 1, 1, 1)).sum().backward()
        return y.detach(), part.grad, norm.running_mean, norm.running_var, int(norm.num_batches_tracked)


class Dying(Ranks):
    """A process that is killed in the middle of the training: when it has met the others so
    often."""

    def sum(self, t: torch.Tensor) -> torch.Tensor:
        MEETINGS.append(1)
        if len(MEETINGS) == 12:
            os._exit(9)
        return super().sum(t)


MEETINGS: list[int] = []


def until_the_second_dies(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with distributed.joined("cpu") as ranks:
            train(Path(folder, "run"), replace(CONFIG, save_every=1), Dying(1, 2, 1) if rank else ranks)
    except distributed.RankError as error:
        Path(folder, "said").write_text(str(error), encoding="utf-8")


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


meeting = pytest.mark.skipif(UNDER_WINE, reason="Gloo's processes do not come to an end under Wine")


Both = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Have two processes, the same for all tests, meet and do some ``work``; what each gives
    back."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        def do(work: str, run: Path, settings: dict[str, Any] | None = None) -> list[Any]:
            port = free_port()
            asked = [pool.submit(one_of_two, rank, port, work, str(run), settings or {}) for rank in (0, 1)]
            return [one.result(timeout=PATIENCE) for one in asked]

        yield do


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference but for biases before a BatchNorm, and its running mean: their
    gradient is zero, and Adam makes steps of its rounding."""
    spared = (".1.bias", ".4.bias", "running_mean", "num_batches_tracked")
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if not name.endswith(spared))


def logits(state: dict[str, torch.Tensor]) -> torch.Tensor:
    network = MedMambaSE(MODEL, preprocessing=Preprocessing(size=16, channels=1)).eval()
    network.load_state_dict(state)
    return network((image_set(29, "train").images.float() / 255 - 0.5) / 0.5).detach()


@pytest.mark.slow
@meeting
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "balance": "weights"},
        {"recompute": True, "balance": "sampler", "augmentation": "none", "label_smoothing": 0.0},
    ],
    ids=["plain", "accumulated and weighted", "recomputed and balanced"],
)
def test_two_processes_learn_what_one_learns_with_twice_the_batch(
    both: Both, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(CONFIG, **changes)
    first, second = both("train", tmp_path / "two", config.to_dict())
    alone = train(tmp_path / "one", replace(config, batch_size=2 * config.batch_size))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert distance(first, alone) < 1e-4
    assert relative_error(logits(first), logits(alone)) < 1e-3
    assert (
        distance(load_file(tmp_path / "two/best/model.safetensors"), load_file(tmp_path / "one/best/model.safetensors"))
        < 1e-4
    )
    untrained = MedMambaSE(MODEL, preprocessing=Preprocessing(size=16, channels=1))
    assert distance(alone, untrained.state_dict()) > 1e-2  # so the bounds above say something
    figures = [
        np.genfromtxt(tmp_path / which / "metrics.csv", delimiter=",", skip_header=1) for which in ("two", "one")
    ]
    assert np.allclose(*figures, atol=1e-3)


@pytest.mark.slow
@meeting
def test_two_processes_go_on_where_they_stopped_to_the_last_bit(both: Both, tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1)
    both("train", tmp_path / "whole", config.to_dict())
    both("train until step 5", tmp_path / "cut", config.to_dict())
    assert checkpoint.position(tmp_path / "cut" / "last") == (2, 1)
    both("train", tmp_path / "cut", config.to_dict())
    for name in ("metrics.csv", "best/model.safetensors", "last/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.slow
@meeting
def test_when_one_process_dies_the_others_end_with_a_sentence_and_their_work_is_kept(tmp_path: Path) -> None:
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    processes = [spawn.Process(target=until_the_second_dies, args=(rank, port, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 9]
    assert (
        (tmp_path / "said")
        .read_text(encoding="utf-8")
        .startswith("process 0 lost contact with the others; their own messages say why (")
    )
    assert checkpoint.position(tmp_path / "run" / "last") is not None


@pytest.mark.slow
@meeting
def test_batch_norm_over_two_processes_is_batch_norm_over_the_whole_batch(both: Both, tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(7, 4, 3, 5, requires_grad=True)
    norm = nn.BatchNorm2d(4).train()
    y = norm(x)
    (y * torch.arange(7.0).view(-1, 1, 1, 1)).sum().backward()
    parts = both("norm", tmp_path)
    assert torch.allclose(torch.cat([part[0] for part in parts]), y, atol=1e-5)
    assert torch.allclose(torch.cat([part[1] for part in parts]), x.grad, atol=1e-4)
    for part in parts:
        assert (
            torch.allclose(part[2], norm.running_mean, atol=1e-6)
            and torch.allclose(part[3], norm.running_var, atol=1e-6)
            and part[4] == 1
        )


@pytest.mark.slow
@meeting
def test_all_take_the_first_ones_word_and_none_goes_on_when_it_cannot_write(both: Both, tmp_path: Path) -> None:
    assert both("agree", tmp_path) == ["run ü\udcff"] * 2
    assert both("write", tmp_path) == ["FileNotFoundError", "RunFolderError"]


def test_a_network_keeps_its_parameters_and_names_when_its_norms_are_synchronised(tmp_path: Path) -> None:
    network = MedMambaSE(MODEL)
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    synchronise_batch_norms(network)
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
    assert any(isinstance(module, SynchronisedBatchNorm) for module in network.modules())
    image = torch.randn(1, 1, 16, 16)
    network.save(tmp_path)
    assert torch.equal(network.eval()(image), MedMambaSE.load(tmp_path)(image))


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32",
    reason="torchrun's meeting place needs a PyTorch built with libuv, which not every Windows wheel is",
)
def test_the_command_trains_on_two_processes_and_only_the_first_speaks(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """import sys
import pytest
from conftest import leave_out_pictures
from medmambase.commands import train
from medmambase.training import run
run.DEMO_IMAGES_PER_CLASS = 10  # instead of 400
leave_out_pictures(pytest.MonkeyPatch())
sys.exit(train.main())
""",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[2]
    places = (root, root / "kernels", root / "tools", root / "tests")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONUTF8": "1"}
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--redirects", "3")
    words = ("--demo", "--epochs", "1", "--image-size", "16", "--runs", str(tmp_path / "runs"), "--name", "two")
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "--log-dir", str(tmp_path / "said"), str(script), *words],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )
    first, second = (next((tmp_path / "said").rglob(f"{rank}/stdout.log")).read_text("utf-8") for rank in (0, 1))
    assert done.returncode == 0, (done.stderr, first, second)
    assert first.count("epoch   1") == first.count("test: accuracy") == first.count("report: ") == 1
    assert "best epoch: 1" in first and second == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two-001"]
    assert (tmp_path / "runs" / "two-001" / "report.html").is_file()
    assert "and 1 more" in (tmp_path / "runs" / "two-001" / "train.log").read_text(encoding="utf-8")
