"""Graphed training steps, without a GPU: which steps are graphed and why others are not, what is
left as it was, and that no bit of a training changes. A function stands for the CUDA graph."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kill_test import image_set
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import Preprocessing, TrainConfig
from medmambase.distributed import ALONE, Ranks
from medmambase.model.task import SINGLE_LABEL
from medmambase.training import loop
from medmambase.training.batches import steps_of
from medmambase.training.checkpoint import Learning
from medmambase.training.graph import Graphs, capture_steps
from medmambase.training.optimise import make_optimizer
from medmambase.training.step import Outcome, Step

CONFIG = TrainConfig(lr=1e-2, epochs=2, batch_size=5, image_size=16, warmup=0.5, ema=0.9, patience=0, balance="weights")
IMAGES = 24  # in batches of 5, 5, 5, 5 and 4


class Standing:
    """Stands for CUDA graphs: three runs, then a replay that computes anew what was captured."""

    def __init__(self, spoil: Callable[[Tensor], object] = lambda found: None) -> None:
        self.replays, self.captured, self.spoil = 0, 0, spoil

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        for _ in range(3):
            compute()
        self.captured += 1
        found = torch.full((3,), torch.nan)

        def replay() -> None:
            self.replays += 1
            found.copy_(compute())
            self.spoil(found)

        return replay, found


def network() -> MedMambaSE:
    torch.manual_seed(0)
    model = ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16), drop_path=0.3, drop_rate=0.2)
    return MedMambaSE(model, preprocessing=Preprocessing(size=16, channels=1))


def step_of(config: TrainConfig = CONFIG, ranks: Ranks = ALONE) -> Step:
    net, data = network().train(), image_set(IMAGES, "train")
    learning = Learning(net, make_optimizer(net, config), None)
    return Step(
        learning,
        net,
        data,
        config,
        torch.float32,
        SINGLE_LABEL.class_weights(data.labels, 3, config.balance == "weights"),
        ranks,
    )


def batches(step: Step) -> list[Tensor]:
    return [rows for taken in steps_of(step.training.labels, step.config, 1) for rows in taken]


def follow(
    run: Path,
    config: TrainConfig = CONFIG,
    resume: bool = False,
    until: int | None = None,
    say: Any = lambda line: None,
) -> dict[str, Tensor]:
    """What a training leaves in its folder. ``until``: Ctrl-C in that step."""
    run.mkdir(exist_ok=True)

    def progress(items: Any, total: int, text: str) -> Any:
        for item in items:
            yield item
            stopped.append(1)

    stopped: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        if until is not None:
            patch.setattr(loop, "first_interrupt_waits", lambda: _Waits(lambda: len(stopped) + 1 >= until))
        try:
            loop.train(
                network(), image_set(IMAGES, "train"), image_set(11, "val"), config, run, torch.float32, progress,
                lambda epoch: None, resume=resume, say=say,
            )  # fmt: skip  # as it is declared
        except KeyboardInterrupt:
            assert until is not None
    return load_file(run / "last" / "state.safetensors")


class _Waits:
    def __init__(self, came: Callable[[], bool]) -> None:
        self.came = came

    def __enter__(self) -> Callable[[], bool]:
        return self.came

    def __exit__(self, *_: object) -> None:
        pass


def graphed(monkeypatch: pytest.MonkeyPatch, standing: Standing) -> None:
    monkeypatch.setattr(loop, "capture_steps", partial(capture_steps, graphs=lambda: standing))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def test_a_training_has_the_same_bits_with_and_without_graphs_and_resumed_with_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    plain = follow(tmp_path / "plain")
    standing = Standing()
    graphed(monkeypatch, standing)
    assert same(follow(tmp_path / "graphed", say=said.append), plain)
    # Both sizes are captured; the dry run replays each once, and each epoch has five steps.
    assert (standing.captured, standing.replays) == (2, 2 + 2 * 5)
    assert "CUDA graphs: on, for batches of 5 and 4 images" in said
    for name, first, then in (("a", "auto", "off"), ("b", "off", "auto"), ("c", "auto", "auto")):
        follow(tmp_path / name, replace(CONFIG, graphs=first), until=3)
        assert same(follow(tmp_path / name, replace(CONFIG, graphs=then), resume=True), plain)


def test_the_dry_run_of_graphs_leaves_no_trace() -> None:
    step = step_of()
    before = {name: t.clone() for name, t in step.learning.tensors().items()}
    expected = torch.random.get_rng_state()
    assert capture_steps(step, batches(step), Standing).of_size.keys() == {5, 4}
    after = step.learning.tensors()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    moments = after.keys() - before.keys()
    assert moments and not any(after[name].any() for name in moments)  # as Adam begins
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert all(p.grad is None for p in step.network.parameters())


def test_moments_that_were_there_are_put_back() -> None:
    step = step_of()
    step.take([torch.arange(5)], 1, 5.0, lambda: False)
    before = {name: t.clone() for name, t in step.learning.tensors().items()}
    places = {name: t.data_ptr() for name, t in step.learning.tensors().items()}
    assert capture_steps(step, batches(step), Standing).of_size
    after = step.learning.tensors()
    assert same(after, before) and {name: t.data_ptr() for name, t in after.items()} == places
    assert before["optimizer.head.weight.step"] == 1


@pytest.mark.parametrize(
    ("config", "ranks", "why", "told"),
    [
        ({"graphs": "off"}, ALONE, "so it was set", False),
        ({"accumulate": 2}, ALONE, "--accumulate adds the gradients of several batches", True),
        ({"recompute": True}, ALONE, "--recompute reads the state of the random numbers", True),
        ({}, Ranks(0, 2), "several processes exchange gradients within a step", True),
    ],
)
def test_steps_that_are_not_graphed_have_a_reason(config: dict[str, Any], ranks: Ranks, why: str, told: bool) -> None:
    step = step_of(replace(CONFIG, **config), ranks)
    found = capture_steps(step, batches(step), Standing)
    assert not found.of_size and (found.why, found.given_up) == (why, told)
    assert found.told() == [f"CUDA graphs: off: {why}"] * told


def test_on_a_cpu_there_is_nothing_to_say(tmp_path: Path) -> None:
    said: list[str] = []
    follow(tmp_path / "run", replace(CONFIG, epochs=1), say=said.append)
    assert len(said) == 1 and said[0].startswith("dry run: ")
    assert capture_steps(step_of(), [torch.arange(5)]).why == "they need an NVIDIA GPU"


def failing(*_: object) -> Any:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")


class Baked(Standing):
    """A graph that keeps the learning rate it was captured with."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.optimizer = step.learning.optimizer

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        rates = [group["lr"] for group in self.optimizer.param_groups]

        def with_these() -> Tensor:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            return compute()

        return super().capture(with_these)


def spoil_norm(found: Tensor) -> None:
    found[2] += found[2] * 2e-7


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda step: Baked(step), "the replay of a step differs from the step in network."),
        (lambda step: Standing(spoil_norm), "the replay of a step differs from the step in its loss, hits or norm"),
        (failing, "a step cannot be captured (CUDA error: operation not permitted when stream is capturing)"),
    ],
)
def test_a_replay_that_is_not_exact_turns_graphs_off_and_changes_nothing(make: Callable[[Step], Any], why: str) -> None:
    step = step_of()
    before = {name: t.clone() for name, t in step.learning.tensors().items()}
    found = capture_steps(step, batches(step), partial(make, step))
    assert not found.of_size and found.why.startswith(why) and found.told()
    assert all(torch.equal(t, before[name]) for name, t in step.learning.tensors().items() if name in before)
    taken = found.take([torch.arange(5)], 1, 5.0, lambda: True)
    assert taken == step_of().take([torch.arange(5)], 1, 5.0, lambda: True) and taken.stops == 1


def test_a_third_size_of_batch_is_taken_without_a_graph() -> None:
    step, standing = step_of(), Standing()
    found = capture_steps(step, [torch.arange(size) for size in (4, 3, 5, 5)], lambda: standing)
    assert found.of_size.keys() == {5, 4}
    replays = standing.replays
    found.take([torch.arange(3)], 1, 3.0, lambda: False)
    found.take([torch.arange(2), torch.arange(5)], 1, 7.0, lambda: False)  # two batches in a step
    assert standing.replays == replays
    found.take([torch.arange(4)], 1, 4.0, lambda: False)
    assert standing.replays == replays + 1


def test_a_step_that_goes_wrong_leaves_the_weights_and_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed(monkeypatch, Standing())
    net = network()
    before: dict[str, Tensor] = {}
    take = Graphs.take

    def spoiled(self: Graphs, *arguments: Any) -> Outcome:
        if not before:
            net.head.weight.register_hook(lambda gradient: gradient * float("inf"))
            before.update({name: p.detach().clone() for name, p in net.named_parameters()})
        return take(self, *arguments)

    monkeypatch.setattr(Graphs, "take", spoiled)
    with pytest.raises(loop.TrainingError, match=r"first bad tensor: the gradient of head\.weight"):
        loop.train(
            net, image_set(IMAGES, "train"), image_set(11, "val"), CONFIG, tmp_path, torch.float32,
            lambda items, total, text: items, lambda epoch: None,
        )  # fmt: skip  # as it is declared
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_graphs_change_no_bit(tmp_path: Path) -> None:
    """The same on a GPU, with graphs of CUDA."""
    left = []
    for graphs in ("auto", "off"):
        said: list[str] = []
        net, run = network().cuda(), tmp_path / graphs
        run.mkdir()
        loop.train(
            net, image_set(IMAGES, "train"), image_set(11, "val"), replace(CONFIG, graphs=graphs), run, torch.float32,
            lambda items, total, text: items, lambda epoch: None, say=said.append,
        )  # fmt: skip  # as it is declared
        assert (graphs == "off") or "CUDA graphs: on, for batches of 5 and 4 images" in said
        left.append(load_file(run / "last" / "state.safetensors"))
    assert same(*left)
