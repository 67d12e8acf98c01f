"""Write the page of ``medmambase-explain``: each image with its map, and what it is called."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medmambase.evaluation.report.template import template, text
from medmambase.files import write_text
from medmambase.run_folder import FAITHFULNESS_CURVES, GATES, REPORT, SE_STAGES, SHEETS


@dataclass(frozen=True)
class Explained:
    """An image: its ``name``, the file beside the page in which its map lies over it, the class
    that it is ``called``, how probable that is, and its ``truth``, "" where nobody knows it."""

    name: str
    picture: str
    called: str
    probability: float
    truth: str


def write_page(folder: Path, explained: Sequence[Explained], found: Mapping[str, Any]) -> Path:
    """Write ``folder/report.html``, which shows the pictures that lie beside it, and return its
    path. ``found``: the content of ``faithfulness.json``. Raises OSError."""
    details = [path.name for pattern in (SHEETS, GATES, SE_STAGES) for path in sorted(folder.glob(pattern))]
    # A name that is no valid Unicode is an address all the same.
    page = template("explain.html.jinja", {"address": lambda name: quote(os.fsencode(name))}).render(
        style=text("report.css"), explained=explained, found=found, curves=FAITHFULNESS_CURVES, details=details
    )
    path = folder / REPORT
    write_text(path, page)
    return path
