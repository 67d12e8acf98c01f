"""Weights to start from: what their file says of them, whichever kind of file it is, and who can
use them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from medmambase import MedMambaSE, ModelConfig, Preprocessing, run_folder
from medmambase.model import starting
from medmambase.model.starting import Learned, Origin
from medmambase.model.weights import WeightsError

TINY = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=3, state=2)
DRAWN = Learned("drawn", 64, 2, 32, (32, 48), 0, ("echo",), "0.2.0", ("heart",), speckle=False)
IMAGES = Learned("images", 3, 2, 2, (32,), 1, ("picture",), "0.2.0")


@pytest.fixture(scope="module")
def backbone() -> MedMambaSE:
    torch.manual_seed(1)
    return MedMambaSE(TINY, features_only=True).eval()


@pytest.fixture
def written(backbone: MedMambaSE, tmp_path: Path) -> Path:
    """The folder of a pretraining, as far as its weights go."""
    path = tmp_path / "pretrain-x-001" / "weights.safetensors"
    starting.write(path, backbone.state_dict(), backbone.config, [DRAWN, IMAGES], ["b" * 32, "a" * 32, "a" * 32])
    return path.parent


def changed(path: Path, change: Any) -> None:
    """The same file with another header, and without a checksum, as those of before."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    words = json.loads(header["__metadata__"]["medmambase"])
    del words["checksum"]
    path.write_bytes(save(load(content), {"medmambase": json.dumps(change(words))}))


def test_what_was_written_is_read_from_the_folder_and_from_the_file_and_says_what_it_learned(
    written: Path, backbone: MedMambaSE
) -> None:
    for path in (written, written / "weights.safetensors"):
        start = starting.read(path)
        assert start.config == TINY and not start.classes
        assert start.preprocessing == Preprocessing(size=32, channels=3)  # that of the last pretraining
        origin = start.origin
        assert (origin.learned, origin.seen, origin.unrecorded) == ((DRAWN, IMAGES), ("a" * 32, "b" * 32), False)
        assert all(torch.equal(t, backbone.state_dict()[name]) for name, t in start.tensors.items())
        assert start.tensors.keys() == backbone.state_dict().keys()
    assert origin.name == "pretrain-x-001" and origin.sentence() == (
        f"pretrain-x-001 (SHA-256 {origin.sha256[:12]}...), learned from 64 drawn pictures (scenes 'heart'; without "
        f"speckle; targets echo; 2 steps of 32; 32, 48 px; seed 0), then from 3 unlabelled images (targets picture; 2 "
        f"steps of 2; 32 px; seed 1)"
    )


def test_the_same_weights_give_the_same_bytes_and_half_halves_them(backbone: MedMambaSE, tmp_path: Path) -> None:
    def written(name: str, half: bool) -> tuple[str, bytes]:
        path = tmp_path / name
        sha256 = starting.write(path, backbone.state_dict(), TINY, [DRAWN], ["b", "a"], half=half)
        return sha256, path.read_bytes()

    whole, half = written("a.safetensors", False), written("b.safetensors", True)
    assert written("c.safetensors", False) == whole
    assert starting.read(tmp_path / "a.safetensors").origin.sha256 == whole[0] != half[0]
    start = starting.read(tmp_path / "b.safetensors")
    for name, t in backbone.state_dict().items():
        dtype = torch.float16 if t.is_floating_point() and t.dim() > 1 else t.dtype
        assert start.tensors[name].dtype == dtype and torch.equal(start.tensors[name], t.to(dtype))
    network = MedMambaSE.from_pretrained(tmp_path / "b.safetensors", num_classes=2)
    assert all(t.dtype == network.state_dict()[name].dtype for name, t in backbone.state_dict().items())
    large = {name: t * 1e9 if name.endswith("in_proj.weight") else t for name, t in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=r"c\.safetensors: .*in_proj\.weight is too large for float16"):
        starting.write(tmp_path / "c.safetensors", large, TINY, [], [], half=True)
    assert (tmp_path / "c.safetensors").read_bytes() == whole[1]


def test_pretrained_weights_get_a_new_head_or_none_and_take_grey_or_rgb(written: Path, backbone: MedMambaSE) -> None:
    grey = torch.randn(2, 1, 32, 32)
    expected = backbone(grey.expand(-1, 3, -1, -1))
    for in_chans in (None, 1, 3):
        network = MedMambaSE.from_pretrained(written, num_classes=5, in_chans=in_chans)
        assert network.config == replace(TINY, num_classes=5, in_chans=in_chans or 3) and not network.training
        assert network.preprocessing == Preprocessing(size=32, channels=in_chans or 3)
        assert network(grey.expand(-1, network.config.in_chans, -1, -1)).shape == (2, 5)
        for features_only in (True, False):  # without a number of classes there is no head either way
            maps = MedMambaSE.from_pretrained(written, in_chans=in_chans, features_only=features_only)
            assert maps.head is None
            for got, wanted in zip(maps(grey.expand(-1, maps.config.in_chans, -1, -1)), expected, strict=True):
                assert torch.allclose(got, wanted, atol=1e-5)


def test_a_network_of_ours_keeps_its_classes_and_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    whole = MedMambaSE(replace(TINY, num_classes=2), classes=["cyst", "solid"], preprocessing=Preprocessing(size=40))
    whole.save(tmp_path / "x-001" / "best")
    (tmp_path / "x-001" / "start.json").write_text(
        json.dumps({"name": "w", "sha256": "0" * 64, "learned": [], "seen": ["c" * 32], "unrecorded": False}),
        encoding="utf-8",
    )
    again = MedMambaSE.from_pretrained(tmp_path / "x-001" / "best")
    assert (again.classes, again.preprocessing.size) == (("cyst", "solid"), 40)
    assert torch.equal(again.head.weight, whole.head.weight)
    assert MedMambaSE.from_pretrained(tmp_path / "x-001" / "best", num_classes=3).classes == ("0", "1", "2")
    assert MedMambaSE.from_pretrained(tmp_path / "x-001" / "best", features_only=True).head is None
    origin = starting.read(tmp_path / "x-001" / "best").origin
    assert (origin.name, origin.seen, origin.unrecorded) == ("x-001/best", ("c" * 32,), True)
    assert origin.sentence().endswith("...), learned from images that are not recorded")
    with pytest.raises(WeightsError, match=r"x-001: is the folder of a run; give one of its networks, such as .*best"):
        starting.read(tmp_path / "x-001")


def test_what_a_network_of_ours_was_trained_on_is_known_to_the_next_training(tmp_path: Path) -> None:
    run = tmp_path / "x-001"
    whole = MedMambaSE(replace(TINY, num_classes=2), classes=["a", "b"], preprocessing=Preprocessing(size=32))
    whole.save(run / "best")
    assert starting.read(run / "best").origin.seen == ()
    (run / "last").mkdir()
    rows = ["split,name,label,pixels", f"train,x,0,{'e' * 32}", f"val,y,0,{'f' * 32}", "train,w"]
    (run / "last" / "images.csv").write_text("\n".join(rows), encoding="utf-8")
    starting.write_origin(run, Origin("w", "0" * 64, (IMAGES,), ("c" * 32,)))
    origin = starting.read(run / "best" / "model.safetensors").origin
    assert origin.seen == ("c" * 32, "e" * 32) and origin.learned == (IMAGES,)
    (run / "last" / "images.csv").write_bytes(b"split,name\n\xff")
    with pytest.raises(WeightsError, match=r"images\.csv: cannot be read .*restore it: it tells which images the net"):
        starting.read(run / "best")


def test_a_folder_without_weights_of_its_own_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "config.toml").touch()
    with pytest.raises(WeightsError, match="has no weights yet, because its training has not ended; go on with it"):
        starting.read(tmp_path)
    (tmp_path / "config.toml").rename(tmp_path / "crossval.toml")
    with pytest.raises(WeightsError, match="has no weights yet"):
        starting.read(tmp_path)
    (tmp_path / "fold-0" / "best").mkdir(parents=True)
    with pytest.raises(WeightsError, match="is the folder of a cross-validation; give one of its networks"):
        starting.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words | {"format": 2}, "format is 2; this version reads format 1"),
        (lambda words: ["x"], "format is"),
        (lambda words: words | {"model": {"depths": [1]}}, "depths"),
        (lambda words: words | {"model": words["model"] | {"depth": [1]}}, "ModelConfig has no field 'depth'"),
        (lambda words: words | {"model": words["model"] | {"dims": [512, 1024]}}, "describes a network of 2 blocks"),
        (lambda words: words | {"model": words["model"] | {"num_classes": 2**31}}, "a network of 2147483648 classes"),
        (lambda words: words | {"seen": [1]}, r"header\.seen\[0\] is 1; it must be"),
        (lambda words: words | {"learned": [words["learned"][0] | {"image_size": [0]}]}, r"size is 0; it must be"),
        (lambda words: words | {"learned": [{}]}, r"header\.learned\[0\]\.source is missing"),
        (lambda words: {key: value for key, value in words.items() if key != "seen"}, "'seen'"),
    ],
)
def test_a_damaged_header_is_named(change: Any, message: str, written: Path) -> None:
    changed(written / "weights.safetensors", change)
    with pytest.raises(WeightsError, match=rf"weights\.safetensors: .*{message}"):
        starting.read(written)


def test_damage_behind_the_header_and_in_the_record_of_a_run_is_named(written: Path, tmp_path: Path) -> None:
    path = written / "weights.safetensors"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), r"cannot be read \(its checksum does not fit what it holds"),
        (whole[:-40], r"is no safetensors file, or is damaged \(its header tells of \d+ bytes, and it has \d+\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"weights\.safetensors: {message}.*; restore the file"):
            starting.read(written)
    assert starting.read_origin(tmp_path) is None
    origin = Origin("w", "0" * 64, (DRAWN,), ("a",), unrecorded=True)
    starting.write_origin(tmp_path, origin)
    assert starting.read_origin(tmp_path) == origin
    (tmp_path / run_folder.START).write_text('{"name": 3}', encoding="utf-8")
    with pytest.raises(WeightsError, match=re.escape("start.json: start.name is 3; it must be")):
        starting.read_origin(tmp_path)
