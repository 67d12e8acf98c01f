"""Write the page and the model card of a pretraining from the files of its folder."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictInt, with_config

from medmambase import run_folder
from medmambase.evaluation.report import run_files
from medmambase.evaluation.report.run_files import Number, ReportError, Skipped
from medmambase.evaluation.report.template import template, text
from medmambase.files import write_text
from medmambase.validation import PART


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
    }
    shown = {name: _picture(folder / name) for name in (run_folder.CURVES, run_folder.PICTURES)}
    page = template("pretraining.html.jinja").render(**facts, pictures=shown, style=text("report.css"))
    card = template("pretraining_card.md.jinja", html=False).render(**facts)
    path = folder / run_folder.REPORT
    write_text(folder / run_folder.MODEL_CARD, card)
    write_text(path, page)
    return path


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii") if path.is_file() else ""
