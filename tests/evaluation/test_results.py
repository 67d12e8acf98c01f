"""Which recorded values count as others than those computed again."""

from medmambase.evaluation.report.results import differences


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
