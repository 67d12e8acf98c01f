"""Count how often the 95 % intervals hold the truth: python tools/stress/interval_coverage.py

Draws many test sets from a population whose figures are known, computes every interval of each as
the report does, and counts how often the known figure lies inside: it should in 95 % of them. Once
with images that stand alone, and once with patients of several images that resemble each other,
where intervals that count images are computed too, to show that they fail; and once with the
figures that are counted in such patients, by the mean of the probabilities of their images.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # old Pythons must parse this file and hear why, so the import stands below
    sys.exit(
        f"medmambase needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        f"Get one from https://www.python.org"
    )

import argparse
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.intervals import evaluate_with_intervals
from medmambase.evaluation.metrics import evaluate
from medmambase.evaluation.predictions import Predictions
from medmambase.machine import cores

SHOWN = ("accuracy", "balanced_accuracy", "auc", "mcc", "kappa", "brier", "ece", "macro/f1", "weighted/f1",
    "macro/auc", "macro/ap",
         "0/sensitivity", "0/specificity", "0/ppv", "0/npv", "0/f1", "0/auc", "0/ap",
         "1/sensitivity", "1/ppv", "1/auc")  # fmt: skip  # names
Counted = Literal["images", "images, blindly", "patients"]
POPULATION = 400_000  # patients, for the known figures


@dataclass(frozen=True)
class Population:
    """Patients of one class each, of ``classes``, with ``images`` of each at the most; ``alike``:
    the part of a score that all images of a patient share."""

    classes: int = 2
    images: int = 1
    alike: float = 0.0
    skill: float = 1.6

    def draw(self, patients: int, seed: int) -> Predictions:
        """Draw a test set of so many patients, each with at least one image."""
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, self.images + 1, patients)
        owner = np.repeat(np.arange(patients), sizes)
        labels = rng.choice(
            self.classes, patients, p=np.linspace(1, 2, self.classes) / np.linspace(1, 2, self.classes).sum()
        )[owner]
        shared = rng.normal(size=(patients, self.classes))[owner]
        logits = (
            np.sqrt(self.alike) * shared
            + np.sqrt(1 - self.alike) * rng.normal(size=shared.shape)
            + self.skill * np.eye(self.classes)[labels]
        )
        odds = np.exp(1.3 * logits)  # overconfident, as networks are
        names = tuple(map(str, range(len(labels))))
        return Predictions(
            names,
            labels,
            odds / odds.sum(1, keepdims=True),
            tuple(f"class {i}" for i in range(self.classes)),
            tuple(f"patient {i}" for i in owner),
        )


def of_rows(predictions: Predictions, counted: Counted) -> Predictions:
    """Return what figures are counted over: the images, or a row for each patient."""
    if counted == "images, blindly":
        return replace(predictions, patients=())
    found = of_patients(predictions) if counted == "patients" else None
    return found.predictions if found else predictions


def inside(
    population: Population, patients: int, truth: dict[str, float | None], counted: Counted, seed: int
) -> dict[str, bool | None]:
    """Say for each figure whether its interval holds the truth; None where it has none."""
    metrics = evaluate_with_intervals(of_rows(population.draw(patients, seed), counted))
    found: dict[str, bool | None] = {}
    for name, figure in truth.items():
        interval = metrics.intervals.get(name)
        found[name] = None if interval is None or figure is None else interval.low <= figure <= interval.high
    return found


def coverage(
    population: Population,
    patients: int,
    sets: int,
    counted: Counted = "images",
    jobs: int = 1,
    population_size: int = POPULATION,
) -> dict[str, float]:
    """Return the part of ``sets`` test sets in which the interval of each figure of SHOWN holds the
    truth; NaN where it never had one. ``counted``: what the figures are of; "blindly": nobody is
    told of the patients."""
    every = of_rows(population.draw(population_size, seed=-1 % 2**32), counted)
    known = evaluate(every.labels, every.probabilities, every.classes).flat()
    truth = {name: known[name] for name in SHOWN}
    hits, tried = Counter[str](), Counter[str]()
    work = partial(inside, population, patients, truth, counted)
    with ProcessPoolExecutor(jobs) as pool:
        for found in map(work, range(sets)) if jobs == 1 else pool.map(work, range(sets), chunksize=8):
            hits.update(name for name, hit in found.items() if hit)
            tried.update(name for name, hit in found.items() if hit is not None)
    return {name: hits[name] / tried[name] if tried[name] else float("nan") for name in SHOWN}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the coverage of every figure in each situation. Returns 0."""
    parser = argparse.ArgumentParser(
        description="Count how often intervals at 95 % hold what they should.", allow_abbrev=False
    )
    parser.add_argument(
        "--sets", type=int, default=2000, help="test sets of each kind (%(default)s: figures are then good to 1 %%)"
    )
    parser.add_argument("--patients", type=int, default=150, help="patients in each (%(default)s)")
    parser.add_argument("--counted", choices=get_args(Counted), help="the situations of this kind alone (default: all)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (%(default)s)")
    chosen = parser.parse_args(arguments)
    several = Population(images=9, alike=0.6)
    columns: dict[str, tuple[Population, Counted]] = {
        "2 classes, images alone": (Population(), "images"),
        "3 classes, images alone": (Population(classes=3), "images"),
        "2 classes, patients": (several, "images"),
        "3 classes, patients": (replace(several, classes=3), "images"),
        "2 classes, patients not told": (several, "images, blindly"),
        "2 classes, counted in patients": (several, "patients"),
        "3 classes, counted in patients": (replace(several, classes=3), "patients"),
    }
    results = {
        title: coverage(population, chosen.patients, chosen.sets, counted, chosen.jobs)
        for title, (population, counted) in columns.items()
        if chosen.counted in (None, counted)
    }
    sets = f"of {chosen.sets} sets of {chosen.patients} patients"
    print(f"{sets:24}{''.join(f'{title:>32}' for title in results)}")
    for name in SHOWN:
        print(f"{name:24}{''.join(f'{100 * column[name]:30.1f} %' for column in results.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
