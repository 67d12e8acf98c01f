"""Measure how far a network is from those that it has learned from, on images that it has not."""

from typing import Any

import numpy as np

from medmambase.evaluation import comparison
from medmambase.evaluation.metrics import OVERALL
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.plural import count_of


def measure(teachers: Predictions, distilled: Predictions) -> dict[str, Any]:
    """Compare what a distilled network says with what the others say of the same images, as
    JSON-ready values.

    ``loss``: the mean over the images of the Kullback-Leibler divergence of its probabilities from
    theirs, in nats; ``agreement``: the share of the images that both call the same; ``figures``:
    of each figure theirs, its own, and the difference with its paired 95 % interval, None where
    there is none. Raises MetricsError where an image, or a class, is missing on one side.
    """
    row_of = {name: row for row, name in enumerate(teachers.names)}
    missing = [name for name in distilled.names if name not in row_of]
    if missing:
        raise MetricsError(
            f"the networks have not predicted {count_of(len(missing), 'image')}, such as {missing[0]}; start a new "
            f"cross-validation"
        )
    theirs = teachers.rows([row_of[name] for name in distilled.names])
    found = comparison.compare([theirs], [distilled])
    least = np.finfo(np.float64).tiny
    p, q = (np.maximum(one.probabilities, least) for one in (theirs, distilled))
    loss = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    figures = {
        name: {
            "networks": one.first, "distilled": one.second,
            "low": one.interval.low if one.interval else None, "high": one.interval.high if one.interval else None,
        }
        for name in OVERALL if (one := found.get(name))
    }  # fmt: skip  # the file's content
    return {
        "images": len(distilled.names), "loss": float(loss),
        "agreement": float((distilled.predicted == theirs.predicted).mean()), "figures": figures,
    }  # fmt: skip  # the file's content
