"""Write one offline HTML page, and a model card, from the files of a run folder or of a
cross-validation's.

The page itself is ``report.html.jinja`` with ``report.css``, the card ``model_card.md.jinja``.
"""

from collections.abc import Callable
from pathlib import Path

from medmambase import run_folder
from medmambase.config import WITHOUT_SE
from medmambase.evaluation import judged
from medmambase.evaluation.drawing import labels_of
from medmambase.evaluation.judged import AnyMetrics
from medmambase.evaluation.multilabel import MultiLabelMetrics
from medmambase.evaluation.predictions import MetricsError
from medmambase.evaluation.report import checklist, run_files
from medmambase.evaluation.report.headline import headline
from medmambase.evaluation.report.pictures import Picture, read_picture
from medmambase.evaluation.report.results import accesses
from medmambase.evaluation.report.run_files import ReportError
from medmambase.evaluation.report.summary import about_means, about_patients, figure, shared_images
from medmambase.evaluation.report.template import template, text, with_glossary
from medmambase.files import write_text

__all__ = ["ReportError", "write_report"]

PICTURE_BYTES = 4_500_000  # as base64, all pictures together: the page stays below 5 MB, small enough to send
# What is short in the files of a run, in whole words; anything else stays as it is.
IN_WORDS = {
    "Wilson": "Wilson interval, images as units",
    "Wilson, of patients": "Wilson interval, patients as units",
    "mean of the classes' ends": "mean of the ends of the classes' intervals",
    "Newcombe, of patients": "Newcombe interval, patients as units",
    "bootstrap of images": "bootstrap over images",
    "bootstrap of patients": "bootstrap over patients",
    "bootstrap of images, widened": "bootstrap over images, widened by classes that are all right or all wrong",
    "bootstrap of patients, widened": "bootstrap over patients, widened by classes that are all right or all wrong",
    "bootstrap of images, gaps scaled": "bootstrap over images; gaps between confidence and accuracy scaled",
    "bootstrap of patients, gaps scaled": "bootstrap over patients; gaps between confidence and accuracy scaled",
    **checklist.FIGURES,
    "highest sensitivity + specificity on val": "highest sensitivity + specificity on the validation images",
    "sensitivity of 95% on val": "sensitivity of at least 95 % on the validation images",
}
# Figures of all classes together: name, words of the page, entry of the glossary, words of the card
OF_ALL = (
    ("accuracy", "accuracy", "accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy", "accuracy", "balanced accuracy"),
    ("auc", "AUC", "auc", "AUC"),
    ("mcc", "MCC (Matthews' correlation)", "kappa", "MCC"),
    ("kappa", "Cohen's kappa", "kappa", "kappa"),
    ("brier", "Brier score", "brier", "Brier score"),
    ("ece", "calibration error", "calibration", "calibration error"),
)
OF_SEVERAL = (
    ("auc", "AUC, mean of the classes", "auc", "macro AUC"),
    ("ap", "average precision, mean of the classes", "ap", "macro average precision"),
    ("f1", "F1 score, mean of the classes", "f1", "macro F1 score"),
    ("balanced_accuracy", "balanced accuracy, mean of the classes", "accuracy", "balanced accuracy"),
    ("subset_accuracy", "subset accuracy", "subset-accuracy", "subset accuracy"),
    ("hamming_loss", "Hamming loss", "hamming-loss", "Hamming loss"),
    ("brier", "Brier score", "brier", "Brier score"),
    ("ece", "calibration error", "calibration", "calibration error"),
)
MOST_LINES = 200  # skipped files and notes on the page; data_report.json has them all


def write_report(run: Path, other: Path | None = None) -> Path:
    """Write ``run/report.html``, one page without scripts or outside references, below 5 MB, and
    ``run/MODEL_CARD.md``. Returns the page's path. ``other``: the folder of an evaluation of the
    network on other images, which gets a page of its figures, and no card.

    Only ``config.json`` must be there; a missing result becomes a sentence. The same files give the
    same bytes.
    Raises ReportError for a folder without ``config.json``, a broken JSON or PNG file, or JSON of
    another shape.
    """
    described = run / run_folder.DESCRIPTION
    config = run_files.read_network(described) if other else run_files.read(described, run_files.Config)
    if config is None:
        raise ReportError(f"{run} is not a run folder: it has no config.json; wanted the folder that training wrote")
    explained = {
        kind: sorted(path.relative_to(run).as_posix() for path in (run / run_folder.EXPLAIN).glob(names))
        for kind, names in (("se", run_folder.SE_STAGES), ("sheet", run_folder.SHEETS))
    }
    test, explain = run_folder.TEST, run_folder.EXPLAIN
    drawn = run_folder.CONFUSION, run_folder.ROC, run_folder.PR
    of_patients = (f"{run_folder.BY_PATIENT}/{name}" for name in drawn)
    of_test = *drawn, run_folder.RELIABILITY, run_folder.MISTAKES, run_folder.ANSWERED, *of_patients
    duplicates = [f"{run_folder.AUDIT}/{name}" for name in (run_folder.DUPLICATES, run_folder.DUPLICATES_BEFORE)]
    duplicates = [name for name in duplicates if (run / name).is_file()][:1]
    wanted = [
        *(f"{test}/{name}" for name in of_test),
        run_folder.CURVES,
        *duplicates,
        f"{explain}/{run_folder.FAITHFULNESS_CURVES}",
        f"{explain}/{run_folder.GATES}",
        *explained["sheet"],
        *explained["se"],
    ]
    at, figures = other or run, other or run / test
    if other:
        found, too_large = _album(other, list(of_test))
        pictures, left_out = {f"{test}/{name}": one for name, one in found.items()}, [f"{test}/{x}" for x in too_large]
    else:
        pictures, left_out = _album(run, wanted)
    metrics = _metrics(figures / run_folder.METRICS)
    first = headline(metrics) if metrics else None
    folds = None if other else run_files.read(run / run_folder.FOLDS, run_files.Folds)
    facts: dict[str, object] = {
        "name": at.resolve().name,
        "examined": run_files.read(other / run_folder.DATA_REPORT, run_files.Examined) if other else None,
        "run_name": run.resolve().name,
        "config": config,
        "data": None if other else run_files.read(run / run_folder.DATA_REPORT, run_files.DataReport),
        "metrics": metrics,
        "headline": first,
        "several": isinstance(metrics, MultiLabelMetrics) or bool(config.model.get("multi_label")),
        "overall": OF_SEVERAL if isinstance(metrics, MultiLabelMetrics) else OF_ALL,
        "folds": folds,
        "shared": shared_images(len(folds.folds)) if folds else "",
        "about_patients": about_patients(first.metrics) if first else "",
        "about_means": about_means(first.metrics) if first else "",
        "about_card_means": about_means(first.metrics, ("sensitivity", "auc")) if first else "",
        "of_crossval": _of_crossval(at),
        "distilled": run_files.read(at / run_folder.LOSS, run_files.Distilled),
        "guessing": {card.figure: card.guessing for card in first.cards} if first else {},
        "calibrated": run_files.read(figures / run_folder.CALIBRATED, run_files.Calibrated),
        "answering": run_files.read(figures / run_folder.ANSWERING, run_files.Answering),
        "benchmark": run_files.read(figures / run_folder.MEDMNIST, run_files.Benchmark),
        "openings": [] if other else _openings(run),
        "faithfulness": run_files.read(run / explain / run_folder.FAITHFULNESS, run_files.Faithfulness),
        "environment": run_files.read_object(run / run_folder.ENVIRONMENT) or {},
        "command": run_files.read_text(run / run_folder.COMMAND),
    }
    facts["answers"] = checklist.answers(facts)
    facts |= {"between": _between, "ends": _ends, "why_none": _why_none}
    filters: dict[str, Callable[..., object]] = {"in_words": _in_words, "zip": zip}
    page = with_glossary(template("report.html.jinja", filters), facts | {
        "pictures": pictures,
        "explained": explained,
        "duplicates": duplicates,
        "left_out": left_out,
        "most_lines": MOST_LINES,
        "has_gates": config.model.get("block") in list(WITHOUT_SE),
        "without_interval": first is not None and _without_interval(first.metrics),
        "undrawn": _undrawn([one.name for one in metrics.per_class]) if metrics else [],
        "style": text("report.css"),
    })  # fmt: skip  # a table
    path = at / run_folder.REPORT
    write_text(path, page)
    if not other:
        card = template("model_card.md.jinja", filters, html=False).render(**facts)
        write_text(run / run_folder.MODEL_CARD, card)
    return path


def _of_crossval(run: Path) -> str:
    """Say of a network of a cross-validation what it is, where the folder above is that of one."""
    if not (run.resolve().parent / run_folder.CROSSVAL).is_file():
        return ""
    if run.resolve().name != run_folder.DISTILLED:
        return "This is the network of one fold of a cross-validation: the report in the folder above covers all folds."
    return (
        "This one network is distilled from those of a cross-validation: it has learned each training image half by "
        "its class and half by the probabilities of the network that has not learned from it. How near it is to them "
        "is in the report in the folder above."
    )


def _undrawn(classes: list[str]) -> list[tuple[int, str]]:
    """The classes that pictures show by their number, from 1, because no font can draw them."""
    labels, _ = labels_of(classes)
    return [
        (number, name)
        for number, (name, label) in enumerate(zip(classes, labels, strict=True), start=1)
        if label == f"no. {number}" != name
    ]


def _between(metrics: AnyMetrics, name: str) -> str:
    """The interval of a figure, as ``Metrics.flat`` names it; nothing where it has none."""
    interval = metrics.intervals.get(name)
    return f"{interval.low:.3f}\u2013{interval.high:.3f}" if interval else ""


def _without_interval(metrics: AnyMetrics) -> bool:
    """Whether a figure of the table of classes has no interval."""
    there = {name for name, value in metrics.flat().items() if "/" in name and value is not None}
    return bool(there - metrics.intervals.keys())


def _why_none(metrics: AnyMetrics, name: str) -> str:
    """Say why a figure has no interval."""
    if metrics.flat()[name] is None:
        return "none: these images do not tell the figure"
    if metrics.images < 2 or metrics.patients == 1:
        return f"none: there are too few {metrics.counted}"
    return f"none: the figure is the same, or undefined, whichever {metrics.counted} are drawn"


def _ends(ends: run_files.Figure) -> str:
    """A figure with its interval, as ``results.figure_of`` gives it."""
    sure = "" if ends.low is None else f" ({figure(ends.low)}\u2013{figure(ends.high)})"
    return f"{figure(ends.figure)}{sure}"


def _in_words(text: str) -> str:
    return IN_WORDS.get(text, text)


def _openings(run: Path) -> list[dict[str, str]]:
    try:
        return accesses(run)
    except MetricsError as error:
        raise ReportError(str(error)) from error


def _metrics(path: Path) -> AnyMetrics | None:
    values = run_files.read_object(path)
    try:
        return None if values is None else judged.from_dict(values)
    except MetricsError as error:
        raise ReportError(f"{path}: {error}") from error


def _album(run: Path, names: list[str]) -> tuple[dict[str, Picture], list[str]]:
    """Those pictures that exist, by their names, and the names of those for which the page has no
    room."""
    pictures: dict[str, Picture] = {}
    left_out = []
    room = PICTURE_BYTES
    for name in names:
        if not (run / name).is_file():
            continue
        picture = read_picture(run / name)
        if len(picture.uri) > room:
            left_out.append(name)
            continue
        room -= len(picture.uri)
        pictures[name] = picture
    return pictures, left_out
