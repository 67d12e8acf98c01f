"""Which recorded values count as others than those computed again; and the access log."""

from pathlib import Path

from medmambase.evaluation.report.results import differences, note_access


def test_rounding_makes_no_difference_and_anything_else_is_named() -> None:
    recorded = {"accuracy": 0.9, "intervals": {"auc": [0.71, 0.83], "loss": None}, "classes": ["a", "b"], "images": 6}
    rounded = {**recorded, "accuracy": 0.9 + 1e-12, "intervals": {"auc": [0.71, 0.83 - 1e-12], "loss": None}}
    assert differences(recorded, rounded) == []
    other = {
        "accuracy": 0.90001,
        "intervals": {"auc": [0.71, 0.83, 0.9], "loss": 0.0},
        "classes": ["a", "c"],
        "images": 7,
    }
    assert differences(recorded, other) == ["accuracy", "classes", "images", "intervals/auc", "intervals/loss"]
    assert differences(recorded, {}) == ["accuracy", "classes", "images", "intervals"]


def test_a_damaged_access_log_is_kept_and_goes_on(tmp_path: Path) -> None:
    damaged = b"when,data,images,command\nyesterday,\xff\xfe,6,x\n"
    (tmp_path / "test_access_log.csv").write_bytes(damaged)
    note_access(tmp_path, "scans", 12, "medmambase-evaluate")
    content = (tmp_path / "test_access_log.csv").read_bytes()
    assert content.startswith(damaged) and content.endswith(b",scans,12,medmambase-evaluate\n")
