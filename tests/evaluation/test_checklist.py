"""What reviewers ask is answered by what is known."""

from pathlib import Path

from fuzz_crossval import whole_crossval
from medmambase.evaluation.report.report import write_report


def test_how_often_test_images_of_a_cross_validation_were_looked_at_stands_in_the_logs_of_its_folds(
    tmp_path: Path,
) -> None:
    page = write_report(whole_crossval(tmp_path)).read_text(encoding="utf-8")
    assert "The test access log in the folder of each fold records how often" in page
