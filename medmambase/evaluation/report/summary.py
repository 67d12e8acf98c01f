"""Put test figures into a few lines of text."""

from collections.abc import Iterable, Mapping
from typing import Any

from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.recorded import Interval
from medmambase.plural import count_of

OF_A_CLASS = {
    "sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV", "f1": "F1", "auc": "AUC",
    "ap": "AP",
}  # fmt: skip  # a table


def figure(value: float | None) -> str:
    """Show a figure to three digits, "n/a" where it is undefined."""
    return "n/a" if value is None else f"{value:.3f}"


def summary(metrics: AnyMetrics, of: str = "test") -> str:
    """Show the test figures with 95 % intervals, without leaked images and then with them, and
    class by class, without leaked images too. ``of``: what they are called."""
    area = "AUC" if len(metrics.per_class) == 2 else "macro AUC"  # of two classes there is one curve, and no mean
    lines = [f"{of}: {_headline(metrics, area)}"]
    if metrics.without_leaked:
        leaked = metrics.images - metrics.without_leaked.images
        which = f"{leaked} of {count_of(metrics.images, 'test image')} that {'has' if leaked == 1 else 'have'}"
        these = "this image" if leaked == 1 else "these images"
        lines = [
            f"{of}, without {which} a duplicate, or images of the same patient, in train or val: "
            f"{_headline(metrics.without_leaked, area)}",
            f"{of}, with {these}: {_headline(metrics, area)}",
            f"each class, without {these}:",
        ]
    per_class = metrics.clean.per_class
    wide = max(5, *(len(one.name) for one in per_class))
    lines.append(f"{'class':{wide}}  images  sensitivity  specificity     F1    AUC")
    lines += [
        f"{one.name:{wide}}  {one.support:6}  {figure(one.sensitivity):>11}  {figure(one.specificity):>11}  "
        f"{figure(one.f1):>5}  {figure(one.auc):>5}"
        for one in per_class
    ]
    means: tuple[str, ...] = ("sensitivity",) if len(per_class) == 2 else ("sensitivity", "auc")  # of the first lines
    if isinstance(metrics, MultiLabelMetrics):
        means = ("auc", "ap", "f1")
    return "\n".join([*lines, *filter(None, [about_means(metrics.clean, means), by_patient(metrics.clean)])])


def by_patient(metrics: AnyMetrics) -> str:
    """Show the figures counted in patients, and how many are left out; "" where there are none."""
    left_out = metrics.patients_left_out
    told = f"{count_of(left_out, 'patient')} left out, whose images have different labels" if left_out else ""
    if metrics.by_patient is None:
        return told and f"no figures counted in patients: {told}"
    area = "AUC" if len(metrics.per_class) == 2 else "macro AUC"
    return (
        f"counted in patients ({', '.join(filter(None, [str(metrics.by_patient.images), told]))}), by the mean "
        f"probability of each one's images: {_headline(metrics.by_patient, area)}"
    )


def about_means(metrics: AnyMetrics, figures: Iterable[str] = tuple(OF_A_CLASS)) -> str:
    """Say of which of these figures a mean leaves out classes that do not have it; "" where all
    have all."""
    missing = [
        OF_A_CLASS[name]
        for name in figures
        if metrics.macro[name] is not None and any(getattr(one, name) is None for one in metrics.per_class)
    ]
    return f"A class whose {' or '.join(missing)} is n/a is left out of the mean of that figure." if missing else ""


def about_patients(metrics: AnyMetrics) -> str:
    """Say of whom the patients are not known, and what the intervals make of that; "" where all
    are."""
    if metrics.patients or not metrics.images:
        return ""
    own = "counts as a patient of its own"
    if metrics.patient_known is None:
        return f"No patients are known, so each image {own}: if a patient has several, the intervals are too narrow."
    return (
        f"The patient is known for {metrics.patient_known} of {metrics.images} test images: the intervals are over "
        f"patients, and each image without one {own}."
    )


def shared_images(folds: int) -> str:
    """Say how many training images any two networks of a cross-validation have in common; "" where
    there are none."""
    # Of K parts each network learns from K - 1, and two of them both learn from K - 2.
    share = 100 * (folds - 2) / (folds - 1) if folds > 2 else 0
    return f"any two networks share up to about {share:.0f} % of their training images" if share else ""


def over_folds(told: Mapping[str, Any]) -> str:
    """Show the mean and the standard deviation over the folds of a cross-validation, as
    ``pooling.over_folds`` has them."""
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC"}
    means = (f"{words} {figure(told['mean'][name])} +- {figure(told['spread'][name])}" for name, words in names.items())
    return f"mean and standard deviation over {len(told['folds'])} folds: {', '.join(means)}"


def distilled(told: Mapping[str, Any]) -> str:
    """Show how far a distilled network is from those that it has learned from, as
    ``distillation.measure`` has it."""
    images = {"test": "test images", "val": "validation images of its own"}[told["on"]]
    warning = (
        ""
        if told["on"] == "test"
        else "; these images chose its epoch, and most networks learned from them, so all these figures are too good"
    )
    both = ", ".join(
        f"{words} {figure(one['distilled'])} (the networks {figure(one['networks'])})"
        for name, words in (("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"))
        if (one := told["figures"].get(name))
    )
    return (
        f"distilled:  on {told['images']} {images} its loss against the networks is {told['loss']:.3f} nats, and it "
        f"puts {100 * told['agreement']:.1f} % into the same class as they do; {both}{warning}"
    )


def benchmark(figures: Mapping[str, float | None]) -> str:
    """Show the figures that MedMNIST's own evaluator computes."""
    return f"as MedMNIST's evaluator computes them: ACC {figure(figures['ACC'])}, AUC {figure(figures['AUC'])}"


def _headline(metrics: AnyMetrics, area: str) -> str:
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": area}
    if isinstance(metrics, MultiLabelMetrics):
        names = {
            "auc": "macro AUC", "ap": "macro average precision", "f1": "macro F1",
            "subset_accuracy": "subset accuracy", "hamming_loss": "Hamming loss",
        }  # fmt: skip  # a table
    return ", ".join(
        f"{words} {figure(metrics.flat()[name])}{_between(metrics.intervals.get(name))}"
        for name, words in names.items()
    )


def _between(interval: Interval | None) -> str:
    return f" ({interval.low:.3f}-{interval.high:.3f})" if interval else ""
