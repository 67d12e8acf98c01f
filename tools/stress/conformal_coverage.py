"""Measure how often sets of classes hold the true one: tables of predictions are cut 200 times into
images to learn from and images to test on, by patients where they are known.

    python tools/stress/conformal_coverage.py PREDICTIONS.csv [MORE.csv ...]

All tables must be of one network, and of images that it has not learned from, such as
val/predictions.csv and test/predictions.csv of a run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmambase.evaluation.predictions import Predictions, read_predictions
from medmambase.inference.conformal import Sets

DIVISIONS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the mean coverage, counted in images and, where patients are known, in patients."""
    parser = argparse.ArgumentParser(description="Measure how often sets of classes hold the true one.")
    parser.add_argument("tables", nargs="+", type=Path, metavar="PREDICTIONS.csv", help="predictions of one network")
    tables = [read_predictions(path) for path in parser.parse_args(arguments).tables]
    whole = Predictions(
        tuple(name for one in tables for name in one.names), np.concatenate([one.labels for one in tables]),
        np.concatenate([one.probabilities for one in tables]), tables[0].classes,
        tuple(patient for one in tables for patient in one.patients),
    )  # fmt: skip  # one part a line would say no more
    units = int(whole.clusters.max()) + 1
    for counted, clusters in {"images": np.arange(len(whole.labels)), "patients": whole.clusters}.items():
        if counted == "patients" and units == len(whole.labels):
            continue
        tell(counted, whole, clusters)
    return 0


def tell(counted: str, whole: Predictions, clusters: np.ndarray) -> None:
    """Print the coverage where clusters are drawn: each counts the same, shared by its images."""
    rng, count = np.random.default_rng(0), int(clusters.max()) + 1
    coverage, sizes, promised = [], [], 0.0
    for _ in range(DIVISIONS):
        learned = np.isin(clusters, rng.permutation(count)[: count // 2])
        rows, rest = np.flatnonzero(learned), np.flatnonzero(~learned)
        sets = Sets.of(whole.probabilities[rows], whole.labels[rows], [str(one) for one in clusters[rows]], 1.0)
        held = sets.holds(whole.probabilities[rest])
        weights = 1 / np.bincount(clusters[rest])[clusters[rest]]
        coverage.append(np.average(held[np.arange(len(rest)), whole.labels[rest]], weights=weights))
        sizes.append(np.average(held.sum(axis=1), weights=weights))
        promised = sets.bound.level
    low, high = np.quantile(coverage, [0.05, 0.95])
    print(
        f"{counted}: {count // 2} of {count} learned from, {promised:.1%} promised; coverage {np.mean(coverage):.1%} "
        f"on average over {DIVISIONS} divisions ({low:.1%} to {high:.1%} in nine of ten), {np.mean(sizes):.2f} classes"
    )


if __name__ == "__main__":
    sys.exit(main())
