"""Several networks as one: the mean of what they say, each at its own temperature."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medmambase import MedMambaSE, ModelConfig, Predictor, Preprocessing
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.loading import load_ensemble, load_network
from medmambase.model.task import SINGLE_LABEL
from medmambase.run_folder import RunFolderError
from medmambase_kernels import use_backend

TEMPERATURES = (0.5, 4.0)


def network_of(seed: int, classes: tuple[str, ...] = ("a", "b", "c")) -> MedMambaSE:
    torch.manual_seed(seed)
    found = MedMambaSE(
        ModelConfig(dims=(8, 16), depths=(1, 1), in_chans=1, num_classes=3), classes=classes,
        preprocessing=Preprocessing(size=16, channels=1),
    )  # fmt: skip  # one argument list
    with torch.no_grad():
        found.head.weight.mul_(100)  # so that the networks differ
    return found.eval()


@pytest.fixture(autouse=True)
def _nothing_to_compile() -> Iterator[None]:
    with use_backend("torch"):
        yield


@pytest.fixture(scope="module")
def networks() -> list[MedMambaSE]:
    return [network_of(0), network_of(1)]


@pytest.fixture
def folder(networks: list[MedMambaSE], tmp_path: Path) -> Path:
    """A cross-validation of two folds, without anything that only a person reads."""
    found = tmp_path / "läufe 1"
    found.mkdir()
    (found / "crossval.toml").write_text("folds = 2\n", encoding="utf-8")
    for number, (network, temperature) in enumerate(zip(networks, TEMPERATURES, strict=True)):
        network.save(found / f"fold-{number}" / "best")
        text = f'{{"temperature": {temperature}, "points": []}}'
        (found / f"fold-{number}" / "calibration.json").write_text(text, encoding="utf-8")
        (found / f"fold-{number}" / "report.html").touch()
    return found


@torch.no_grad()
def mean_of(networks: list[MedMambaSE], batch: torch.Tensor, temperatures: tuple[float, ...]) -> np.ndarray:
    each = [network(batch).double().softmax(1).numpy() for network in networks]
    return np.mean([SINGLE_LABEL.apply_temperature(p, t) for p, t in zip(each, temperatures, strict=True)], axis=0)


def test_the_softmax_of_its_logits_is_the_mean_of_the_calibrated_probabilities(networks: list[MedMambaSE]) -> None:
    batch = torch.randn(5, 1, 16, 16)
    wanted = mean_of(networks, batch, TEMPERATURES)
    ensemble = Ensemble(networks, TEMPERATURES).eval()
    for one in (ensemble, ensemble.for_prediction()):
        with torch.no_grad():
            found = one(batch)
        assert found.dtype == torch.float32
        assert np.abs(found.double().softmax(1).numpy() - wanted).max() < 1e-5
    assert np.abs(mean_of(networks, batch, (1.0, 1.0)) - wanted).max() > 1e-3
    assert len(ensemble(batch[:0])) == 0


def test_what_no_float_can_hold_is_still_a_number(networks: list[MedMambaSE]) -> None:
    sure = [network_of(0), network_of(1)]
    with torch.no_grad():
        for network in sure:
            network.head.weight.mul_(1e4)
        found = Ensemble(sure, (1.0, 1.0))(torch.randn(4, 1, 16, 16))
    assert found.isfinite().all() and found.min() < -200


def test_the_folder_of_a_cross_validation_predicts_with_the_networks_of_all_folds(
    folder: Path, networks: list[MedMambaSE]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    batch = (torch.tensor(picture)[None, None] / 255 - 0.5) / 0.5
    for calibrated, temperatures in ((None, TEMPERATURES), (True, TEMPERATURES), (False, (1.0, 1.0))):
        predictor = Predictor.load(folder, device="cpu", calibrated=calibrated, backend="torch")
        (found,) = predictor(picture)
        assert found.problem is None and found.probabilities is not None
        assert np.abs(found.probabilities - mean_of(networks, batch, temperatures)).max() < 1e-5
        assert predictor.classes == ("a", "b", "c") and predictor.temperature == 1.0


def test_the_folder_of_a_pretraining_and_of_a_run_that_has_only_begun_say_what_they_lack(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="has no network yet, because its training has not ended; go on with it first"):
        load_network(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(
        DataError, match=r"a pretraining learns weights to start from, .* medmambase-train DATA --start"
    ):
        load_network(tmp_path)


def test_a_cross_validation_that_is_not_whole_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has a network for each fold, and this takes one; .*fold-0$"):
        load_network(folder)
    with pytest.raises(ConfigError, match=r"fold-1 has no calibration\.json"):
        (folder / "fold-1" / "calibration.json").unlink()
        load_ensemble(folder, calibrated=True)
    assert load_ensemble(folder).temperatures == (TEMPERATURES[0], 1.0)
    network_of(2, ("a", "c", "b")).save(folder / "fold-1" / "best")
    with pytest.raises(DataError, match=r"fold-1.best: the network has other classes, .* than that of fold-0"):
        Predictor.load(folder)
    (folder / "fold-1" / "report.html").unlink()  # which comes last
    with pytest.raises(DataError, match=r"1: fold-1 of 2 folds has not ended, .* start the command .* goes on with it"):
        Predictor.load(folder)
    shutil.rmtree(folder / "fold-0" / "best")
    with pytest.raises(DataError, match=r"1: fold-0, fold-1 of 2 folds have not ended, .* goes on with them"):
        Predictor.load(folder)
    for damaged in ("folds = 'many'\n", "folds = 1\n", "folds = 10001\n", "no TOML"):
        (folder / "crossval.toml").write_text(damaged, encoding="utf-8")
        with pytest.raises(RunFolderError, match=r"crossval\.toml: does not tell how many folds there are"):
            Predictor.load(folder)
