"""Two networks on the same images: a difference is told from chance, and what is not comparable is
refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from interval_coverage import Population
from medmambase.evaluation import delong
from medmambase.evaluation.comparison import Difference, compare, conclusion, delong_test, matched, mcnemar
from medmambase.evaluation.predictions import MetricsError, Predictions
from medmambase.evaluation.recorded import Interval


def calls(first: list[int], second: list[int]) -> tuple[Predictions, Predictions]:
    names, labels = tuple(map(str, range(len(first)))), np.zeros(len(first), dtype=np.int64)
    one, other = (Predictions(names, labels, np.eye(2)[called], ("a", "b")) for called in (first, second))
    return one, other


def better(predictions: Predictions, seed: int, skill: float) -> Predictions:
    """The same images, seen by another network."""
    rng = np.random.default_rng(seed)
    odds = np.exp(
        rng.normal(size=predictions.probabilities.shape) + skill * np.eye(len(predictions.classes))[predictions.labels]
    )
    return replace(predictions, probabilities=odds / odds.sum(axis=1, keepdims=True))


def test_mcnemar_agrees_with_a_published_example() -> None:
    # Agresti, Categorical Data Analysis: 86 and 150 of 1,600 people changed their mind. z squared
    # is (86 - 150)^2 / 236 = 17.36; the exact p is binomial.
    first = [1] * 86 + [0] * 150 + [0] * 794 + [1] * 570
    second = [0] * 86 + [1] * 150 + [0] * 794 + [1] * 570
    found = mcnemar(*calls(first, second))
    assert (found.only_first, found.only_second) == (150, 86)
    assert (
        found.p == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5), abs=1e-12)
        and abs(found.p - stats.chi2.sf(17.356, 1)) < 2e-5
    )


def test_networks_that_call_alike_do_not_differ() -> None:
    one, other = calls([0, 1, 0, 1], [0, 1, 0, 1])
    assert mcnemar(one, other).p == 1.0
    found = compare([one], [other])
    assert found["accuracy"].difference == 0 and found["accuracy"].p == 1.0


def test_delong_of_two_predictions_is_that_of_their_scores() -> None:
    one = Population().draw(80, seed=2)
    other = better(one, 3, 2.0)
    wanted = delong.paired(one.labels == 1, one.probabilities[:, 1], other.probabilities[:, 1])
    assert delong_test(one, other, 1) == wanted and wanted[2] < 1


def test_a_better_network_is_found_better_and_an_equal_one_is_not() -> None:
    base = Population(classes=3, images=5, alike=0.5).draw(80, seed=0)
    much = compare([better(base, 1, 1.0)], [better(base, 2, 3.0)])["balanced_accuracy"]
    assert much.interval is not None and much.interval.low > 0 and much.p is not None and much.p < 1e-3
    ps = [
        found.p
        for seed in range(20)
        if (found := compare([better(base, 2 * seed, 1.5)], [better(base, 2 * seed + 1, 1.5)])["accuracy"])
    ]
    assert sum(p is not None and p < 0.05 for p in ps) <= 4


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (0.05, 0.01, 0.09, "B is better than A, more than chance explains: its balanced accuracy is higher by 0.050"),
        (
            -0.05,
            -0.09,
            -0.01,
            "A is better than B, more than chance explains: its balanced accuracy is higher by 0.050",
        ),
        (0.02, -0.01, 0.05, "No difference can be told from chance: the balanced accuracies differ by 0.020"),
        (0.0, 0.0, 0.0, "No difference can be told from chance"),
    ],
)
def test_the_conclusion_is_one_sentence(difference: float, low: float, high: float, said: str) -> None:
    seeds = (0.5,) * 2, (0.5 + difference,) * 2
    found = Difference(0.5, 0.5 + difference, Interval(low, high, "bootstrap"), 0.1, *seeds)
    assert conclusion({"balanced_accuracy": found}).startswith(said)
    assert "seed" not in conclusion({"balanced_accuracy": found})
    for nothing in ({}, {"balanced_accuracy": replace(found, interval=None)}):
        assert conclusion(nothing).startswith("It cannot be said whether A or B is better")


def test_of_one_training_a_side_the_conclusion_says_that_another_may_change_it() -> None:
    ends = " is one set of predictions only, and another training may change the result; compare 3 seeds of each."
    for low, firsts, seconds, about in (
        (0.01, (0.5,), (0.6,), " Each side"),
        (-0.01, (0.5,), (0.6,), " Each side"),
        (0.01, (0.5, 0.5), (0.6,), " B"),
        (0.01, (0.5,), (0.6, 0.6), " A"),
    ):
        one = Difference(0.5, 0.6, Interval(low, 0.2, "bootstrap"), 0.1, firsts, seconds)
        said = conclusion({"balanced_accuracy": one})
        assert "on these images" in said and said.endswith(about + ends) and "network" not in said


def test_a_difference_and_its_opposite_are_the_same() -> None:
    base = Population().draw(60, seed=0)
    one, other = better(base, 1, 1.0), better(base, 2, 1.5)
    there, back = compare([one], [other]), compare([other], [one])
    for name, found in there.items():
        assert found.difference == pytest.approx(-back[name].difference, abs=1e-12) and found.p == pytest.approx(
            back[name].p, abs=1e-9
        )


def test_of_few_patients_an_interval_ends_where_a_difference_does() -> None:
    one = replace(Population(classes=3).draw(8, seed=1), patients=tuple("pq" * 4))
    for name, found in compare([one], [better(one, 3, 2.0)]).items():
        most = 2 if name in ("mcc", "kappa", "brier") else 1
        assert found.interval is None or -most <= found.interval.low <= found.difference <= found.interval.high <= most
    wide = compare([one], [better(one, 3, 2.0)])["brier"].interval
    assert wide is not None and (wide.low < -1 or wide.high > 1)


def test_seeds_that_differ_among_themselves_make_a_difference_less_sure() -> None:
    base = Population().draw(200, seed=0)
    steady = compare(
        [better(base, seed, 1.5) for seed in range(3)], [better(base, 9 + seed, 1.8) for seed in range(3)]
    )["accuracy"]
    firsts, seconds = (
        [better(base, start + seed, middle + swing) for seed, swing in enumerate((-1, 0, 1))]
        for start, middle in ((0, 1.5), (9, 1.8))
    )
    swinging = compare(firsts, seconds)
    assert steady.interval is not None and len(steady.firsts) == 3
    wide = swinging["accuracy"].interval
    assert wide is not None and wide.high - wide.low > 2 * (steady.interval.high - steady.interval.low)
    assert "seeds" in wide.method


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("x", "y")}, "the classes are 'a', 'b' in one table, and 'x', 'y' in another; only networks"),
        (
            {"names": tuple("abcd")},
            "the test images differ: '0' and 3 more are in one table only and 'a' and 3 more are in another only",
        ),
        ({"names": ("3", "2", "1", "0")}, "another has them in another order than one table"),
        ({"labels": np.array([0, 0, 1, 0])}, "the true class of '2' is 'a' in one table and 'b' in another"),
    ],
)
def test_predictions_of_other_images_are_refused(change: dict[str, object], words: str) -> None:
    one, other = calls([0, 1, 0, 1], [0, 1, 1, 1])
    with pytest.raises(MetricsError, match=words):
        compare([one], [replace(other, **change)])


def test_a_table_of_another_program_may_have_another_order_and_no_patients() -> None:
    one, other = calls([0, 1, 0, 1], [0, 1, 1, 1])
    one = replace(one, patients=("p", "p", "q", "q"), labels=np.array([0, 0, 1, 1]))
    other = replace(other, labels=np.array([0, 0, 1, 1]), leaked=np.array([True, False, False, False]))
    turned = replace(
        other.rows([2, 0, 3, 1]),
        classes=("b", "a"), labels=1 - other.labels[[2, 0, 3, 1]],
        probabilities=other.probabilities[[2, 0, 3, 1]][:, ::-1],
    )  # fmt: skip  # the same, in other words
    ((first,), (second,)), notes = matched([[one], [turned]])
    assert (second.names, second.classes, second.patients) == (one.names, one.classes, one.patients)
    assert second.labels.tolist() == one.labels.tolist() and second.predicted.tolist() == other.predicted.tolist()
    assert second.leaked.tolist() == other.leaked.tolist() and first.clusters.tolist() == [0, 0, 1, 1]
    assert notes == [
        "1 table names no patients: those of another table are used",
        "included: 1 test image that has a duplicate, or an image of the same patient, in train or val; the report of "
        "a run leaves such images out of its first figures",
    ]
    # Side A counts its images by the patients of B, too.
    ((first,), (second,)), _ = matched([[other], [one]])
    assert first.patients == second.patients == one.patients
    assert matched([[other], [other]])[1][0].startswith("no table names the patients, so each image is treated as")


def test_the_table_that_names_the_patients_of_most_images_is_used() -> None:
    few, most = (
        replace(calls([0] * 4, [0] * 4)[0], patients=patients) for patients in (("p", "", "", ""), ("q", "r", "s", ""))
    )
    for sides in ([[few], [most]], [[most], [few]]):
        ((first,), (second,)), notes = matched(sides)
        assert first.patients == second.patients == most.patients
        assert notes == [
            "1 table names the patients of fewer images: those of another table are used",
            "1 image has no known patient: each counts as a separate patient",
        ]


def test_tables_that_contradict_each_other_about_patients_are_refused_in_either_order() -> None:
    one = replace(calls([0] * 4, [0] * 4)[0], patients=("p", "p", "q", ""))
    for patients, words in (
        (("p", "q", "q", "r"), "'1' is of 'q' in one and of 'p' in another, and '0' of 'p' and 'p'"),
        (("s", "s", "s", ""), "'2' is of 's' in one and of 'q' in another, and '0' of 's' and 'p'"),
    ):
        other = replace(one, patients=patients)
        with pytest.raises(MetricsError, match=words):
            matched([[one], [other]])
        with pytest.raises(MetricsError, match="contradict each other about patients"):
            matched([[other], [one]])
    # Other names for the same patients, as pseudonyms are, contradict nothing, and no order decides
    # whose are used.
    other = replace(one, patients=("y", "y", "x", ""))
    chosen = [matched(sides)[0][0][0].patients for sides in ([[one], [other]], [[other], [one]])]
    assert chosen[0] == chosen[1]


def test_a_path_that_stands_twice_is_refused() -> None:
    one, other = calls([0, 1, 0, 1], [0, 1, 1, 1])
    twice = ("x", "x", "y", "z")
    with pytest.raises(MetricsError, match="2 rows of one table have the path 'x'"):
        matched([[replace(one, names=twice)], [replace(other, names=twice[::-1])]])


def test_equal_probabilities_are_told_where_another_order_of_classes_decides_them() -> None:
    one = calls([0, 1, 0, 1], [0, 1, 1, 1])[0]
    even = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [1.0, 0.0]])
    turned = replace(one, classes=("b", "a"), labels=1 - one.labels, probabilities=even)
    ((_,), (second,)), notes = matched([[one], [turned]])
    assert second.predicted.tolist() == [0, 0, 0, 1]
    assert notes[1].startswith("2 images have two highest probabilities in a table with another order of classes")
    assert len(matched([[one], [replace(one, probabilities=even)]])[1]) == 1  # nothing is decided anew


def test_what_does_not_belong_together_is_left_as_it_is_and_refused() -> None:
    one, other = calls([0, 1, 0, 1], [0, 1, 1, 1])
    for changed in (replace(other, names=tuple("abcd")), replace(other, classes=("x", "y"))):
        ((_,), (second,)), _ = matched([[replace(one, patients=tuple("pqrs"))], [changed]])
        with pytest.raises(MetricsError, match=r"differ|classes"):
            compare([one], [second])


def test_nothing_cannot_be_compared() -> None:
    nothing = Predictions((), np.zeros(0, dtype=np.int64), np.zeros((0, 2)), ("a", "b"))
    with pytest.raises(MetricsError, match="no test images"):
        mcnemar(nothing, nothing)
