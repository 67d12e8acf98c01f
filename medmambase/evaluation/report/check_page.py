"""Write the page of ``medmambase-check``: what was found among images, and what to do about it."""

import base64
from collections.abc import Sequence
from pathlib import Path

from medmambase import run_folder
from medmambase.evaluation.report import run_files
from medmambase.evaluation.report.template import template
from medmambase.files import write_text

MOST_LINES = 200  # skipped files and notes on the page; data_report.json has them all


def write_check_page(folder: Path, steps: Sequence[tuple[str, str]], mixed: bool = False) -> Path:
    """Write ``folder/report.html`` from the files of a check, one page without scripts or outside
    references, and return its path. ``steps``: what to do next, each with a command or "";
    ``mixed``: the DICOM files are of several modalities.

    Raises ReportError for files that are damaged or missing, OSError where it cannot be written.
    """
    data = run_files.read(folder / run_folder.DATA_REPORT, run_files.DataReport)
    if data is None:
        raise run_files.ReportError(f"{folder} has no {run_folder.DATA_REPORT}; wanted the folder of a check")
    drawn = folder / run_folder.AUDIT / run_folder.DUPLICATES
    picture = base64.b64encode(drawn.read_bytes()).decode("ascii") if drawn.is_file() else ""
    page = template("check.html.jinja").render(
        name=folder.resolve().name, data=data, picture=picture, steps=steps, mixed=mixed, most_lines=MOST_LINES
    )
    path = folder / run_folder.REPORT
    write_text(path, page)
    return path
