"""Load what the folder of a run holds for prediction: its network, and what belongs to that; of a
cross-validation the networks of all folds."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from medmambase.config import AboveZero, ConfigError, Frames
from medmambase.data.manifest.folders import DataError
from medmambase.files import no_folder, read_json
from medmambase.inference.ensemble import Ensemble
from medmambase.model import opponents
from medmambase.model.classifier import Classifier, Trainable
from medmambase.plural import count_of
from medmambase.run_folder import BEST, CALIBRATION, CONFIG, PRETRAINED, folds_of, is_finished
from medmambase.validation import check

Threshold = Annotated[float, Field(ge=0, le=1)]


def load_network(run: Path) -> Trainable:
    """Load the best network of a run's folder, or a network's own folder. Raises WeightsError,
    ConfigError where it is an opponent whose package is not installed, and DataError where there is
    no such folder, or it is that of a cross-validation."""
    _check_folder(run)
    if folds := folds_of(run):
        raise DataError(
            f"{run}: a cross-validation has a network for each fold, and this takes one; give the folder of a fold, "
            f"such as {folds[0]}"
        )
    return opponents.load(run / BEST if (run / BEST).is_dir() else run)


def load_ensemble(folder: Path, calibrated: bool | None = None) -> Ensemble:
    """Load the best networks of all folds of a cross-validation, each with its own temperature;
    ``calibrated``: as ``temperature_of`` takes it.

    Raises DataError where a fold has not ended, or has a network that does not fit the others,
    WeightsError where one is damaged, and what ``temperature_of`` raises.
    """
    folds = folds_of(folder)
    if ahead := [fold.name for fold in folds if not ((fold / BEST).is_dir() and is_finished(fold))]:
        raise DataError(
            f"{folder}: {', '.join(ahead)} of {count_of(len(folds), 'fold')} {'has' if len(ahead) == 1 else 'have'} "
            f"not ended, and all predict together; start the command that began the cross-validation again, which goes "
            f"on with {'it' if len(ahead) == 1 else 'them'}"
        )
    networks: list[Trainable] = []
    for fold in folds:
        network = opponents.load(fold / BEST)
        first = networks[0] if networks else network
        if (network.classes, network.preprocessing) != (first.classes, first.preprocessing):
            raise DataError(
                f"{fold / BEST}: the network has other classes, or takes other images, than that of {folds[0].name}; "
                f"restore the folder"
            )
        networks.append(network)
    return Ensemble(networks, [temperature_of(fold, calibrated) for fold in folds])


def run_of(folder: Path) -> Path:
    """Return the run's folder, also where that of its network, ``best``, is given: what lies there
    belongs to that network."""
    return folder if (folder / BEST).is_dir() or folder.resolve().name != BEST else folder.parent


def temperature_of(folder: Path, calibrated: bool | None) -> float:
    """Read the temperature of a run; 1 with ``calibrated=False``, and with None where there is
    none. Raises DataError for a damaged file, and ConfigError where ``calibrated=True`` finds
    none."""
    found = None if calibrated is False else _temperature(run_of(folder) / CALIBRATION)
    if calibrated and found is None:
        raise ConfigError(
            f"{folder} has no {CALIBRATION}, because the run had no validation images, so probabilities cannot be "
            f"calibrated; leave out calibrated (--calibrated)"
        )
    return found or 1.0


def frames_of(folder: Path) -> str:
    """Read which frames of files with several a run has learned from, as ``frames.chosen`` takes
    it; "first" where nothing is known. Raises DataError for a damaged file."""
    path = run_of(next(iter(folds_of(folder)), folder)) / CONFIG
    if not path.is_file():
        return "first"
    try:
        wish = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("frames", "first")
        return str(check("frames", wish, Frames, ConfigError))
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise DataError(f"{path}: does not tell which frames were taken ({error}); restore it") from error


def thresholds_of(folder: Path, network: Classifier) -> dict[str, float] | None:
    """Read from which probability on, not calibrated, each class is called, where an image may have
    several; None where no thresholds were chosen. Raises DataError for a damaged file."""
    path = run_of(folder) / CALIBRATION
    if not (network.task.multi_label and path.is_file()):
        return None
    try:
        found = read_json(path)["thresholds"]
        if found.keys() != {*network.classes}:
            raise ValueError(f"it has thresholds for {', '.join(map(str, found))}")
        return {name: float(check(name, value, Threshold, ConfigError)) for name, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
        raise DataError(
            f"{path}: contains no thresholds ({error}); medmambase-evaluate {path.parent} writes it again"
        ) from error


def _temperature(path: Path) -> float | None:
    try:
        if not path.is_file():
            return None
        found: float = check("temperature", read_json(path)["temperature"], AboveZero, ConfigError)
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:  # ConfigError is a ValueError
        raise DataError(
            f"{path}: contains no temperature ({error}); medmambase-evaluate {path.parent} writes it again"
        ) from error


def _check_folder(run: Path) -> None:
    if not run.is_dir():
        raise DataError(f"{run}: {no_folder(run)}; give the folder of a run, such as runs/data-001")
    if (run / PRETRAINED).is_file():
        raise DataError(
            f"{run}: a pretraining learns weights to start from, and its network knows no classes; train one with "
            f"medmambase-train DATA --start {run}, and give the folder of that run"
        )
    if (run / CONFIG).is_file() and not (run / BEST).is_dir():
        raise DataError(f"{run}: has no network yet, because its training has not ended; go on with it first")
