"""What a file says of the network in it, as names and texts."""

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medmambase.evaluation import calibration
from medmambase.evaluation.predictions import read_predictions
from medmambase.files import read_json
from medmambase.inference.loading import run_of, thresholds_of
from medmambase.model.classifier import Classifier
from medmambase.run_folder import BEST, DATA_REPORT, PREDICTIONS, VAL, WEIGHTS, folds_of

RESEARCH = "For research only, not for diagnosis."


def metadata_of(run: Path, network: Classifier, temperatures: tuple[float, ...]) -> dict[str, str]:
    """Return what the file says: version, classes, how images are prepared, temperatures, operating
    points, of a network that calls several classes an image their thresholds, and what the network
    was trained on. Texts are plain, or JSON where they hold more.

    Raises MetricsError for predictions of validation images that are damaged.
    """
    how, folds = network.preprocessing, folds_of(run)
    kind, shape = "grey" if how.channels == 1 else "RGB", f"(batch, {how.size}, {how.size}, {how.channels})"
    learned = None if folds else _learned(run_of(run), temperatures[0])
    return _thresholds(run, network, temperatures[0]) | {
        "about": f"medmambase {_version()}. {RESEARCH}",
        "input": f"image: uint8 {shape}, {kind}, prepared as preprocessing says",
        "output": "probabilities: float32 (batch, classes), in the order of classes",
        "classes": _json(list(network.classes)),
        "multi_label": _json(network.task.multi_label),
        "preprocessing": _json(how.to_dict()),
        "temperatures": _json(list(temperatures)),
        "operating_points": _json([asdict(point) for point in (learned.points if learned else ())]),
        "network": network.config.words(),
        "trained_on": _json(_trained_on(run)),
        "weights": _json([_digest(run_of(one) / BEST / WEIGHTS, one / WEIGHTS) for one in folds or (run,)]),
    }


def _version() -> str:
    try:
        return metadata.version("medmambase")
    except metadata.PackageNotFoundError:  # a clone that was not installed
        return "0+unknown"


def _learned(run: Path, temperature: float) -> calibration.Calibration | None:
    """The operating points of the run, chosen on calibrated probabilities, which the file gives."""
    path = run / VAL / PREDICTIONS
    if not path.is_file():
        return None
    return calibration.fit(calibration.with_temperature(read_predictions(path), temperature))


def _thresholds(run: Path, network: Classifier, temperature: float) -> dict[str, str]:
    """From which calibrated probability on the run calls each class; nothing of a network of one
    class an image, and of a run without validation images."""
    found = thresholds_of(run, network)
    if found is None:
        return {}
    warmer = network.task.apply_temperature(np.array([found[name] for name in network.classes]), temperature)
    return {"thresholds": _json(dict(zip(network.classes, warmer.tolist(), strict=True)))}


def _trained_on(run: Path) -> dict[str, Any]:
    """The run's name, that of its data and the number of images, as its report has them; what is
    not there is left out."""
    try:
        said = read_json(run_of(run) / DATA_REPORT)
        known = {"data": said["root"], "images": said["counts"]}
    except (OSError, ValueError, LookupError, TypeError):  # the network's own folder alone, or a damaged file
        known = {}
    return {"run": run_of(run).resolve().name} | known


def _digest(*paths: Path) -> str:
    """The SHA-256 of the first of these files that is there."""
    return next((hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()), "")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
