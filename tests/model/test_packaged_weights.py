"""The weights that come with the package: they are what their log says, they have learned from
drawn pictures alone, and any network takes them without a connection."""

import json
import socket
from pathlib import Path

import pytest
import torch

from medmambase import MedMambaSE, packaged
from medmambase.config import PRESETS, Preprocessing
from medmambase.model import starting
from medmambase.model.weights import WeightsError
from medmambase.pretraining.settings import resolve

MODELS = packaged.models()


def test_there_are_some_and_they_are_small() -> None:
    assert "nano" in MODELS
    assert sum(path.stat().st_size for path in packaged.FOLDER.iterdir()) < 25e6
    files = {f"{model}-drawn{suffix}" for model in MODELS for suffix in (".json", ".md", ".safetensors", ".toml")}
    assert {path.name for path in packaged.FOLDER.iterdir()} == files


@pytest.mark.parametrize("model", MODELS)
def test_they_are_what_their_log_says_and_there_is_no_patient_in_them(model: str) -> None:
    path = packaged.path_of(model)
    start, log = starting.read(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    origin, (learned,) = start.origin, start.origin.learned
    assert origin.sha256 == log["sha256"] and origin.sha256 in path.with_suffix(".md").read_text(encoding="utf-8")
    assert (learned.source, origin.seen, origin.unrecorded) == ("drawn", (), False)
    assert origin.sentence().startswith(f"{model}-drawn of medmambase, MIT licence (SHA-256 ")
    assert origin.sentence().endswith("), so there is no patient in them")
    assert {t.dtype for t in start.tensors.values() if t.dim() > 1 and t.is_floating_point()} == {torch.float16}
    settings = resolve({}, path.with_suffix(".toml"))
    assert settings.network().dims == PRESETS[model].dims == start.config.dims
    assert settings.drawn and (settings.device, settings.precision) == ("cpu", "float32")
    for name in ("steps", "batch_size", "image_size", "seed", "scenes", "targets", "speckle", "structure"):
        assert getattr(settings, name) == getattr(learned, name)


@pytest.mark.parametrize("model", MODELS)
def test_any_network_takes_them_by_name(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # nothing is fetched
    name = f"{model}-drawn"
    for in_chans in (1, 3):
        network = MedMambaSE.from_pretrained(name, num_classes=4, in_chans=in_chans)
        assert network(torch.randn(1, in_chans, 32, 32)).shape == (1, 4) and not network.training
        assert network.preprocessing == Preprocessing(network.preprocessing.size, in_chans)
    for backbone in (MedMambaSE.from_pretrained(name), MedMambaSE.from_pretrained(name, features_only=True)):
        assert [one.shape[1] for one in backbone(torch.randn(1, 3, 32, 32))] == list(PRESETS[model].dims)


def test_a_name_that_nothing_has_gets_the_nearest_and_a_file_of_that_name_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nearest = r"nano-drwn: there is no such file or folder, and the nearest .* is 'nano-drawn' \(--start drawn --model "
    with pytest.raises(WeightsError, match=nearest):
        MedMambaSE.from_pretrained("nano-drwn")
    with pytest.raises(WeightsError, match="nano-drawn: there is no such file or folder"):
        MedMambaSE.from_pretrained(Path("nano-drawn"), num_classes=2)  # a path is a path
    (tmp_path / "nano-drawn").mkdir()
    said: list[str] = []
    MedMambaSE.from_pretrained("nano-drawn", num_classes=2, say=said.append)
    assert "give './nano-drawn' for that" in said[0] and "keys matched" in said[1]
    with pytest.raises(WeightsError, match=r"config\.json: there is no such file"):
        MedMambaSE.from_pretrained("./nano-drawn", num_classes=2)
