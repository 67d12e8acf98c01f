"""Write the page of ``medmambase-compare``: whether one network is better, and all differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmambase.evaluation.comparison import Difference
from medmambase.evaluation.report.template import template, text, with_glossary
from medmambase.files import write_text


@dataclass(frozen=True)
class Compared:
    """What was found of ``counted`` images, or patients; patients ``left_out`` have images
    with different labels. ``pairs``: for each pair of runs "mcnemar" and "delong", as the JSON of
    medmambase-compare has them."""

    counted: int
    left_out: int
    figures: Mapping[str, Difference]
    pairs: Sequence[Mapping[str, Any]]
    conclusion: str

    @property
    def method(self) -> str | None:
        """That of the intervals, where there are some."""
        return next((one.interval.method for one in self.figures.values() if one.interval), None)


def write_compare_page(
    path: Path,
    sides: Sequence[Sequence[str]],
    patients: int | None,
    notes: Sequence[str],
    of_images: Compared,
    of_patients: Compared | None,
    shown: Mapping[str, str],
) -> Path:
    """Write a page without scripts or outside references to ``path``, and return it.

    ``sides``: the names of the runs of A and of B. ``patients``: how many, None where they are not
    known. ``shown``: the figures that have a row, and their names. Raises OSError.
    """
    page = with_glossary(template("compare.html.jinja", {"p": p_value}), {
        "style": text("report.css"), "sides": sides, "patients": patients, "notes": notes, "of_images": of_images,
        "of_patients": of_patients, "shown": shown,
    })  # fmt: skip  # a table
    write_text(path, page)
    return path


def p_value(p: float | None) -> str:
    """Show a p-value to four digits, "n/a" where there is none."""
    return "n/a" if p is None or math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
