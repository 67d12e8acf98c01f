"""``medmambase.train`` and ``Run``: whatever the command does, in a few lines of Python."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medmambase
from medmambase import MedMambaSE, Predictor, Run, run_folder
from medmambase.commands import train as command
from medmambase.config import ConfigError, ModelConfig, Preprocessing
from medmambase.data.manifest.folders import DataError
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report import figures
from medmambase.privacy import without_paths
from medmambase.run_folder import RunFolderError
from medmambase.training import loop
from medmambase.training import run as training_run

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 4, "image_size": 32, "augmentation": "none", "device": "cpu"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark images of two classes in three splits."""
    folder, rng = tmp_path_factory.mktemp("data") / "bilder ü", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for label, mean in (("cyst", 60), ("solid", 180)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(mean, 30, (32, 32)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network small enough to be trained in a second."""
    folder = tmp_path_factory.mktemp("start")
    config = ModelConfig(dims=(4, 8), depths=(1, 1), in_chans=1, num_classes=2, state=2)
    MedMambaSE(config, preprocessing=Preprocessing(size=32, channels=1)).save(folder)
    return folder


@pytest.fixture(scope="module")
def finished(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """A run that nobody changes, and what it said."""
    said: list[str] = []
    runs = tmp_path_factory.mktemp("runs")
    return medmambase.train(images, weights=weights, runs=runs, name="a", say=said.append, **SMALL), said


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a small run is drawing, which other tests look at."""
    for name in ("curves", "confusion"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(training_run.of_a_run, "draw", lambda *_: None)


def test_a_run_has_a_report_metrics_a_network_and_a_predictor(finished: tuple[Run, list[str]], images: Path) -> None:
    run, _ = finished
    assert run.folder.name == "a-001" and run.report == run.folder / "report.html"
    recorded = json.loads((run.folder / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert run.metrics is not None and run.metrics.to_dict() == recorded and run.metrics.images == 6
    assert run.network.classes == ("cyst", "solid") and run.network is run.network
    found = list(run.predictor(device="cpu")(images / "test"))
    assert len(found) == 6 and all(one.problem is None for one in found)
    assert run.predictor(device="cpu").temperature == Predictor.load(run).temperature != 1.0


def test_it_does_what_the_command_does(
    finished: tuple[Run, list[str]],
    images: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_pictures: None,
) -> None:
    run, said = finished
    words = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert command.main([str(images), "--weights", str(weights), "--runs", str(tmp_path), "--name", "a", *words]) == 0
    for name in ("metrics.csv", "last/model.safetensors", "test/predictions.csv", "test/metrics.json"):
        assert (tmp_path / "a-001" / name).read_bytes() == (run.folder / name).read_bytes()
    printed = capsys.readouterr().out.partition("\nnext: ")[0].splitlines()
    kept = [line for text in said for line in text.split("\n")]
    # but for the folder, and for seconds, which differ
    assert [line.split()[:2] for line in kept if "a-001" not in line] == [
        line.split()[:2] for line in printed if "a-001" not in line
    ]
    assert (run.folder / "train.log").read_text(encoding="utf-8").splitlines() == list(map(without_paths, kept))


def test_nothing_is_printed_unless_it_is_asked_for(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    shown: list[tuple[int, str]] = []

    def progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
        shown.append((total, description))
        return items

    medmambase.train(str(images), weights=weights, runs=tmp_path, progress=progress, **SMALL | {"epochs": 1})
    assert capsys.readouterr() == ("", "")
    assert (24, "reading images") in shown and (3, "epoch 1/1") in shown
    command_line = (tmp_path / "bilder ü-001" / "command.txt").read_text(encoding="utf-8")
    assert command_line.startswith(f"medmambase.train(data={images.name!r}, ") and "epochs=1" in command_line


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    finished: tuple[Run, list[str]],
    images: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
) -> None:
    original = loop.predict

    def stops(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "predict", stops)
        medmambase.train(images, weights=weights, runs=tmp_path, name="b", **SMALL | {"save_every": 1})
    assert loop.predict is original
    run = Run(tmp_path / "b-001")
    assert run.metrics is None
    with pytest.raises(RunFolderError, match=r"report\.html: not written yet: the training has not ended"):
        assert run.report
    said: list[str] = []
    with pytest.raises(ConfigError, match="--epochs is 9 and was 2"):
        run.resume(epochs=9)
    with pytest.raises(ConfigError, match="there is no setting 'sav_every'; the nearest is 'save_every'"):
        run.resume(sav_every=9)
    again = run.resume(say=said.append, save_every=0)
    assert again.folder == run.folder and again.report.is_file()
    assert "resuming from epoch 1, after step 2" in said
    for name in ("metrics.csv", "last/model.safetensors", "test/predictions.csv"):
        assert (run.folder / name).read_bytes() == (finished[0].folder / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "x", "ephocs": 3}, ConfigError, "there is no setting 'ephocs'; the nearest is 'epochs'"),
        ({"data": "x", "epochs": "3"}, ConfigError, "--epochs is '3'; it must be"),
        ({"data": "x", "epochs": 0}, ConfigError, "--epochs is 0; it must be"),
        ({"data": "x", "in_chans": 2}, ConfigError, "--in-chans is 2; it must be"),
        ({"data": "nowhere"}, DataError, "nowhere: there is no such file or folder"),
        ({}, ConfigError, "give a folder of images"),
        ({"data": "x", "demo": True}, ConfigError, "DATA is 'x', but --demo makes its own images"),
        ({"data": "x", "config": "nowhere.toml"}, ConfigError, "nowhere.toml: there is no such file"),
        ({"data": "demo", "device": "toaster"}, ConfigError, "device toaster cannot be used"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        medmambase.train(**settings)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_called_demo_is_not_taken_for_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(ConfigError, match=r"data is 'demo', and a folder or file has that name; give './demo'"):
        medmambase.train("demo")
    with pytest.raises(DataError, match="demo: no images found"):
        medmambase.train("./demo")


def test_grey_or_colour_may_be_a_number_and_a_file_of_settings_is_read(
    images: Path, weights: Path, tmp_path: Path, no_pictures: None
) -> None:
    (tmp_path / "my.toml").write_text("in_chans = '3'\nepochs = 7\n", encoding="utf-8")
    run = medmambase.train(
        images, config=tmp_path / "my.toml", weights=weights, runs=tmp_path, in_chans=1, **SMALL | {"epochs": 1}
    )
    assert run.network.preprocessing.channels == 1
    assert len((run.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 2


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: not a run folder: there is no such folder"):
        Run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"not a run folder: it has no config\.toml"):
        Run(tmp_path)
    (tmp_path / run_folder.CONFIG).write_text("", encoding="utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MetricsError, match=r"metrics\.json: .*medmambase-evaluate"):
        assert Run(str(tmp_path)).metrics
