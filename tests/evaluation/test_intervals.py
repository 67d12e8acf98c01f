"""Intervals hold what they should as often as they say, patients count, and DeLong's areas are
DeLong's."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from interval_coverage import SHOWN, Population, coverage, inside
from medmambase.evaluation import delong, intervals
from medmambase.evaluation.intervals import (
    Draws,
    calls_with_intervals,
    confidence_with_intervals,
    evaluate_with_intervals,
)
from medmambase.evaluation.metrics import Metrics, evaluate
from medmambase.evaluation.metrics import areas as weighted_areas
from medmambase.evaluation.predictions import Predictions
from medmambase.evaluation.recorded import range_of


def test_the_quantile_of_95_percent_is_the_one_of_scipy() -> None:
    assert stats.norm.ppf((1 + intervals.CONFIDENCE) / 2) == intervals._Z


def of(labels: list[int], probabilities: np.ndarray, patients: tuple[str, ...] = ()) -> Predictions:
    names = tuple(map(str, range(len(labels))))
    return Predictions(
        names, np.array(labels, dtype=np.int64), probabilities, tuple("abcdef"[: probabilities.shape[1]]), patients
    )


def definition(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's areas and covariance as his paper writes them: every pair compared."""
    x, y = scores[:, positive], scores[:, ~positive]
    wins = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    v10, v01, areas = wins.mean(axis=2), wins.mean(axis=1), wins.mean(axis=(1, 2))
    m, n = x.shape[1], y.shape[1]
    s10 = (v10 - areas[:, None]) @ (v10 - areas[:, None]).T / (m - 1)
    s01 = (v01 - areas[:, None]) @ (v01 - areas[:, None]).T / (n - 1)
    return areas, s10 / m + s01 / n


@settings(max_examples=100, deadline=None)
@given(
    scores=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(4, 25)),
        elements=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]),
    )
)
def test_areas_and_their_covariance_equal_the_definition_with_ties(scores: np.ndarray) -> None:
    positive = np.arange(scores.shape[1]) % 2 == 0
    areas, covariance = delong.areas(positive, scores)
    wanted, spread = definition(positive, scores)
    assert np.allclose(areas, wanted, rtol=0, atol=1e-12) and np.allclose(covariance, spread, rtol=0, atol=1e-12)


def test_two_readers_differ_as_the_definition_says() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    first, second = rng.normal(size=80) + positive, rng.normal(size=80) + 2 * positive
    areas, covariance = definition(positive, np.stack([first, second]))
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert delong.paired(positive, first, second) == pytest.approx(
        (areas[1] - areas[0], error, 2 * stats.norm.sf(abs(areas[1] - areas[0]) / error)), abs=1e-9
    )
    assert delong.paired(positive, first, first) == (0.0, 0.0, 1.0)
    assert all(map(math.isnan, delong.paired(positive, positive * 1.0, -1.0 * positive)[2:]))


@pytest.mark.parametrize("auc", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_an_area_of_which_only_its_value_is_known_has_an_interval_that_a_score_test_agrees_with(auc: float) -> None:
    low, high = delong.extreme(auc, 12, 20)
    assert 0 <= low <= auc <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        spread = end * (1 - end) * (1 + 15 * ((1 - end) / (2 - end) + end / (1 + end))) / 240
        assert abs(auc - end) / math.sqrt(spread) == pytest.approx(stats.norm.ppf(0.975), abs=1e-6)


def test_the_interval_of_a_mean_area_counts_what_goes_together() -> None:
    """Of scorings of one question it is that of their covariances; a question that all, or none,
    answer with yes changes nothing, and one image on a side is taken to vary as much as it can."""
    rng = np.random.default_rng(0)
    yes = np.arange(60) % 3 == 0
    scores = rng.normal(size=(60, 4)) + yes[:, None]
    areas, covariance = delong.areas(yes, scores.T)
    mean, deviation = areas.mean(), math.sqrt(covariance.mean()) / (areas.mean() * (1 - areas.mean()))
    middle, reach = math.log(mean / (1 - mean)), 1.959964 * deviation
    wanted = [1 / (1 + math.exp(-end)) for end in (middle - reach, middle + reach)]
    same = np.repeat(yes[:, None], 4, axis=1)
    found = delong.mean_interval(same, scores)
    assert found == pytest.approx(wanted, abs=1e-6)
    constant = np.stack([np.ones(60, bool), np.zeros(60, bool)], axis=1)
    assert delong.mean_interval(np.hstack([same, constant]), np.hstack([scores, scores[:, :2]])) == found
    assert delong.mean_interval(same[:, :1], scores[:, :1]) == pytest.approx(delong.interval(yes, scores[:, 0]))
    low, high = delong.mean_interval(np.arange(60)[:, None] == 30, scores[:, :1])
    assert low < 0.1 and high > 0.9
    assert delong.mean_interval(constant, scores[:, :2]) is None
    assert delong.mean_interval(same, same.astype(float)) is None


def test_shares_of_images_that_stand_alone_have_wilsons_interval() -> None:
    labels, called = [0] * 9 + [1] * 7, [0] * 6 + [1] * 3 + [1] * 7
    metrics = evaluate_with_intervals(of(labels, np.eye(2)[called]))
    for name, (part, whole) in {
        "accuracy": (13, 16),
        "0/sensitivity": (6, 9),
        "1/sensitivity": (7, 7),
        "1/ppv": (7, 10),
        "0/npv": (7, 10),
    }.items():
        wanted = stats.binomtest(part, whole).proportion_ci(method="wilson")
        found = metrics.intervals[name]
        assert (found.low, found.high) == pytest.approx(
            (wanted.low, wanted.high), abs=1e-12
        ) and found.method == "Wilson"


@pytest.mark.parametrize(("classes", "patients"), list(product((1, 2, 3), (False, True))))
def test_perfect_constant_single_and_absent_images_behave(classes: int, patients: bool) -> None:
    labels = [index % classes for index in range(12)]
    owners = tuple(f"p{index // 2}" for index in range(12)) if patients else ()
    for probabilities in (np.eye(classes)[labels], np.full((12, classes), 1 / classes), np.eye(classes)[[0] * 12]):
        for rows in (range(12), range(1), range(0), range(0, 12, classes)):
            metrics = evaluate_with_intervals(of(labels, probabilities, owners).rows(list(rows)))
            flat = metrics.flat()
            for name, interval in metrics.intervals.items():
                least, most = range_of(name)
                figure = flat[name]
                assert figure is not None and least <= interval.low <= figure <= interval.high <= most, name


def test_a_perfect_predictor_is_not_held_for_infallible() -> None:
    labels = [0] * 20 + [1] * 20
    alone = evaluate_with_intervals(of(labels, np.eye(2)[labels])).intervals
    owned = evaluate_with_intervals(of(labels, np.eye(2)[labels], tuple(f"p{row // 5}" for row in range(40)))).intervals
    for name in ("accuracy", "1/sensitivity", "1/auc"):
        assert owned[name].low < alone[name].low < 0.95 and alone[name].high == owned[name].high == 1.0


@pytest.mark.parametrize("patients", [0, 20, 4])
def test_a_network_that_calls_every_image_the_same_has_intervals_of_its_shares(patients: int) -> None:
    """Whatever is drawn its balanced accuracy is 1/2, or 0 or 1 where a class is not drawn."""
    labels, constant = [0] * 12 + [1] * 8, np.tile([0.75, 0.25], (20, 1))
    owners = tuple(f"p{row * patients // 20}" for row in range(20)) if patients else ()
    metrics = evaluate_with_intervals(of(labels, constant, owners))
    found, flat = metrics.intervals, metrics.flat()
    for name in ("balanced_accuracy", "macro/sensitivity", "macro/specificity"):
        own = [found[f"{index}/{name.partition('/')[2] or 'sensitivity'}"] for index in (0, 1)]
        middle = found[name]
        assert (middle.low, middle.high) == pytest.approx(
            (sum(one.low for one in own) / 2, sum(one.high for one in own) / 2)
        )
        assert middle.low < 0.45 and 0.6 < middle.high and middle.method == "mean of the classes' ends"
    assert found["macro/ppv"] == found["0/ppv"] and flat["macro/ppv"] == flat["0/ppv"] == 0.6
    assert metrics.only_called == "a" and not found.keys() & {"mcc", "kappa"}
    never = found["1/sensitivity"].high  # F1 is 2 J / (1 + J), where all that is known of J is that none of 8 is found
    assert (found["1/f1"].low, found["1/f1"].high) == pytest.approx((0.0, 2 * never / (1 + never)))


@pytest.mark.parametrize("images", [1, 2])
def test_a_mean_counts_how_little_is_known_of_a_class_that_is_all_right_or_all_wrong(images: int) -> None:
    """Of 3, 3 and 40 patients one class is all right, one all wrong, and of the third a half."""
    labels, called = [0] * 3 + [1] * 3 + [2] * 40, [0] * 3 + [2] * 3 + [2, 0] * 20
    rows = np.repeat(np.arange(46), images)
    owners = tuple(f"p{row}" for row in rows) if images > 1 else ()
    probabilities = np.eye(3)[called][rows] * 0.7 + 0.1
    found = evaluate_with_intervals(of([labels[row] for row in rows], probabilities, owners)).intervals
    own, mean = [found[f"{index}/sensitivity"] for index in range(3)], found["macro/sensitivity"]
    assert mean.method == f"bootstrap of {'patients' if owners else 'images'}, widened"
    least, most = 0.5 - (1 - own[0].low) / 3, 0.5 + own[1].high / 3  # of the constant classes alone
    assert 0 < mean.low < least and most < mean.high < 1
    assert found["balanced_accuracy"] == mean


def test_figures_that_are_the_same_have_the_same_interval_and_perfect_ones_have_one_too() -> None:
    labels = [0, 1] * 10
    rough = np.random.default_rng(0).dirichlet((1, 1), 20)
    for owners in ((), tuple(f"p{row // 2}" for row in range(20))):
        found = evaluate_with_intervals(of(labels, rough, owners)).intervals
        assert {found[f"{of}auc"] for of in ("0/", "1/", "macro/", "weighted/")} == {found["auc"]}
        assert found["weighted/sensitivity"] == found["accuracy"]
        perfect = evaluate_with_intervals(of(labels, np.eye(2)[labels], owners))
        assert perfect.flat().keys() - perfect.intervals.keys() == {
            "mcc", "kappa", "brier", "0/ap", "1/ap", "macro/ap", "weighted/ap"
        }  # fmt: skip  # a set
        assert perfect.intervals["balanced_accuracy"].low < 0.9


def test_patients_of_some_images_are_counted_and_told_apart_from_none_and_all() -> None:
    labels, scores = [0, 1] * 5, np.random.default_rng(0).dirichlet((1, 1), 10)
    some = ("p",) * 2 + tuple(f"q{row}" for row in range(7)) + ("",)
    for owners, wanted in ((some, (None, 9, "patients")), ((*some[:9], "r"), (9, None, "patients")),
                           ((), (None, None, "images"))):  # fmt: skip  # a table
        metrics = evaluate_with_intervals(of(labels, scores, owners))
        assert (metrics.patients, metrics.patient_known, metrics.counted) == wanted
        assert Metrics.from_dict(metrics.to_dict()) == metrics


def test_patients_of_several_images_make_intervals_wider_and_the_order_of_images_does_not_matter() -> None:
    predictions = Population(images=9, alike=0.9).draw(40, seed=5)
    known, blind = evaluate_with_intervals(predictions), evaluate_with_intervals(replace(predictions, patients=()))
    assert known.patients == 40 and blind.patients is None and known.flat() == blind.flat()
    for name in ("accuracy", "1/sensitivity", "auc", "mcc", "brier"):
        wide, narrow = known.intervals[name], blind.intervals[name]
        assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)
    assert evaluate_with_intervals(predictions) == known


def test_a_share_has_the_interval_of_as_many_images_as_vary_like_its_patients() -> None:
    spread = math.sqrt(0.6 * 0.4 / 10)  # of ten patients whose images are all alike
    found = intervals._share(0.6, np.array([0.6 - spread, 0.6 + spread]), images=400, patients=10)
    wide = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 9)
    wanted = intervals._wilson(0.6, 9 * wide**2, "Wilson, of patients")  # a variance of ten has nine degrees of freedom
    assert found is not None and (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_percentiles_are_moved_by_the_bias_of_the_bootstrap() -> None:
    drawn = np.linspace(0, 1, 100_001)  # each is its own share
    found = intervals._percentiles("accuracy", 0.6, drawn, 1000, "images")
    bias, wide = 2 * stats.norm.ppf(0.6), stats.t.ppf(0.975, 999) * math.sqrt(1000 / 999)
    wanted = stats.norm.cdf(bias - wide), stats.norm.cdf(bias + wide)
    assert found is not None and (found.low, found.high) == pytest.approx(wanted, abs=1e-4)


def test_one_patient_alone_tells_nothing_of_others() -> None:
    rng = np.random.default_rng(0)
    metrics = evaluate_with_intervals(of(rng.integers(0, 2, 20).tolist(), rng.dirichlet((1, 1), 20), ("p",) * 20))
    areas = {f"{of}auc" for of in ("", "0/", "1/", "macro/", "weighted/")}
    assert metrics.patients == 1 and not metrics.intervals.keys() - areas


def test_images_that_are_leaked_are_left_out_with_intervals_of_their_own() -> None:
    predictions, leaked = Population().draw(60, seed=1), np.arange(60) < 10
    metrics = evaluate_with_intervals(replace(predictions, leaked=leaked))
    assert metrics.without_leaked == evaluate_with_intervals(predictions.rows(np.flatnonzero(~leaked)))
    assert (
        metrics.without_leaked is not None and metrics.without_leaked.intervals and metrics.without_leaked.images == 50
    )


def test_where_every_image_is_leaked_no_figure_is_left() -> None:
    left = evaluate_with_intervals(replace(Population().draw(6, seed=1), leaked=np.ones(6, dtype=bool))).without_leaked
    assert left is not None and left.images == 0 and not left.intervals
    assert set(left.flat().values()) == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "population", [Population(), Population(classes=3, images=9, alike=0.6)], ids=["images alone", "patients"]
)
def test_intervals_hold_the_truth_as_often_as_they_say(population: Population) -> None:
    found = coverage(population, 120, 60, population_size=100_000)
    # Of 60 sets 57 should hold it; 50 or fewer are expected once in 2,000 times.
    # tools/stress/interval_coverage.py counts thousands.
    assert {name: part for name, part in found.items() if part < 51 / 60} == {}


@pytest.mark.slow
def test_intervals_that_are_blind_to_patients_fail() -> None:
    population = Population(images=9, alike=0.6)
    every = population.draw(100_000, seed=7)
    known = evaluate(every.labels, every.probabilities, every.classes).flat()
    truth = {name: known[name] for name in SHOWN}
    held = [inside(population, 120, truth, "images, blindly", seed)["auc"] for seed in range(40)]
    assert sum(map(bool, held)) / 40 < 0.88


def as_defined(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The area below the ROC curve and the average precision, sum by sum as the words have it."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    ordered = weights[:, order]
    ours = np.add.reduceat(ordered * positive[order], starts, axis=1)
    theirs = np.add.reduceat(ordered, starts, axis=1) - ours
    true, false = ours.cumsum(axis=1), theirs.cumsum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (ours * (false[:, -1:] - false + theirs / 2)).sum(axis=1) / (true[:, -1] * false[:, -1])
        precision = true / np.maximum(true + false, np.finfo(float).tiny)
        return auc, (ours * precision).sum(axis=1) / true[:, -1]


@pytest.mark.parametrize("images", [1, 2, 9, 130, 1500])
@pytest.mark.parametrize("digits", [0, 1, 16])
def test_areas_are_the_same_to_the_last_bit_as_in_their_definition(images: int, digits: int) -> None:
    rng = np.random.default_rng(images + digits)
    scores, weights = rng.random(images).round(digits), rng.poisson(1, (300, images)).astype(np.float64)
    for positive in (rng.random(images) < 0.3, np.ones(images, dtype=bool), np.zeros(images, dtype=bool)):
        with np.errstate(divide="ignore", invalid="ignore"):
            found = weighted_areas(positive, scores, weights)
        for one, wanted in zip(found, as_defined(positive, scores, weights), strict=True):
            assert np.array_equal(one, wanted, equal_nan=True)


@pytest.mark.parametrize("patients", [False, True])
def test_an_operating_point_and_the_calibration_have_the_intervals_of_a_test_with_two_answers(patients: bool) -> None:
    predictions = Population(classes=3, images=4 if patients else 1).draw(50, seed=3)
    draws = Draws(predictions.clusters)
    whole = evaluate_with_intervals(predictions, draws)
    for name, (figure, interval) in confidence_with_intervals(predictions, draws).items():
        assert (figure, interval) == (whole.flat()[name], whole.intervals[name])
    truth = predictions.labels == 1
    never = np.zeros(len(truth), dtype=bool)
    calls = [(truth, predictions.probabilities[:, 1] >= 0.3), (truth, never), (never, truth)]
    for (truth, called), found in zip(calls, calls_with_intervals(calls, draws), strict=True):
        answer = of(truth.astype(int).tolist(), np.eye(2)[called.astype(int)], predictions.patients)
        asked = evaluate_with_intervals(answer)
        for name, (figure, interval) in found.items():
            assert (figure, interval) == (asked.flat()[f"1/{name}"], asked.intervals.get(f"1/{name}"))


def test_what_a_bootstrap_draws_is_drawn_once_and_again_only_for_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = np.arange(700) // 2
    drawn: list[int] = []
    original = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or original(seed))
    draws = Draws(clusters)
    first = np.concatenate(list(draws))
    assert np.array_equal(np.concatenate(list(draws)), first) and len(drawn) == 1
    monkeypatch.setattr(intervals, "_KEPT", 10)
    draws = Draws(clusters)
    assert all(np.array_equal(np.concatenate(list(draws)), first) for _ in range(2)) and len(drawn) == 3
    assert first.shape == (2000, 700) and (first[:, 0] == first[:, 1]).all() and (first.sum(axis=1) == 700).all()
