"""The page of a pretraining is made from whole files alone."""

from pathlib import Path

import pytest

from fuzz_pretraining import whole_pretraining
from medmambase import run_folder
from medmambase.evaluation.report.pretraining_page import write_pretraining_page
from medmambase.evaluation.report.run_files import ReportError


def test_a_page_is_not_made_from_a_damaged_list_of_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = whole_pretraining(tmp_path)
    assert "x.png: no picture" in write_pretraining_page(folder).read_text(encoding="utf-8")
    for skipped in (3, ["x.png"], [{"path": 1}]):
        run_folder.write_json(folder / run_folder.DATA_REPORT, {"skipped": skipped})
        with pytest.raises(ReportError, match=r"data_report\.json: data_report\.skipped"):
            write_pretraining_page(folder)
