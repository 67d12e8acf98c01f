"""Answer what reviewers ask of a study, where the run knows the answer; the rest is left to the
author.

The questions are those that CLAIM (2024), TRIPOD+AI (2024) and STARD-AI (2025) have in common or
add to each other, in words of our own; the lists themselves, with their numbers, are what a journal
wants to see.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medmambase.plural import count_of

CLAIM, TRIPOD, STARD = "CLAIM", "TRIPOD+AI", "STARD-AI"
ALL = (CLAIM, TRIPOD, STARD)

FIGURES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}  # by the names that settings give them
# Settings of the preprocessing in words.
WORDS: dict[object, str] = {
    "letterbox": "Padded to a square", "stretch": "Stretched to a square", 1: "grey", 3: "RGB",
    "percentile": "their own percentiles", "range": "the full range of their type",
}  # fmt: skip  # a table
Facts = Mapping[str, Any]  # as report.py gathers them


@dataclass(frozen=True)
class Answer:
    """A question, which lists ask it, and what the run says; ``text`` None: the author must."""

    topic: str
    question: str
    asked_by: tuple[str, ...]
    text: str | None


def answers(facts: Facts) -> list[Answer]:
    """Answer every question, in the order of a paper."""
    return [Answer(topic, question, asked_by, _said(answer, facts)) for topic, question, asked_by, answer in QUESTIONS]


def _said(answer: Callable[[Facts], str | None] | None, facts: Facts) -> str | None:
    return answer(facts) if answer is not None else None


def _counts(facts: Facts) -> dict[str, int]:
    return {split: sum(row.values()) for split, row in facts["data"].counts.items()} if facts["data"] else {}


def _design(facts: Facts) -> str | None:
    counts = _counts(facts)
    return ", ".join(f"{count_of(count, 'image')} in {split}" for split, count in counts.items()) or None


def _excluded(facts: Facts) -> str | None:
    if not facts["data"]:
        return None
    skipped = len(facts["data"].skipped)
    return (
        "Every file could be read; the software left none out."
        if not skipped
        else f"{count_of(skipped, 'file')} could not be read; the report names them."
    )


def _partition(facts: Facts) -> str | None:
    return f"{facts['data'].method}." if facts["data"] and facts["data"].method else None


def _disjoint(facts: Facts) -> str | None:
    if not facts["data"]:
        return None
    found, metrics = facts["data"].audit.counted, facts["metrics"]
    told = f"Searched for duplicates and for patients in two splits: {found or 'none found'}"
    if found:
        told += ", listed in the reports of the folds" if facts.get("folds") else ", listed in the report"
    if metrics and metrics.patients:
        return f"{told}. The patient of every test image is known ({count_of(metrics.patients, 'patient')})."
    known = metrics.patient_known if metrics else None
    return (
        f"{told}. The patient is known for {known or 'none'} of {count_of(metrics.images, 'test image')}; others may "
        f"share one."
        if metrics
        else f"{told}."
    )


def _preprocessing(facts: Facts) -> str:
    p = facts["config"].preprocessing
    found = (p.get(name) for name in ("resize", "channels", "high_depth"))
    fitted, colours, depth = (WORDS.get(value, value) if isinstance(value, str | int) else value for value in found)
    return (
        f"{fitted} and resized to {p.get('size')} px; {colours}; 16-bit and float images reduced to 8 bits by {depth}."
    )


def _model(facts: Facts) -> str:
    m, parameters = facts["config"].model, facts["config"].parameters
    size = f", {parameters:,} parameters" if parameters is not None else ""
    if "opponent" in m:
        return f"{m['opponent']}, as it was published{size}."
    return f"Block {m.get('block')}, depths {m.get('depths')}, widths {m.get('dims')}{size}."


def _software(facts: Facts) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in facts["environment"].items()) or None


def _training(facts: Facts) -> str:
    t = facts["config"].training
    return (
        f"Recipe {t.get('recipe')}: {t.get('optimizer')}, learning rate {t.get('lr')}, at most {t.get('epochs')} "
        f"epochs in batches of {t.get('batch_size')}, "
        f"augmentation {t.get('augmentation')}, seed {t.get('seed')}; all settings are in the report."
    )


def _selection(facts: Facts) -> str | None:
    config = facts["config"]
    if facts["folds"]:
        by = str(config.training.get("select"))
        best = f"the best {FIGURES.get(by, by)} on the validation images of that fold"
        return f"In each fold the epoch with {best}{config.among}."
    by = config.selected_by or facts["config"].training.get("select")
    return (
        f"Epoch {config.best_epoch}, by validation {FIGURES.get(str(by), by)}{config.among}."
        if config.best_epoch is not None
        else None
    )


def _uncertainty(facts: Facts) -> str | None:
    if not facts["metrics"]:
        return None
    over = facts["headline"].metrics.counted
    if facts["folds"]:
        shared = facts["shared"] and f", and that {facts['shared']},"
        return (
            f"95 % confidence intervals of the figures of all folds together, computed over {over}; run-to-run "
            f"variation{shared} {'are' if shared else 'is'} not included. The report gives the standard deviation over "
            f"the folds."
        )
    return (
        f"95 % confidence intervals of the figures, computed over {over}, from a single training run; run-to-run "
        f"variation is not included."
    )


def _performance(facts: Facts) -> str | None:
    if not facts["headline"] or facts["headline"].cards[0].value is None:
        return None
    metrics = facts["headline"].metrics
    without = f" that {'is' if metrics.images == 1 else 'are'} not leaked" if facts["headline"].leaked else ""
    card = facts["headline"].cards[0]
    return (
        f"{card.name[0].upper()}{card.name[1:]} {card.value:.3f} on {count_of(metrics.images, 'test image')}{without}. "
        f"{facts['headline'].sentence} All figures are in the report."
    )


def _thresholds(facts: Facts) -> str | None:
    if facts["folds"]:
        return "The most probable class, by probabilities that are calibrated on the validation images of each fold."
    if facts["calibrated"] and facts["calibrated"].thresholds:
        return "Each class from the threshold on that has the highest F1 score on the validation images."
    return (
        "The most probable class; operating points were chosen on the validation images only."
        if facts["calibrated"]
        else None
    )


def _openings(facts: Facts) -> str | None:
    count = len(facts["openings"])
    if facts["folds"]:
        return (
            "The test access log in the folder of each fold records how often; whatever was changed after a look, and "
            "tried again, the author knows."
        )
    return (
        f"The test images were looked at {'once' if count == 1 else f'{count} times'}, as the test access log records."
        if count
        else None
    )


def _failures(facts: Facts) -> str | None:
    return (
        "The report shows the most confident mistakes; what they have in common is for the author to say."
        if facts["metrics"]
        else None
    )


def _explained(facts: Facts) -> str | None:
    return "Maps of the evidence, tested by deletion and insertion; see the report." if facts["faithfulness"] else None


QUESTIONS: tuple[tuple[str, str, tuple[str, ...], Callable[[Facts], str | None] | None], ...] = (
    (
        "Title and abstract",
        "Do they name the kind of study, the network, the population and the main result with its uncertainty?",
        ALL,
        None,
    ),
    ("Aim", "Which clinical question, for whom, at which point of care, and what is done today?", ALL, None),
    (
        "Design",
        "Was the data collected before or after the question was asked; which protocol and registration?",
        ALL,
        None,
    ),
    ("Ethics", "Who approved the study, who consented, how were the images made anonymous?", ALL, None),
    ("Data", "Where, when and with which devices were the images taken?", ALL, None),
    ("Participants", "Who was eligible; age, sex and severity, for each split?", ALL, None),
    ("Sizes", "How many images in each part, and why so many?", ALL, _design),
    ("Exclusions", "What was left out, and why?", ALL, _excluded),
    (
        "Reference standard",
        "Who labelled the images, how, how well do they agree, and what were they blinded to?",
        ALL,
        None,
    ),
    ("Preprocessing", "What happens to an image before the network sees it?", ALL, _preprocessing),
    ("Partition", "How were the images divided?", ALL, _partition),
    ("Disjointness", "Is any patient, or any picture, in two parts?", (CLAIM, STARD), _disjoint),
    ("Network", "What is it, exactly?", ALL, _model),
    ("Software", "With which versions?", (CLAIM, TRIPOD), _software),
    ("Training", "How was it trained?", (CLAIM, TRIPOD), _training),
    ("Selection", "How was the final network chosen?", (CLAIM, TRIPOD), _selection),
    ("Thresholds", "Which thresholds are used, and on which images were they chosen?", ALL, _thresholds),
    ("Use of the test set", "How often was it looked at?", (CLAIM, TRIPOD), _openings),
    ("Performance", "How good is it?", ALL, _performance),
    ("Uncertainty", "How certain is that?", ALL, _uncertainty),
    ("Fairness", "Is it as good for every group of people it is meant for?", (TRIPOD, STARD), None),
    ("Failures", "Where is it wrong, and why?", ALL, _failures),
    ("Explanations", "What does it look at, and was that checked?", (CLAIM,), _explained),
    ("External validation", "How good is it on images from elsewhere?", ALL, None),
    ("Limitations", "What may be biased, missing or not transferable?", ALL, None),
    ("Use", "Who would use it, with which supervision, and what would a wrong answer cost?", ALL, None),
    ("Availability", "Where are data, code and weights?", ALL, None),
    ("Funding", "Who paid, and who has an interest?", ALL, None),
)
