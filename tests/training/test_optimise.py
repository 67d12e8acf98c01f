"""What moves the weights, each part by itself: rates, decay, the moving average, freezing, balance,
accumulation, clipping."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kill_test import image_set
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import RECIPES, ConfigError, Optimizer, Preprocessing, TrainConfig
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.decoded.on_demand import OnDemand
from medmambase.model.task import SINGLE_LABEL
from medmambase.training import loop, optimise
from medmambase.training.batches import steps_of
from medmambase.training.dry_run import rehearse
from medmambase.training.optimise import (
    Average,
    freeze,
    learning_rate,
    make_optimizer,
    set_rate,
    set_training,
    warm_up,
)

PLAIN = TrainConfig(
    optimizer="adam", schedule="constant", lr=1e-3, weight_decay=0, warmup=0, patience=0, clip_norm=0,
    label_smoothing=0, ema=0, select_after=0, augmentation="none", epochs=2, batch_size=8, image_size=16,
)  # fmt: skip  # what is switched off


def network(**changes: Any) -> MedMambaSE:
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3, in_chans=1, depths=(1, 1), dims=(8, 16), drop_path=0.0)
    return MedMambaSE(replace(config, **changes), preprocessing=Preprocessing(size=16, channels=1))


def follow(
    config: TrainConfig, run: Path, start: MedMambaSE | None = None, training: ImageSet | None = None, say: Any = print
) -> MedMambaSE:
    start, training = start or network(), training or image_set(24, "train")
    loop.train(
        start, training, image_set(11, "val"), config, run, torch.float32, lambda items, total, text: items,
        lambda epoch: None, say=say
    )  # fmt: skip  # as it is declared
    return start


def same(a: MedMambaSE, b: MedMambaSE) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_learning_rate_warms_up_and_follows_a_half_cosine() -> None:
    config = replace(TrainConfig(), lr=1.0, warmup=2.0, epochs=12)
    rates = [learning_rate(config, moment) for moment in (0.0, 1.0, 2.0, 7.0, 12.0)]
    assert rates == [
        pytest.approx(0.01),
        pytest.approx(0.5),
        pytest.approx(1.0),
        pytest.approx(0.505),
        pytest.approx(0.01),
    ]
    assert learning_rate(RECIPES["readme"], 19.5) == 1e-3
    assert learning_rate(replace(config, epochs=5), 1.0) == 1.0  # at most a fifth of the training is warm-up
    assert (warm_up(config), warm_up(replace(config, epochs=4))) == (2.0, 0.8)


def test_by_steps_the_rate_falls_tenfold_after_a_half_and_after_three_quarters() -> None:
    config = replace(TrainConfig(), lr=1.0, warmup=0.0, epochs=8, schedule="steps")
    rates = [learning_rate(config, moment) for moment in (0.0, 3.99, 4.0, 5.99, 6.0, 7.99)]
    assert rates == [pytest.approx(rate) for rate in (1.0, 1.0, 0.1, 0.1, 0.01, 0.01)]


def test_states_norms_and_biases_do_not_decay() -> None:
    net = MedMambaSE(ModelConfig(dims=(16, 32), depths=(1, 1)))
    decayed, free = (group["params"] for group in make_optimizer(net, TrainConfig()).param_groups)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in free} == {"bias", "weight", "A_log", "D", "dt_bias"}
    assert all(p.dim() < 2 for p in free if names[id(p)].endswith((".weight", ".bias")))
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed} == {"weight", "x_proj", "dt_weight", "squeeze", "excite"}
    assert len(decayed) + len(free) == len(names)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_the_backbone_learns_at_a_part_of_the_rate(name: Optimizer) -> None:
    net = network()
    config = replace(PLAIN, optimizer=name, backbone_lr_factor=0.1, weight_decay=0.5)
    optimizer, plain = make_optimizer(net, config), make_optimizer(net, replace(config, backbone_lr_factor=1.0))
    set_rate(optimizer, 0.02)

    def of_each(made: torch.optim.Optimizer, what: str) -> dict[str, float]:
        values = {id(p): group[what] for group in made.param_groups for p in group["params"]}
        return {key: values[id(p)] for key, p in net.named_parameters()}

    rates = of_each(optimizer, "lr")
    assert rates == {key: pytest.approx(0.02 if key.startswith("head.") else 0.002) for key in rates}
    assert of_each(optimizer, "weight_decay") == of_each(plain, "weight_decay")
    assert len(plain.param_groups) == (2 if name == "adamw" else 1)
    freeze(net, replace(config, freeze="backbone"))
    assert not any("factor" in group for group in make_optimizer(net, config).param_groups)


def test_the_average_is_the_weighted_sum_of_all_weights_there_were_and_is_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, seen = network(), []
    expected = start.head.weight.detach().clone()
    statistics = start.stages[0].blocks[0].conv_branch[2].running_mean.clone()
    original = Average.follow

    def follow_and_see(self: Average, steps: int) -> None:
        seen.append(
            (steps, start.head.weight.detach().clone(), start.stages[0].blocks[0].conv_branch[2].running_mean.clone())
        )
        original(self, steps)

    monkeypatch.setattr(Average, "follow", follow_and_see)
    follow(replace(PLAIN, ema=0.8), tmp_path, start)
    assert [steps for steps, _, _ in seen] == list(range(6))
    for steps, weight, mean in seen:
        decay = min(0.8, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * weight
        statistics = decay * statistics + (1 - decay) * mean
    kept = load_file(tmp_path / "last" / "model.safetensors")
    assert torch.allclose(kept["head.weight"], expected, atol=1e-6)
    assert not torch.allclose(kept["head.weight"], start.head.weight, atol=1e-5)
    assert not torch.equal(kept["stages.0.blocks.0.conv_branch.2.running_mean"], seen[-1][2])
    assert torch.allclose(kept["stages.0.blocks.0.conv_branch.2.running_mean"], statistics, atol=1e-6)


def test_validation_judges_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, predict = [], loop.predict

    def see(net: MedMambaSE, *rest: Any) -> Any:
        judged.append(net)
        return predict(net, *rest)

    monkeypatch.setattr(loop, "predict", see)
    start = follow(replace(PLAIN, ema=0.8, epochs=1), tmp_path / "a")
    assert judged[0] is not start
    start = follow(replace(PLAIN, epochs=1), tmp_path / "b")
    assert judged[1] is start


@pytest.mark.parametrize(("part", "learns"), [("embedding", "stages"), ("backbone", "head")])
def test_what_is_frozen_keeps_weights_and_statistics(part: str, learns: str, tmp_path: Path) -> None:
    before = network(drop_path=0.4, drop_rate=0.3)
    after = follow(replace(PLAIN, freeze=part), tmp_path, network(drop_path=0.4, drop_rate=0.3))
    frozen = {"embedding": ("embedding.",), "backbone": ("embedding.", "stages.")}[part]
    changed = {name for name, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[name])}
    assert not [name for name in changed if name.startswith(frozen)]
    assert [name for name in changed if name.startswith(learns)]
    parts = freeze(after, replace(PLAIN, freeze=part))
    set_training(after, parts)
    assert after.training and not any(module.training for frozen_part in parts for module in frozen_part.modules())


def test_class_weights_give_each_class_the_same_part_of_the_loss() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = SINGLE_LABEL.class_weights(labels, 5, balanced=True)
    parts = [weights[labels[labels == label]].sum().item() for label in (0, 1, 3)]
    assert parts == [pytest.approx(10 / 3)] * 3 and weights[labels].mean().item() == pytest.approx(1.0)
    assert weights[2] == weights[4] == 0
    assert torch.equal(SINGLE_LABEL.class_weights(labels, 5, balanced=False), torch.ones(5))


def test_the_loss_of_a_step_is_the_weighted_mean_that_torch_computes(tmp_path: Path) -> None:
    config = replace(PLAIN, balance="weights", epochs=1, batch_size=24)
    data, by_hand = image_set(24, "train"), network().train()
    weights = SINGLE_LABEL.class_weights(data.labels, 3, balanced=True)
    trained = follow(config, tmp_path)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3, fused=True)
    nn.functional.cross_entropy(by_hand((data.images.float() / 255 - 0.5) / 0.5), data.labels, weights).backward()
    optimizer.step()
    assert torch.allclose(trained.head.weight, by_hand.head.weight, atol=2e-5)


def test_the_sampler_draws_every_class_alike_and_every_image_of_a_rare_one_as_often_as_any_other() -> None:
    labels = torch.tensor([0] * 40 + [1] * 7 + [2] * 3)
    config = replace(PLAIN, balance="sampler")
    rows = torch.cat([rows for step in steps_of(labels, config, 1) for rows in step])
    drawn = Counter(labels[rows % 50].tolist())
    assert sorted(drawn.values()) == [16, 17, 17] and len(rows) == 50
    often = Counter((rows % 50).tolist())
    assert {often[row] for row in range(47, 50)} <= {5, 6} and {often[row] for row in range(40)} <= {0, 1}
    assert len(set(rows.tolist())) == 50  # every copy has a number of its own, so it is varied in its own way
    assert [r.tolist() for step in steps_of(labels, config, 1) for r in step] == [
        r.tolist() for step in steps_of(labels, config, 1) for r in step
    ]
    assert [r.tolist() for step in steps_of(labels, config, 2) for r in step] != [
        r.tolist() for step in steps_of(labels, config, 1) for r in step
    ]


def test_batches_that_are_accumulated_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    """Networks without BatchNorm's batches: it is frozen, which leaves the head."""
    config = replace(PLAIN, freeze="backbone", balance="weights", label_smoothing=0.1)
    large = follow(replace(config, batch_size=24), tmp_path / "large")
    small = follow(replace(config, batch_size=8, accumulate=3), tmp_path / "small")
    uneven = follow(
        replace(config, batch_size=8, accumulate=2), tmp_path / "uneven"
    )  # the last step of an epoch has one batch
    assert torch.allclose(large.head.weight, small.head.weight, atol=1e-6)
    assert not torch.allclose(large.head.weight, uneven.head.weight, atol=1e-5)
    assert not torch.allclose(large.head.weight, network().head.weight, atol=1e-5)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_the_dry_run_counts_what_each_optimiser_keeps(name: Optimizer) -> None:
    net = network()
    optimizer = make_optimizer(net, replace(PLAIN, optimizer=name))
    net(torch.randn(4, 1, 16, 16)).square().mean().backward()
    optimizer.step()
    kept = {sum(t.shape == p.shape for t in optimizer.state[p].values()) for p in net.parameters()}
    assert kept == {optimise.MOMENTS[name]}


def test_long_gradients_are_cut_and_short_ones_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: None = None) -> None:
            super().step()  # which leaves the gradients as it took them
            lengths.append(
                torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm().item()
            )

    monkeypatch.setattr(optimise.torch.optim, "Adam", Watched)
    for clip in (0.0, 0.01):
        follow(replace(PLAIN, clip_norm=clip, epochs=1), tmp_path / str(clip))
    free, cut = lengths[:3], lengths[3:]
    assert min(free) > 0.02 and max(cut) == pytest.approx(0.01, rel=1e-3)


def test_recomputing_saves_the_same_weights(tmp_path: Path) -> None:
    stochastic = {"drop_path": 0.3, "drop_rate": 0.2}
    kept = follow(PLAIN, tmp_path / "a", network(**stochastic))
    recomputed = follow(replace(PLAIN, recompute=True), tmp_path / "b", network(**stochastic))
    assert same(kept, recomputed) and recomputed.recompute


def test_images_that_are_decoded_when_they_are_used_train_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked, announced, expect = image_set(24, "train"), [], [], OnDemand.expect

    def see(self: OnDemand, order: torch.Tensor) -> None:
        announced.append(len(order))
        expect(self, order)

    def pixels(self: OnDemand, row: int) -> torch.Tensor:
        asked.append(int(self.samples[row].path.stem))
        return data.images[int(self.samples[row].path.stem)]

    monkeypatch.setattr(OnDemand, "_decode", pixels)
    monkeypatch.setattr(OnDemand, "expect", see)
    lazy = ImageSet(
        OnDemand(data.samples, data.facts, Preprocessing(size=16, channels=1), 1, True),
        data.labels,
        data.samples,
        data.facts,
    )
    assert same(
        follow(replace(PLAIN, balance="sampler"), tmp_path / "a"),
        follow(replace(PLAIN, balance="sampler"), tmp_path / "b", training=lazy),
    )
    assert announced == [24, 24]  # so that threads decode them while the network is busy
    assert len(asked) == 2 * 24 + 2 * 8  # each once an epoch, and two batches for the dry run: none was decoded in vain


def test_a_dry_run_leaves_no_trace_and_predicts_memory_and_time(tmp_path: Path) -> None:
    net = network(drop_path=0.3, drop_rate=0.2).train()
    before, said = {name: t.clone() for name, t in net.state_dict().items()}, []
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    def learn(rows: torch.Tensor) -> float:
        loss = net(torch.randn(len(rows), 1, 16, 16)).square().mean()
        loss.backward()
        return loss.item()

    found = rehearse(net, learn, [torch.arange(4), torch.arange(4)], moments=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items()) and all(
        p.grad is None for p in net.parameters()
    )
    weights = sum(p.numel() * 4 for p in net.parameters())
    assert found.bytes > 3 * weights and found.seconds > 0 and found.of_bytes is None
    lean = rehearse(net, learn, [torch.arange(4), torch.arange(4)], moments=0)
    assert found.bytes - lean.bytes == 2 * weights
    follow(replace(PLAIN, epochs=1), tmp_path, say=said.append)
    assert (
        said[0].startswith("dry run: first loss 1.")
        and "(guessing among 3 classes: 1.099); a step needs about 0.0" in said[0]
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda net: net.head.weight.data.fill_(float("nan")), "first bad tensor: the weight head.weight"),
        (
            lambda net: net.stages[1].blocks[0].ssm_norm.weight.data.fill_(3e38),
            "first bad tensor: the output of stages.1.blocks.0.ssm_norm",
        ),
        (
            lambda net: net.head.weight.register_hook(lambda gradient: gradient * float("inf")),
            "first bad tensor: the gradient of head.weight",
        ),
    ],
)
def test_where_numbers_end_is_named(spoil: Callable[[MedMambaSE], object], said: str, tmp_path: Path) -> None:
    net = network()
    spoil(net)
    with pytest.raises(
        loop.TrainingError,
        match=f"at epoch 1, step 1 of 3 .*{said}.*; no epoch was finished, so no network was saved; "
        "try a smaller --lr$",
    ):
        follow(PLAIN, tmp_path, net)


def test_the_board_shows_each_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    follow(replace(PLAIN, tensorboard=True), tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2] and "val_auc" in events.Tags()["scalars"]


def test_without_tensorboard_the_setting_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed; run pip install medmambase\[tensorboard\]"):
        follow(replace(PLAIN, tensorboard=True), tmp_path)
