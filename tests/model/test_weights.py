"""Files of weights: what is saved comes back, foreign checkpoints are known by their shapes, bad
files are named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from upstream_checkpoint import as_upstream

from medmambase import MedMambaSE, ModelConfig, Preprocessing
from medmambase.model import starting, weights
from medmambase.model.weights import WeightsError

SMALL = ModelConfig(
    num_classes=3, depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), se_hidden_min=1, se_scale=1.0, odd="crop"
)
CLASSES = ("Ärmel", "b, with comma", "肺")


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 64, 64)


def network_of(block: str, **changes: object) -> MedMambaSE:
    network = MedMambaSE(replace(SMALL, block=block, **changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_a_saved_network_comes_back_with_its_classes_and_preprocessing(tmp_path: Path, image: Tensor) -> None:
    network = MedMambaSE(SMALL, classes=CLASSES, preprocessing=Preprocessing(size=64, resize="stretch")).eval()
    folder = tmp_path / "netz mit Leerzeichen ü"
    network.save(folder)
    back = MedMambaSE.load(folder)
    assert (back.config, back.classes, back.preprocessing, back.training) == (
        SMALL,
        CLASSES,
        network.preprocessing,
        False,
    )
    assert torch.equal(back(image), network(image))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    maps = MedMambaSE.load(folder, features_only=True)(image)
    assert torch.equal(maps[-1].permute(0, 2, 3, 1), network.forward_features(image))


@pytest.mark.parametrize("block", ["medmamba", "medmambase", "notebook", "medmamba_v0"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_an_upstream_checkpoint_is_known_by_its_shapes(
    block: str, wrapper: str | None, tmp_path: Path, image: Tensor
) -> None:
    network = network_of(block, state=4)
    checkpoint = {f"module.{key}": t for key, t in as_upstream(network).items()}
    path = tmp_path / "MedMamba_base.pth"  # the name lies about the size
    torch.save({wrapper: checkpoint, "epoch": 3} if wrapper else checkpoint, path)
    said: list[str] = []
    back = MedMambaSE.from_upstream(path, say=said.append)
    assert back.config == replace(network.config, se_scale=1.0 if "se" in block or block == "notebook" else None)
    assert torch.equal(back(image), network(image))
    assert said == [f"{len(network.state_dict())} keys matched, 0 skipped, 0 new"]


def test_the_renaming_covers_every_published_key(shared: Path) -> None:
    blocks = {"medmamba": "medmamba", "se_nb": "notebook", "se_mm": "medmambase"}
    for name, block in blocks.items():
        lines = (shared / "parity" / f"keys_{name}_tiny.txt").read_text(encoding="utf-8").splitlines()
        theirs = {line.split("\t")[0] for line in lines}
        with torch.device("meta"):
            own = MedMambaSE(ModelConfig(block=block)).state_dict()
        assert {weights.renamed(key) for key in theirs} == own.keys()


def test_medmamba_weights_in_a_medmambase_give_the_same_logits_and_an_account(image: Tensor) -> None:
    network = network_of("medmamba")
    said: list[str] = []
    gated = MedMambaSE.from_upstream(as_upstream(network), block="medmambase", say=said.append)
    assert torch.equal(gated(image), network(image))
    assert "0 skipped, 10 new" in said[0]
    assert "new: stages.0.blocks.0.se.excite" in said[0]


def test_weights_do_not_become_a_block_with_other_convolutions() -> None:
    with pytest.raises(WeightsError, match="weights of 'notebook'"):
        MedMambaSE.from_upstream(as_upstream(network_of("notebook")), block="medmambase")


def test_rgb_weights_summed_for_grey_input_give_the_same_logits() -> None:
    network = network_of("medmamba")
    grey = torch.randn(2, 1, 64, 64)
    single = MedMambaSE.from_upstream(as_upstream(network), in_chans=1, say=lambda _: None)
    assert torch.allclose(single(grey), network(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_another_number_of_classes_starts_a_new_head_and_says_so() -> None:
    said: list[str] = []
    network = MedMambaSE.from_upstream(as_upstream(network_of("medmamba")), num_classes=7, say=said.append)
    assert network.head.weight.shape == (7, 128)
    assert "2 skipped, 2 new" in said[0]
    assert "skipped: head.weight (shape (3, 128), this network has (7, 128))" in said[0]


def test_a_checkpoint_that_misses_a_tensor_is_refused_by_its_name() -> None:
    tensors = as_upstream(network_of("medmamba"))
    del tensors["layers.0.blocks.0.ln_1.bias"]
    with pytest.raises(WeightsError, match=r"stages\.0\.blocks\.0\.ssm_norm\.bias, of shape .* is missing"):
        MedMambaSE.from_upstream(tensors)


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"head.weight": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    for name in ("evil.pth", "list.pth", "resnet.pth", "text.pth", "absent.pth", "absent.safetensors"):
        with pytest.raises(WeightsError, match=re.escape(name)) as caught:
            MedMambaSE.from_upstream(tmp_path / name)
        assert "weights_only" not in str(caught.value) and "\n" not in str(
            caught.value
        )  # torch would advise to unpickle with code
    with pytest.raises(WeightsError, match="is a folder"):
        MedMambaSE.from_upstream(tmp_path)


def test_arrays_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    for values in (np.array(["2026-01-01"], "datetime64[D]"), np.array([b"x"]), np.zeros(2, ">f4")):
        np.savez(tmp_path / "w.npz", **{"patch_embed.proj.weight": values})
        with pytest.raises(WeightsError, match=r"w\.npz: patch_embed\.proj\.weight is an array of"):
            starting.read(tmp_path / "w.npz")
    with pytest.raises(WeightsError, match="no tensor"):
        weights.read_upstream({1: torch.zeros(2)})


def test_nothing_is_unpickled_with_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"head.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        MedMambaSE.from_upstream(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_a_folder_that_is_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere: there is no such folder; give a network's folder"):
        MedMambaSE.load(tmp_path / "nowhere")
    folder = tmp_path / "net"
    MedMambaSE(SMALL).save(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read"):
        MedMambaSE.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"format": 99}, "format is 99"),
        ({"model": description["model"] | {"depht": 1}}, "no field 'depht'"),
    ):
        (folder / "config.json").write_text(json.dumps(description | change), encoding="utf-8")
        with pytest.raises(WeightsError, match=message):
            MedMambaSE.load(folder)
    for change, message in (
        ({"classes": ["a", "b"]}, r"config\.json: contradicts itself: 2 classes are named, and num_classes is 3"),
        (
            {"preprocessing": description["preprocessing"] | {"channels": 1}},
            r"config\.json: contradicts itself: channels is 1, and in_chans is 3",
        ),
        (
            {"model": description["model"] | {"depths": [1.5, 1, 2, 1]}},
            r"config\.json: cannot be read \(depths\[0\] is 1\.5; it must be a whole number",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(description | change), encoding="utf-8")
        with pytest.raises(WeightsError, match=message):
            MedMambaSE.load(folder)
    wider = description | {"model": description["model"] | {"state": 4}}
    (folder / "config.json").write_text(json.dumps(wider), encoding="utf-8")
    with pytest.raises(WeightsError, match="wants"):
        MedMambaSE.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"depths": [1, 1, 10**9, 1]},
        {"dims": [2**20, 2**21, 2**22, 2**23]},
        {"state": 10**9},
        {"se_hidden_min": 10**12},
        {"se_hidden": [10**12] * 5},
    ],
)
def test_a_far_larger_network_than_its_weights_is_refused_before_it_is_built(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MedMambaSE(SMALL, classes=CLASSES).save(tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(description | {"model": description["model"] | change}), encoding="utf-8")
    monkeypatch.setattr(MedMambaSE, "__init__", None)
    with pytest.raises(WeightsError, match=r"config\.json: describes a network of .* restore both"):
        MedMambaSE.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [1, 2, 3]}, r"config\.json: cannot be read \(classes\[0\] is 1; it must be text\)"),
        ({"classes": "abc"}, r"config\.json: cannot be read \(classes is 'abc'; it must be a list\)"),
        ({"classes": ["a", "b", "a"]}, r"config\.json: two classes have the same name"),
        ({"preprocessing": {"size": 10**9}}, r"size is 1000000000; it must be at most 10000"),
    ],
)
def test_classes_and_sizes_that_no_network_has_are_named(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    MedMambaSE(SMALL, classes=CLASSES).save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        MedMambaSE.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_of_another_kind_of_number_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    network = MedMambaSE(SMALL, classes=CLASSES)
    network.save(tmp_path)
    tensors = network.state_dict()
    tensors["head.bias"] = tensors["head.bias"].to(dtype)
    (tmp_path / "model.safetensors").write_bytes(save({key: t.contiguous() for key, t in tensors.items()}))
    with pytest.raises(WeightsError, match=rf"head\.bias is {dtype}; it must be torch\.float32"):
        MedMambaSE.load(tmp_path)
    tensors["head.bias"] = tensors["head.bias"].to(torch.float32).to(torch.bfloat16)  # less exact, and meant
    (tmp_path / "model.safetensors").write_bytes(save({key: t.contiguous() for key, t in tensors.items()}))
    assert MedMambaSE.load(tmp_path).head.bias.dtype == torch.float32


def test_a_training_can_start_from_a_network_of_ours(tmp_path: Path) -> None:
    network = network_of("medmambase", se_scale=2.0, odd="pad")
    network.save(tmp_path / "best")
    grey, said = torch.randn(2, 1, 64, 64), []
    for path in (tmp_path / "best", tmp_path / "best" / "model.safetensors"):
        start = starting.read(path)
        tensors, config = start.tensors, start.config
        again = MedMambaSE.start_from(tensors, config, in_chans=1, say=said.append)
        assert again.config == replace(network.config, in_chans=1)
        assert torch.allclose(again(grey), network(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    other = MedMambaSE.start_from(tensors, config, num_classes=7, say=said.append)
    assert (
        other.head.weight.shape == (7, 128) and "skipped: head.weight" in said[-1] and ", 0 skipped, 0 new" in said[0]
    )
    assert torch.equal(other.stages[3].blocks[0].se.squeeze, network.stages[3].blocks[0].se.squeeze)
    with pytest.raises(WeightsError, match="is the folder of a run; give one of its networks"):
        starting.read(tmp_path)


def test_grey_weights_shared_out_for_rgb_input_give_the_same_logits() -> None:
    network, grey = network_of("medmamba", in_chans=1), torch.randn(2, 1, 64, 64)
    colour = MedMambaSE.start_from(network.state_dict(), network.config, in_chans=3, say=lambda _: None)
    assert torch.allclose(colour(grey.expand(-1, 3, -1, -1)), network(grey), atol=1e-5)
    key = "embedding.proj.weight"
    eighth = network.state_dict() | {key: network.state_dict()[key].to(torch.float8_e4m3fn)}
    start = MedMambaSE.start_from(eighth, network.config, in_chans=3, say=lambda _: None)  # PyTorch adds none of 8 bits
    assert torch.allclose(start.state_dict()[key].sum(1, keepdim=True), eighth[key].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    network = MedMambaSE(SMALL, classes=CLASSES)
    network.save(tmp_path / "net")
    with torch.no_grad():
        network.head.bias[1] = value
    network.save(tmp_path / "bad")
    with pytest.raises(WeightsError, match=r"model\.safetensors: head\.bias holds 1 values that are no finite numbers"):
        MedMambaSE.load(tmp_path / "bad")
    upstream = as_upstream(network_of("medmamba"))
    key = next(key for key in upstream if key.endswith("A_logs"))
    upstream[key] = torch.full_like(upstream[key], value)
    with pytest.raises(WeightsError, match=f"{key} holds .* no finite numbers"):
        MedMambaSE.from_upstream(upstream)
