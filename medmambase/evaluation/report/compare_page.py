"""Write the page of ``medmambase-compare``: whether one network is better, and all differences."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmambase.evaluation.comparison import Difference
from medmambase.evaluation.report.template import template, text, with_glossary
from medmambase.files import write_text


def write_compare_page(
    path: Path,
    sides: Sequence[Sequence[str]],
    counts: tuple[int, int | None],
    notes: Sequence[str],
    rows: Sequence[tuple[str, Difference]],
    pairs: Sequence[Mapping[str, Any]],
    conclusion: str,
) -> Path:
    """Write a page without scripts or outside references to ``path``, and return it.

    ``sides``: the names of the runs of A and of B. ``counts``: test images, and patients or None
    where they are not known. ``rows``: the differences with their names. ``pairs``: for each pair
    of runs "mcnemar" and "delong", as the JSON of medmambase-compare has them. Raises OSError.
    """
    images, patients = counts
    page = with_glossary(template("compare.html.jinja", {"p": p_value}), {
        "style": text("report.css"), "sides": sides, "images": images, "patients": patients, "notes": notes,
        "rows": rows, "pairs": pairs, "conclusion": conclusion,
        "method": next((one.interval.method for _, one in rows if one.interval), None),
    })  # fmt: skip  # a table
    write_text(path, page)
    return path


def p_value(p: float | None) -> str:
    """Show a p-value to four digits, "n/a" where there is none."""
    return "n/a" if p is None or math.isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"
