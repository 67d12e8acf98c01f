"""Images that are unlike the training images are noticed, and others are called so as rarely as was
promised."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medmambase import MedMambaSE, ModelConfig, Predictor, Preprocessing
from medmambase.data.manifest.folders import DataError
from medmambase.inference.appearance import Appearance
from medmambase.inference.conformal import Bound, Sets
from medmambase.inference.ensemble import Ensemble
from medmambase.inference.limits import Limits, learn
from medmambase.inference.unlike import FALSE_ALARMS, FEWEST, Detector, Gaussian, bound_of
from medmambase.inference.watch import NUMBERS, Seen, Watch, describe
from medmambase_kernels import use_backend


def network_of(seed: int) -> MedMambaSE:
    torch.manual_seed(seed)
    return MedMambaSE(
        ModelConfig(dims=(8, 16), depths=(1, 1), in_chans=1, num_classes=3), classes=("a", "b", "c"),
        preprocessing=Preprocessing(size=16, channels=1),
    ).eval()  # fmt: skip  # one argument list


def seen_of(points: np.ndarray, pictures: np.ndarray | None = None) -> Seen:
    return Seen(points[:, :3] if pictures is None else pictures, (points,), (points[:, :2],))


def ramps(count: int, seed: int = 0) -> list[np.ndarray]:
    """Soft pictures, brighter to the right."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, 16)[None] * np.ones((16, 1))
    return [(ramp + rng.normal(rng.uniform(20, 40), 3, (16, 16))).clip(0, 255).astype(np.uint8) for _ in range(count)]


def test_the_distance_is_that_of_mahalanobis_with_the_shrunk_covariance() -> None:
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng(0)
    points = rng.normal(0, 1, (60, 5)) @ rng.normal(0, 1, (5, 5)) + 7
    spread = points.std(0)
    shrunk = ledoit_wolf((points - points.mean(0)) / spread, assume_centered=True)[0]
    inverse = np.linalg.inv(shrunk + 1e-4 * np.eye(5))
    away = (rng.normal(7, 3, (9, 5)) - points.mean(0)) / spread
    wanted = np.sqrt(np.einsum("ni,ij,nj->n", away, inverse, away))
    assert Gaussian.of(points).distance(away * spread + points.mean(0)) == pytest.approx(wanted, rel=1e-4)
    constant = np.hstack([points, np.full((60, 1), 2.0)])  # a number that never varies
    assert np.isfinite(Gaussian.of(constant).distance(constant)).all()
    assert np.isfinite(Gaussian.of(np.ones((60, 4))).distance(np.ones((60, 4)))).all()


def test_false_alarms_are_as_rare_as_promised_and_what_lies_elsewhere_is_unlike() -> None:
    rng, alarms = np.random.default_rng(0), []
    for _ in range(60):
        found = Detector.of(
            *(seen_of(rng.normal(0, 1, (120, 6)), rng.normal(0, 1, (120, 4))) for _ in "ab"), ("",) * 120
        )
        assert found is not None and found.thresholds.promised == pytest.approx(0.05)
        new, pictures = rng.normal(0, 1, (500, 6)), rng.normal(0, 1, (500, 4))
        alarms.append((found.distance(new, pictures) > 1).mean())
        assert (found.distance(new + 9, pictures) > 1).all() and (found.distance(new, pictures - 9) > 1).all()
    assert 0.03 < np.mean(alarms) < 0.055


def test_without_enough_images_there_is_no_detector_and_few_patients_promise_little() -> None:
    rng = np.random.default_rng(0)
    many, few = seen_of(rng.normal(0, 1, (FEWEST, 4))), seen_of(rng.normal(0, 1, (FEWEST - 1, 4)))
    assert Detector.of(few, many, ("",) * FEWEST) is None
    assert Detector.of(many, seen_of(np.zeros((0, 4))), ()) is None
    found = Detector.of(many, many, tuple(f"p{row % 4}" for row in range(FEWEST)))
    assert found is not None and found.thresholds.promised == pytest.approx(2 / 5)
    wanted = (
        "are meant to be called so, and at most 40.0% is promised (for each of two thresholds 4 validation patients "
        "can promise 80.0% at most, not 97.5%: that takes 39)"
    )
    assert Limits((found,)).told()[0].endswith(wanted)


def test_where_patients_are_too_few_thresholds_lie_beyond_all_that_was_met() -> None:
    """Patients differ more than their images: as few images exceed the threshold as are wanted,
    whereas those of every ninth patient exceed the largest distance of eight."""
    rng, patients = np.random.default_rng(0), tuple(f"p{row // 10}" for row in range(80))
    wanted, alarms, of_largest = 1 - FALSE_ALARMS / 2, [], []

    def drawn(count: int) -> np.ndarray:
        return np.exp(rng.normal(0, 0.3, (count, 1)) + rng.normal(0, 0.05, (count, 10)))

    for _ in range(200):
        found, new = bound_of(drawn(8).ravel(), patients, wanted), drawn(50)
        met = Bound.of(drawn(8).ravel(), patients, wanted)
        assert (found.level, found.units, found.counted) == (met.level, 8, "patients")
        alarms.append((new > found.threshold).mean())
        of_largest.append((new > met.threshold).mean())
    assert 0.01 < np.mean(alarms) < 0.03 and np.mean(of_largest) > 0.08
    largest = np.exp(np.arange(8.0))  # mean 3.5, standard deviation 6 ** 0.5
    limit = np.exp(3.5 + 2.364624 * (6 * 9 / 8) ** 0.5)  # Student's t at 0.975 with 7 degrees of freedom
    pairs, of_each = np.concatenate([largest, largest / 9]), tuple(f"p{row}" for row in range(8)) * 2
    assert bound_of(pairs, of_each, wanted).threshold == pytest.approx(limit, rel=1e-5)
    one = np.array([1.0, 3.0])
    assert bound_of(one, ("a", "a"), wanted).threshold == 3  # of one patient nobody knows how much they differ
    many = np.exp(rng.normal(0, 1, 400))
    assert bound_of(many, ("",) * 400, wanted) == Bound.of(many, ("",) * 400, wanted)


def test_with_a_detector_of_an_earlier_version_a_run_predicts_and_says_that_nothing_is_known(tmp_path: Path) -> None:
    seen, network = seen_of(np.random.default_rng(0).normal(0, 1, (30, 16))), network_of(0)
    found = Detector.of(seen, seen, ("",) * 30)
    assert found is not None and len(found.picture.mean) < NUMBERS
    network.save(tmp_path / "best")
    (tmp_path / "unlike.safetensors").write_bytes(found.to_bytes())
    predictor = Predictor.load(tmp_path, device="cpu")
    (said,) = predictor(ramps(1)[0])
    assert said.problem is None and said.unlike is None
    assert "no unlike.safetensors of this version (" in predictor.limits.told()[0]


def test_a_detector_comes_back_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "unlike.safetensors"
    seen = seen_of(rng.normal(0, 1, (30, 4)), rng.normal(0, 1, (30, NUMBERS)))
    found = Detector.of(seen, seen, ("",) * 30)
    assert found is not None and Detector.read(path) is None
    content = found.to_bytes()
    path.write_bytes(content)
    again = Detector.read(path)
    assert again is not None and again.thresholds == found.thresholds and again.to_bytes() == content
    place = content.rindex(found.picture.mean.numpy().tobytes())
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    for damaged in (changed, content[:-3], b"", content.replace(b"false_alarms", b"false_alarmz")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"unlike\.safetensors: cannot be read"):
            Detector.read(path)


def test_a_watch_sees_pictures_features_and_logits_of_any_network() -> None:
    network, images = network_of(0), torch.rand(5, 1, 16, 16) * 2 - 1
    with use_backend("torch"), torch.no_grad():
        for one in (network, network.for_prediction(), Ensemble([network, network_of(1)], [1.0, 2.0])):
            with Watch(one) as watch:
                one(images[:3])
                one(images[3:])
            seen = watch.take()
            assert seen.pictures.shape == (5, NUMBERS) and len(seen.features) == len(watch.widths)
            assert seen.features[0] @ network.head.weight.numpy().T + network.head.bias.numpy() == pytest.approx(
                network(images).numpy(), abs=1e-5
            )
            assert seen.logits[0] == pytest.approx(network(images).numpy(), abs=1e-5)
            one(images)
            assert len(watch.take().pictures) == 0  # nothing stays of it


def test_a_watch_does_not_see_what_other_threads_predict() -> None:
    network, images = network_of(0), torch.rand(3, 1, 16, 16) * 2 - 1

    def predict(count: int) -> None:
        with use_backend("torch"), torch.no_grad():
            network(images[:count])

    with ThreadPoolExecutor(1) as other:
        with Watch(network) as watch:
            other.submit(predict, 3).result()
            predict(1)
        seen = watch.take()
        assert [len(one) for one in (seen.pictures, *seen.features, *seen.logits)] == [1, 1, 1]
        other.submit(watch.__enter__).result()  # a stream goes on in another thread
        other.submit(predict, 2).result()
        predict(3)
        watch.__exit__(None, None, None)
        assert len(watch.take().features[0]) == 2


def test_a_picture_is_described_by_its_grey_levels_and_its_texture() -> None:
    picture = torch.tensor([[0.0, 17.0], [255.0, 100.0]])[None, None] / 255
    found = describe(picture.expand(1, 3, 2, 2))[0].numpy()
    wanted = np.zeros(16)
    wanted[[0, 1, 15, 6]] = 0.5
    assert found[:16] == pytest.approx(wanted)
    assert found[16] == pytest.approx(np.std([0, 17, 255, 100]) / 64, rel=1e-5)
    assert found[17:19] == pytest.approx(np.log1p([(17 + 155) / 2, (255 + 83) / 2]), rel=1e-5)
    flat = describe(torch.ones(2, 1, 5, 5))
    assert flat.isfinite().all() and (flat[:, 17:] == 0).all()


def test_a_picture_is_described_by_which_way_is_up() -> None:
    down = torch.linspace(0, 1, 8)[:, None].square().expand(8, 8)[None, None]  # brighter and steeper downwards
    bands, steps = (
        ((0, 2), (1, 4), (3, 6), (5, 7)),
        255 * np.diff(np.linspace(0, 1, 8) ** 2),
    )  # seven steps in four bands
    found = {turns: describe(torch.rot90(down, turns, (2, 3)))[0].numpy() for turns in range(4)}
    assert all(len(one) == NUMBERS for one in found.values())
    assert found[0][20:24] == pytest.approx(np.zeros(4), abs=1e-4)
    assert found[0][24:28] == pytest.approx([np.log1p(steps[a:b].mean()) for a, b in bands], rel=1e-4)
    assert found[2][24:28] == pytest.approx(found[0][27:23:-1], rel=1e-4)  # upside down
    large = torch.nn.functional.interpolate(down, (160, 160))
    assert describe(large)[0, 28:].numpy() == pytest.approx(np.eye(8)[2], abs=1e-3)
    for turns, direction in ((0, 2), (1, 0), (2, 6), (3, 4)):  # of eight, from the right on
        assert found[turns][28:] == pytest.approx(np.eye(8)[direction], abs=1e-5)


@pytest.fixture(scope="module")
def limits() -> Limits:
    """Those of a network of random weights, learned on soft pictures."""
    network, predictions = network_of(0), []
    with use_backend("torch"):
        seen = []
        for seed, count in ((1, 60), (2, 40)):
            with Watch(network) as watch, torch.no_grad():
                pictures = torch.from_numpy(np.stack(ramps(count, seed)))[:, None] / 127.5 - 1
                predictions = network(pictures).double().softmax(1).numpy()
            seen.append(watch.take())
    labels = np.random.default_rng(0).integers(0, 3, 40)
    return learn(seen[0], seen[1], predictions, labels, ("",) * 40, 1.0)


def test_a_predictor_says_what_is_unlike_and_which_classes_are_possible(limits: Limits) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (16, 16), dtype=np.uint8)
    with use_backend("torch"):
        predictor = Predictor(network_of(0), device="cpu", limits=limits)
        new = list(predictor([*ramps(40, 5), noise, "no file"], batch_size=7))
        plain = list(Predictor(network_of(0), device="cpu")([noise]))
        looks = Appearance(12, {}, 0.0, (1.0, *(0.0,) * 15), 0.0)
        notes = [
            next(iter(Predictor(network_of(0), device="cpu", limits=known, appearance=looks)([noise]))).note
            for known in (None, limits)
        ]
        first, second = [noise, *ramps(3)], ramps(4, 6)
        mixed = list(zip(predictor(first, batch_size=1), predictor(second, batch_size=1), strict=True))
        apart = [[one.distance for one in predictor(images, batch_size=1)] for images in (first, second)]
        with ThreadPoolExecutor(2) as threads:
            own = [
                threads.submit(lambda given: [one.distance for one in predictor(given, 1)], x) for x in (first, second)
            ]
            assert [one.result() for one in own] == apart  # of two threads
    assert [[one.distance for one in own] for own in zip(*mixed, strict=True)] == apart  # of two streams at a time
    assert new[40].unlike and new[40].distance is not None and new[40].distance > 1
    assert sum(bool(one.unlike) for one in new[:40]) <= 6
    assert all(one.conformal_set and one.label in one.conformal_set for one in new[:41])
    assert new[41].problem and new[41].unlike is None and new[41].conformal_set is None
    assert notes == ["grey levels unlike those of the validation images", ""]  # the distance tells it
    assert plain[0].unlike is None and plain[0].distance is None and plain[0].conformal_set is None


def test_limits_of_another_network_are_refused(limits: Limits) -> None:
    torch.manual_seed(0)
    wider = MedMambaSE(ModelConfig(dims=(16, 32), depths=(1, 1), in_chans=1, num_classes=3)).eval()
    with pytest.raises(DataError, match="is for 16 features, and the network has 32"):
        Predictor(wider, device="cpu", limits=limits)


def test_networks_that_predict_together_vote(limits: Limits) -> None:
    points, detector = np.ones((1, 16)), limits.detectors[0]
    near = replace(detector, thresholds=replace(detector.thresholds, features=Bound(1e9, 0.9, 9, "images")))
    far = replace(detector, thresholds=replace(detector.thresholds, features=Bound(1e-9, 0.9, 9, "images")))
    pictures = np.zeros((1, NUMBERS)) + describe(torch.from_numpy(ramps(1)[0] / 255).float()[None, None]).numpy()
    for detectors, unlike in (((near, far), False), ((near, far, far), True), ((near, near, far), False)):
        seen = Seen(pictures, (points,) * len(detectors), (np.zeros((1, 3)),) * len(detectors))
        found = Limits(detectors).distance(seen)
        assert found is not None and (found[0] > 1) == unlike
    one, other = Sets(1.0, 0.95, Bound(0.1, 0.95, 99, "images")), Sets(1.0, 0.95, Bound(0.9, 0.95, 99, "images"))
    logits = np.log([[0.6, 0.3, 0.1]])
    for sets, wanted in (((one, other), [1, 1, 1]), ((one, one, other), [1, 0, 0])):
        held = Limits((), sets).holds(Seen(pictures, (), (logits,) * len(sets)), np.exp(logits))
        assert held is not None and held[0].tolist() == [bool(x) for x in wanted]
    assert "at least 90.0%" in Limits((), (one, other)).told()[1]
