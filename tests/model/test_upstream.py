"""Checkpoints of the published code: all four blocks load whole at any width, and a tensor that
does not fit is refused by its name."""

import re
from pathlib import Path

import published
import pytest
import torch
from conftest import relative_error
from torch import Tensor

from medmambase import MedMambaSE, ModelConfig, Preprocessing, TrainConfig, use_backend
from medmambase.model.weights import WeightsError, renamed
from medmambase.training import session

BLOCKS = ("medmambase", "medmamba", "notebook", "medmamba_v0")
TINY = ((16, 32), (1, 1))


def loaded(tensors: dict[str, Tensor], **wishes: object) -> tuple[MedMambaSE, str]:
    said: list[str] = []
    return MedMambaSE.from_upstream(tensors, say=said.append, **wishes), said[0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dims", [(24, 48, 96, 192), (40, 80, 160, 320), (8, 16, 32, 64)])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_published_checkpoint_of_any_width_loads_whole(block: str, dims: tuple[int, ...], backend: str) -> None:
    tensors, image = published.checkpoint(block, dims, (2, 1, 1, 2)), torch.randn(2, 3, 32, 40)
    network, account = loaded(tensors)
    assert account == f"{len(tensors)} keys matched, 0 skipped, 0 new"
    assert (network.config.block, network.config.depths, network.config.dims) == (block, (2, 1, 1, 2), dims)
    with use_backend(backend), torch.no_grad():
        assert (network(image) - published.logits(tensors, image)).abs().max() < 1e-5


def test_gates_of_any_width_load_and_are_saved_with_the_network(tmp_path: Path) -> None:
    widths, image = (5, 1, 24, 7), torch.randn(1, 3, 32, 32)
    tensors = published.checkpoint("medmambase", (24, 48, 96), (2, 1, 1), widths)
    network, account = loaded(tensors)
    assert network.config.se_hidden == widths == network.config.gate_widths()
    assert account.endswith("0 skipped, 0 new")
    network.save(tmp_path)
    again = MedMambaSE.load(tmp_path)
    assert again.config == network.config
    with torch.no_grad():
        assert relative_error(again(image), published.logits(tensors, image)) < 1e-5


def test_widths_that_follow_the_published_rule_need_no_list() -> None:
    network, _ = loaded(published.checkpoint("notebook", (24, 48, 96, 192), (2, 1, 1, 2)))
    assert network.config.se_hidden is None
    assert network.config.gate_widths() == (1, 1, 3, 6, 12, 12)


@pytest.mark.parametrize("block", ["medmambase", "notebook"])
def test_every_tensor_of_a_wrong_shape_is_refused_by_name(block: str) -> None:
    whole = published.checkpoint(block, *TINY)
    # Of two tensors that contradict each other either may be named.
    pairs = {"head.weight": "head.bias", "se.fc.0.weight": "se.fc.2.weight"}
    for key, t in whole.items():
        wrong = torch.cat([t, t[:1]]) if t.dim() else torch.zeros(2)
        other = next((key.removesuffix(mine) + its for mine, its in pairs.items() if key.endswith(mine)), key)
        with pytest.raises(WeightsError) as caught:
            MedMambaSE.from_upstream(whole | {key: wrong})
        found = re.search(
            r"the mapping: (\S+) has shape \(([\d, ]+)\); this network, .* wants \(([\d, ]*)\)", str(caught.value)
        )
        assert found is not None, (key, str(caught.value))
        assert found[1] in (key, other)
        assert found[2] != found[3]


def test_every_missing_tensor_is_refused_by_name() -> None:
    whole = published.checkpoint("medmambase", *TINY)
    for key in whole:
        with pytest.raises(WeightsError, match=r"no tensor '|is missing") as caught:
            MedMambaSE.from_upstream({name: t for name, t in whole.items() if name != key})
        assert key in str(caught.value) or renamed(key) in str(caught.value)


@pytest.mark.parametrize(
    "key", ["layers.1.blocks.0.extra", "layers.0.blocks.0.ln_3.weight", "norm.weight", "layers.2.downsample.norm.bias"]
)
def test_a_tensor_without_a_place_is_refused_by_name(key: str) -> None:
    tensors = published.checkpoint("medmamba", *TINY) | {key: torch.ones(3)}
    with pytest.raises(WeightsError, match=re.escape(key)):
        MedMambaSE.from_upstream(tensors, num_classes=2, block="medmambase")


def test_two_tensors_for_one_parameter_are_refused() -> None:
    tensors = published.checkpoint("medmamba", *TINY)
    tensors["embedding.norm.weight"] = tensors["patch_embed.norm.weight"]
    with pytest.raises(WeightsError, match=r"stands for embedding\.norm\.weight, as another tensor does"):
        MedMambaSE.from_upstream(tensors)


def test_only_a_part_that_was_asked_for_otherwise_starts_anew() -> None:
    gated, plain = published.checkpoint("medmambase", *TINY), published.checkpoint("medmamba", *TINY)
    network, account = loaded(gated, num_classes=9, block="medmamba")
    assert network.head.weight.shape == (9, 32)
    assert "6 skipped, 2 new" in account
    assert "skipped: layers.1.blocks.0.se.fc.0.weight (shape (2, 32), this network has no such parameter)" in account
    network, account = loaded(plain, block="medmambase")
    assert "0 skipped, 4 new" in account and "new: stages.1.blocks.0.se.excite" in account
    for wishes in ({"block": "medmambase"}, {"num_classes": published.CLASSES}, {}):  # what the file has already
        assert loaded(gated, **wishes)[1].endswith(" 0 skipped, 0 new")
        with pytest.raises(WeightsError, match=r"layers\.1\.blocks\.0\.se\.fc\.2\.weight has shape"):
            loaded(gated | {"layers.1.blocks.0.se.fc.2.weight": torch.ones(32, 3)}, **wishes)
    without_head = {key: t for key, t in gated.items() if not key.startswith("head.")}
    with pytest.raises(WeightsError, match=r"head\.bias.* is missing; .* give num_classes"):
        loaded(without_head)
    assert ", 0 skipped, 2 new" in loaded(without_head, num_classes=4)[1]


@pytest.mark.parametrize(
    ("classes", "kept"), [(("cyst", "solid"), True), (("solid", "cyst"), False), (("benign", "malignant"), False)]
)
def test_a_classifier_is_kept_for_the_same_classes_in_the_same_order_only(
    classes: tuple[str, ...], kept: bool, tmp_path: Path
) -> None:
    config = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1, num_classes=2, state=2)
    before = MedMambaSE(config, classes=("cyst", "solid"), preprocessing=Preprocessing(size=16, channels=1))
    before.save(tmp_path / "network")
    found, model = session.start(tmp_path / "network", TrainConfig())
    said: list[str] = []
    network = session.begin(model, found, classes, before.preprocessing, said.append)
    assert network.classes == classes and torch.equal(network.head.weight, before.head.weight) == kept
    assert torch.equal(network.embedding.proj.weight, before.embedding.proj.weight)
    told = f"the classifier starts anew: the weights tell cyst, solid apart, and these images are {', '.join(classes)}"
    assert (told in said) == (not kept)


def test_a_training_hears_of_a_bad_checkpoint_before_any_image_is_read(tmp_path: Path) -> None:
    tensors, path = published.checkpoint("medmamba", *TINY), tmp_path / "start.pth"
    torch.save(tensors, path)
    found, model = session.start(path, TrainConfig())
    assert model.block == "medmambase"
    network = session.begin(model, found, ("a", "b"), MedMambaSE(ModelConfig()).preprocessing, lambda _: None)
    assert torch.equal(network.stages[1].merging.norm.weight, tensors["layers.0.downsample.norm.weight"])
    torch.save(tensors | {"layers.1.blocks.0.self_attention.Ds": torch.ones(4)}, path)
    with pytest.raises(WeightsError, match=r"start\.pth: layers\.1\.blocks\.0\.self_attention\.Ds has shape \(4,\)"):
        session.start(path, TrainConfig())
