"""Write the page and the model card of a pretraining from the files of its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictInt, with_config

from medmambase import run_folder
from medmambase.evaluation.report import run_files
from medmambase.evaluation.report.glossary import GLOSSARY
from medmambase.evaluation.report.pictures import read_picture
from medmambase.evaluation.report.run_files import Number, ReportError, Skipped
from medmambase.evaluation.report.template import template, text
from medmambase.files import write_text
from medmambase.plural import count_of
from medmambase.validation import PART

# Settings that one kind of pretraining does not use, by whether its pictures are drawn.
UNUSED = {True: {"on_bad", "hidden", "noise"}, False: {"targets", "scenes", "speckle", "structure"}}
WORDS = ("auc", "interval")  # of the glossary


@with_config(PART)
@dataclass(frozen=True)
class Described:
    """``config.json``: the network, the settings, and the machine."""

    model: dict[str, Any]
    pretraining: dict[str, Any]
    preprocessing: dict[str, Any]
    device: str
    engine: str
    precision: str
    parameters: StrictInt
    start: str


@dataclass(frozen=True)
class Structure:
    name: str
    auc: Number
    low: Number
    high: Number
    present: StrictInt
    pictures: StrictInt


@with_config(PART)
@dataclass(frozen=True)
class Results:
    """``pretraining.json``: what was learned from, and the figures on pictures held out."""

    learned: tuple[str, ...]
    sha256: str
    half: StrictBool
    images_seen: StrictInt
    unrecorded: StrictBool
    held_out: StrictInt
    losses: dict[str, Number]
    first_losses: dict[str, Number]
    mean_auc: Number
    structures: tuple[Structure, ...]
    mean_low: Number = None
    mean_high: Number = None


@with_config(PART)
@dataclass(frozen=True)
class Taken:
    """``data_report.json``: what could not be read of the images."""

    skipped: tuple[Skipped, ...]


def write_pretraining_page(folder: Path) -> Path:
    """Write ``folder/report.html``, one page without scripts or outside references, and
    ``MODEL_CARD.md``; return the page's path. The same files give the same bytes.

    Raises ReportError for files that are damaged or missing, OSError where it cannot be written.
    """
    config = run_files.read(folder / run_folder.DESCRIPTION, Described)
    results = run_files.read(folder / run_folder.PRETRAINING, Results)
    if config is None or results is None:
        raise ReportError(f"{folder} is not the folder of a finished pretraining; continue it with --resume {folder}")
    taken = run_files.read(folder / run_folder.DATA_REPORT, Taken)
    facts = {
        "name": folder.resolve().name,
        "config": config,
        "results": results,
        "skipped": taken.skipped if taken else (),
        "environment": run_files.read_object(folder / run_folder.ENVIRONMENT) or {},
        "command": run_files.read_text(folder / run_folder.COMMAND),
        "weights": run_folder.PRETRAINED,
        "sentence": _sentence(results),
        "size": _size(config),
    }
    shown = {name: read_picture(folder / name) for name in (run_folder.CURVES, run_folder.PICTURES)
             if (folder / name).is_file()}  # fmt: skip  # one sentence
    unused = UNUSED[bool(config.pretraining.get("drawn"))]
    page = template("pretraining.html.jinja").render(
        **facts,
        pictures=shown,
        model={name: value for name, value in config.model.items() if name != "num_classes"},  # there is no head
        settings={name: value for name, value in config.pretraining.items() if name not in unused},
        glossary={word: GLOSSARY[word] for word in WORDS},
        style=text("report.css"),
    )
    card = template("pretraining_card.md.jinja", html=False).render(**facts)
    path = folder / run_folder.REPORT
    write_text(folder / run_folder.MODEL_CARD, card)
    write_text(path, page)
    return path


def _size(config: Described) -> str:
    """The ``--model`` of a new network like this one; "SIZE" where none is known to be alike."""
    as_named = config.start.startswith("none") and not config.pretraining.get("depths")
    return str(config.pretraining.get("model") or "nano") if as_named else "SIZE"


def _sentence(results: Results) -> str:
    """Say what was learned: of drawn pictures, which structures are told from their absence; where
    none are asked for, whether the losses have fallen."""
    known = [one for one in results.structures if one.low is not None]
    if known:
        better = sum(one.low > 0.5 for one in known if one.low is not None)
        if not better:
            return (
                f"None of {count_of(len(known), 'structure')} is found better than by guessing: it has learned too "
                f"little. Take more --steps."
            )
        return (
            f"{better} of {count_of(len(known), 'structure')} {'is' if better == 1 else 'are'} found better than by "
            f"guessing: the 95 % interval of the AUC lies above 0.5."
        )
    fallen = [name for name, value in results.losses.items() if _less(value, results.first_losses.get(name))]
    risen = [name for name in results.losses if name not in fallen]
    if not risen:
        return "On pictures that were held out the loss has fallen since it was first measured."
    if not fallen:
        return (
            "On pictures that were held out the loss has not fallen since it was first measured: it has learned too "
            "little. Take more --steps, or another --lr."
        )
    both = " and ".join(fallen), " and ".join(risen)
    return f"On pictures that were held out the loss of {both[0]} has fallen, that of {both[1]} has not."


def _less(last: float | None, first: float | None) -> bool:
    return last is not None and first is not None and last < first
