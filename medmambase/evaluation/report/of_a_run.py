"""Write what a finished run is judged by: its predictions, its figures and its pictures."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from medmambase.data.audit import Audit
from medmambase.data.decoded.image_set import ImageSet
from medmambase.data.decoded.originals import originals
from medmambase.data.reading.images import normalise
from medmambase.evaluation import calibration
from medmambase.evaluation.calibration import Calibration
from medmambase.evaluation.explanation import folder as explanations
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.evaluation.report import figures, performance_figures, results
from medmambase.files import write_bytes, write_json
from medmambase.inference import limits as limits_of
from medmambase.inference.limits import Limits
from medmambase.inference.probabilities import predict
from medmambase.inference.unlike import MOST
from medmambase.inference.watch import Seen, Watch
from medmambase.model.classifier import Classifier, Trainable
from medmambase.model.network import MedMambaSE
from medmambase.run_folder import (
    AUDIT,
    CALIBRATION,
    CONFORMAL,
    CURVES,
    DUPLICATES,
    EXPLAIN,
    HISTORY,
    MISTAKES,
    PREDICTIONS,
    UNLIKE,
    VAL,
)


def predicted(
    network: Classifier, images: ImageSet, leaked: Collection[str], batch_size: int, dtype: torch.dtype
) -> Predictions:
    """Predict every image, and keep beside that what is known of it; ``leaked``: names of those
    that have a duplicate, or their patient, elsewhere. Raises InferenceError."""
    return Predictions(
        tuple(sample.name for sample in images.samples),
        images.labels.numpy(),
        predict(network, images, batch_size, dtype),
        network.classes,
        tuple(sample.patient or facts.patient for sample, facts in zip(images.samples, images.facts, strict=True)),
        np.array([sample.name in leaked for sample in images.samples], dtype=bool),
    )


def learn_from_validation(run: Path, validation: Predictions) -> Calibration | None:
    """Fit a calibration to the predictions of the validation images, and keep both in ``run``; None
    without validation images."""
    found = calibration.fit(validation)
    if found is not None:
        write_predictions(run / VAL / PREDICTIONS, found.called(validation))
        write_json(run / CALIBRATION, found.to_dict())
    return found


def learn_limits(
    run: Path, network: Classifier, training: ImageSet, validation: Predictions, seen: Seen,
    found: Calibration | None, batch_size: int, dtype: torch.dtype,
) -> Limits:  # fmt: skip  # one argument list
    """Learn which images are unlike those of ``training``, and sets of classes, from the
    predictions of the validation images, what was ``seen`` of these and the calibration that was
    ``found`` on them; keep both in ``run``."""
    count = len(training.labels)
    rows = range(count) if count <= MOST else [row * count // MOST for row in range(MOST)]
    with Watch(network) as watch:
        predict(network, training.rows(rows), batch_size, dtype)
    temperature = found.temperature if found else 1.0
    limits = limits_of.learn(
        watch.take(), seen, validation.probabilities, validation.labels, validation.patients, temperature
    )
    for detector in limits.detectors:
        write_bytes(run / UNLIKE, detector.to_bytes())
    for sets in limits.sets:
        write_json(run / CONFORMAL, sets.to_dict())
    return limits


def test(
    folder: Path, predictions: Predictions, images: ImageSet, found: Calibration | None, published: bool
) -> AnyMetrics:
    """Write everything that is said of the test images into ``folder``. ``images``: the same, in
    the same order; of a ``published`` MedMNIST set its own evaluator's figures are written too."""
    predictions = predictions if found is None else found.called(predictions)
    metrics = results.write(folder, predictions, found, published)
    wrong = performance_figures.worst(predictions)
    if wrong:
        performance_figures.mistakes(originals(images, wrong), predictions.rows(wrong), folder / MISTAKES)
    return metrics


def draw_duplicates(images: ImageSet, found: Audit, run: Path) -> None:
    """Draw duplicates of different classes and in different splits side by side, the worst first;
    no file where there are none."""
    pairs = list({pair.names: pair for pair in (*found.conflicts, *found.across)}.values())[: figures.MOST_DUPLICATES]
    if not pairs:
        return
    row_of = {sample.name: row for row, sample in enumerate(images.samples)}
    pictures = originals(images, [row_of[name] for pair in pairs for name in pair.names])
    shown = list(zip(pictures[::2], pictures[1::2], strict=True))
    captions = [
        tuple(
            f"{split}, {label}\n{name}"
            for name, split, label in zip(pair.names, pair.splits, pair.classes, strict=True)
        )
        for pair in pairs
    ]
    likeness = ["the same pixels" if pair.exact else f"correlation {pair.likeness:.3f}" for pair in pairs]
    (run / AUDIT).mkdir(exist_ok=True)
    figures.duplicates(shown, captions, likeness, run / AUDIT / DUPLICATES)


def draw(network: Trainable, images: ImageSet, run: Path, best_epoch: int) -> None:
    """Draw the training curves, and explain a few images, the first ones of each class, where the
    network is MedMambaSE and each image has one."""
    figures.curves(run / HISTORY, run / CURVES, best_epoch)
    if not isinstance(network, MedMambaSE) or network.task.multi_label:
        return
    labels = images.labels.tolist()
    turns = [[row for row, label in enumerate(labels) if label == own] for own in sorted(set(labels))]
    longest = max(map(len, turns), default=0)
    rows = [of_class[turn] for turn in range(longest) for of_class in turns if turn < len(of_class)][
        : explanations.ON_A_SHEET
    ]
    pictures, names = images.images[rows], tuple(images.samples[row].name for row in rows)
    batch = normalise(pictures.to(next(network.parameters()).device), network.preprocessing)
    explanations.write(
        run / EXPLAIN,
        network,
        network.classes,
        batch,
        explanations.Subjects(pictures, names, tuple(labels[row] for row in rows)),
    )
