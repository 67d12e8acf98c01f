"""Which recorded values count as others than those computed again; and the access log."""

from pathlib import Path

from medmambase.evaluation.report.results import differences, note_access, with_methods_of


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


def test_an_interval_of_another_method_is_no_difference_and_one_of_the_same_method_is() -> None:
    old = {
        "auc": {"low": 0.1, "high": 0.9, "method": "DeLong"},
        "mcc": {"low": 0.0, "high": 0.5, "method": "bootstrap"},
    }
    new = old | {"mcc": {"low": 0.1, "high": 0.6, "method": "other"}, "macro/f1": {"low": 0, "high": 1, "method": "x"}}
    before = {"accuracy": 0.5, "intervals": old, "without_leaked": {"intervals": old}}
    after = {"accuracy": 0.5, "intervals": new, "without_leaked": {"intervals": new}, "patient_known": 3}
    assert differences(before, after) != [] and differences(with_methods_of(after, before), after) == []
    forged = before | {"intervals": old | {"auc": old["auc"] | {"high": 0.8}}, "accuracy": 0.6}
    assert differences(with_methods_of(after, forged), after) == ["accuracy", "intervals/auc/high"]
    assert with_methods_of({}, {}) == {} and with_methods_of(after, {"intervals": 3})["intervals"] == 3


def test_a_damaged_access_log_is_kept_and_goes_on(tmp_path: Path) -> None:
    damaged = b"when,data,images,command\nyesterday,\xff\xfe,6,x\n"
    (tmp_path / "test_access_log.csv").write_bytes(damaged)
    note_access(tmp_path, "scans", 12, "medmambase-evaluate")
    content = (tmp_path / "test_access_log.csv").read_bytes()
    assert content.startswith(damaged) and content.endswith(b",scans,12,medmambase-evaluate\n")
