"""``Predictor``: anything that is an image, in any number, to a class and probabilities."""

import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import sharp_network, small_network

from medmambase import MedMambaSE, Predictor
from medmambase.commands import predict
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import decode, load, normalise
from medmambase.evaluation.predictions import Predictions, write_predictions
from medmambase.model.task import SINGLE_LABEL
from medmambase.model.weights import WeightsError
from medmambase_kernels import BackendError

CLASSES = ("cyst", "solid", "keine")
TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def network() -> MedMambaSE:
    return sharp_network(CLASSES)


@pytest.fixture
def run(network: MedMambaSE, tmp_path: Path) -> Path:
    """A run's folder with a network and a temperature."""
    network.save(tmp_path / "läuf 1" / "best")
    (tmp_path / "läuf 1" / "calibration.json").write_text(
        json.dumps({"temperature": TEMPERATURE, "points": []}), encoding="utf-8"
    )
    return tmp_path / "läuf 1"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven readable files of several kinds, at two depths, and one broken one."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "Bilder ü"
    (folder / "tiefer").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (20 + number, 24), dtype=np.uint8)).save(folder / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "tiefer" / "rgb.png")
    Image.fromarray(rng.integers(0, 60000, (16, 16), dtype=np.uint16)).save(folder / "tiefer" / "deep.png")
    (folder / "tiefer" / "broken.jpg").write_bytes(b"no picture")
    return folder


def expected(network: MedMambaSE, path: Path) -> np.ndarray:
    """By the network itself, one image at a time."""
    with torch.no_grad():
        image = normalise(load(path, network.preprocessing)[0][None], network.preprocessing)
        return network(image).double().softmax(1)[0].numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_folder_becomes_one_prediction_a_file_and_a_broken_file_a_problem(
    batch_size: int, network: MedMambaSE, images: Path
) -> None:
    found = list(Predictor(network, device="cpu")(images, batch_size))
    assert [one.index for one in found] == list(range(8))
    assert {one.path for one in found} == {path for path in images.rglob("*") if path.is_file()}
    for one in found:
        assert one.path is not None
        if one.path.name == "broken.jpg":
            assert one.label is None and one.probabilities is None and one.probability is None and one.by_class == {}
            assert one.problem is not None and "not a known image format" in one.problem and "\n" not in one.problem
            continue
        right = expected(network, one.path)
        assert one.problem is None and one.probabilities is not None
        assert one.probabilities.dtype == np.float64 and np.abs(one.probabilities - right).max() < 1e-5
        assert one.label == network.classes[int(right.argmax())] and one.probability == one.probabilities.max()
        assert list(one.by_class) == ["cyst", "solid", "keine"] and sum(one.by_class.values()) == pytest.approx(1)
    assert len({one.label for one in found}) > 1 or len({one.probability for one in found}) > 5  # images matter


def test_the_network_that_was_given_stays_as_it_was(network: MedMambaSE, images: Path) -> None:
    before = {name: t.clone() for name, t in network.state_dict().items()}
    list(Predictor(network, device="cpu")(images))
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_the_network_that_was_given_stays_where_it_was(network: MedMambaSE, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(MedMambaSE, "to", lambda one, device: moved.append(one) or one)
    Predictor(network, device="cpu")
    assert moved and network not in moved


def as_array(path: Path) -> object:
    return np.asarray(Image.open(path))


def as_array_with_a_channel(path: Path) -> object:
    return np.asarray(Image.open(path))[:, :, None]


def as_rgb_array(path: Path) -> object:
    return np.asarray(Image.open(path).convert("RGB"))


def as_tensor(path: Path) -> object:
    return torch.from_numpy(np.asarray(Image.open(path)).copy())


def as_view(path: Path) -> object:
    return torch.from_numpy(np.asarray(Image.open(path).transpose(Image.Transpose.TRANSPOSE)).copy()).t()


def as_picture(path: Path) -> object:
    return Image.open(path)


def as_text(path: Path) -> object:
    return str(path)


def as_decoded(path: Path) -> object:
    return decode(path.read_bytes(), "percentile")


@pytest.mark.parametrize(
    "given", [as_array, as_array_with_a_channel, as_rgb_array, as_tensor, as_view, as_picture, as_text, as_decoded]
)
@pytest.mark.parametrize("alone", [True, False])
def test_an_image_in_memory_gets_the_prediction_of_its_file(
    given: Callable[[Path], object], alone: bool, network: MedMambaSE, images: Path
) -> None:
    path = images / "2.png"
    one = given(path)
    found = list(Predictor(network, device="cpu")(one if alone else iter([one])))  # type: ignore[arg-type]  # each kind
    assert len(found) == 1 and found[0].problem is None and found[0].index == 0
    assert found[0].path == (path if given is as_text else None)
    assert np.abs(found[0].probabilities - expected(network, path)).max() < 1e-5


def test_a_picture_of_16_bits_and_one_that_lies_on_its_side_are_read_as_their_files_are(
    network: MedMambaSE, images: Path, tmp_path: Path
) -> None:
    turned = Image.open(images / "3.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(network, device="cpu")
    for path in (tmp_path / "turned.png", images / "tiefer" / "deep.png"):
        (found,) = predictor(Image.open(path))
        assert found.probabilities is not None
        assert np.abs(found.probabilities - expected(network, path)).max() < 1e-5
    (upright,) = predictor(images / "3.png")
    assert np.abs(upright.probabilities - expected(network, tmp_path / "turned.png")).max() > 1e-4


def test_an_array_of_colour_images_is_a_stream_of_them() -> None:
    torch.manual_seed(1)
    network = small_network(CLASSES, channels=3)
    stack = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    predictor = Predictor(network, device="cpu")
    together, apart = list(predictor(stack, batch_size=2)), list(predictor(list(stack), batch_size=1))
    assert len(together) == 5
    for one, other in zip(together, apart, strict=True):
        assert np.abs(one.probabilities - other.probabilities).max() < 1e-6


def test_what_is_no_image_in_a_stream_is_a_problem_and_the_stream_goes_on(network: MedMambaSE, images: Path) -> None:
    damaged = Image.open(io.BytesIO((images / "0.png").read_bytes()[:-200]))
    good = np.zeros((8, 8), dtype=np.uint8)
    bad = [
        (images / "nowhere.png", "No such file"),
        (images, "a folder, not an image"),
        (np.zeros((8, 8)), r"an image is float64 (8, 8); wanted"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "move the channels to the end"),
        (np.zeros((5, 8, 8), dtype=np.uint8), "give several grey images as a list"),
        (np.zeros((0, 8), dtype=np.uint8), "an image is uint8 (0, 8)"),
        (torch.zeros(8, 8, dtype=torch.bfloat16), "an image is bfloat16 (8, 8)"),
        (damaged, "truncated"),
        (7, "an image is of type int; wanted a path"),
        (None, "an image is of type NoneType; wanted a path"),
    ]
    mixed = [good, *itertools.chain.from_iterable((one, good) for one, _ in bad)]
    found = list(Predictor(network, device="cpu")(mixed, batch_size=4))  # type: ignore[arg-type]  # on purpose
    assert [one.problem is None for one in found] == [True, *[False, True] * len(bad)]
    for one, (_, words) in zip(found[1::2], bad, strict=True):
        assert one.problem is not None and words in one.problem


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("nowhere", DataError, "nowhere: there is no such file or folder"),
        (np.zeros((8, 8), dtype=np.float32), ValueError, r"an image is float32 \(8, 8\); wanted .*convert it to 0 to"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), ValueError, r"uint8 \(1, 8, 8\); wanted .*move the channels"),
        (7, TypeError, "images is of type int; wanted a path"),
    ],
)
def test_a_single_thing_that_is_no_image_is_refused_before_anything_is_predicted(
    given: object, error: type[Exception], message: str, network: MedMambaSE
) -> None:
    with pytest.raises(error, match=message):
        Predictor(network, device="cpu")(given)  # type: ignore[arg-type]  # on purpose


def test_a_folder_without_images_and_a_batch_of_none_are_refused(network: MedMambaSE, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(DataError, match="no images found"):
        Predictor(network, device="cpu")(tmp_path)
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        Predictor(network, device="cpu")([], batch_size=0)
    assert list(Predictor(network, device="cpu")([])) == []


def test_a_run_brings_its_temperature_and_its_best_folder_does_too(
    run: Path, network: MedMambaSE, images: Path, tmp_path: Path
) -> None:
    path = images / "1.png"
    raw = expected(network, path)
    shutil.copytree(run / "best", tmp_path / "elsewhere")
    for folder, calibrated, temperature in (
        (run, None, TEMPERATURE), (run, True, TEMPERATURE), (run, False, 1.0), (run / "best", None, TEMPERATURE),
        (tmp_path / "elsewhere", None, 1.0),
    ):  # fmt: skip  # a table
        predictor = Predictor.load(str(folder), device="cpu", calibrated=calibrated)
        assert predictor.temperature == temperature and predictor.classes == network.classes
        (found,) = predictor(path)
        assert found.probabilities is not None
        assert np.abs(found.probabilities - SINGLE_LABEL.apply_temperature(raw, temperature)).max() < 1e-5
    assert np.abs(SINGLE_LABEL.apply_temperature(raw, TEMPERATURE) - raw).max() > 1e-3
    with pytest.raises(
        ConfigError, match=r"elsewhere has no calibration\.json, because the run had no validation images"
    ):
        Predictor.load(tmp_path / "elsewhere", calibrated=True)


@pytest.mark.parametrize("content", [
    "{}", "nonsense", '{"temperature": 0}', '{"temperature": "NaN"}', '{"temperature": NaN}', "[1]", "[" * 100_000,
    f'{{"temperature": 1{"0" * 400}}}',
])  # fmt: skip  # the last: too large for a float
def test_a_damaged_calibration_is_named(content: str, run: Path) -> None:
    (run / "calibration.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"calibration\.json: contains no temperature .*medmambase-evaluate"):
        Predictor.load(run, device="cpu")
    assert Predictor.load(run, device="cpu", calibrated=False).temperature == 1.0


def test_what_cannot_be_loaded_says_why(run: Path, network: MedMambaSE, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder; give the folder of a run"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"config\.json: there is no such file"):
        (tmp_path / "empty").mkdir()
        Predictor.load(tmp_path / "empty")
    with pytest.raises(ConfigError, match="device toaster cannot be used"):
        Predictor.load(run, device="toaster")
    with pytest.raises(BackendError, match="torche"):
        Predictor.load(run, device="cpu", backend="torche")
    with pytest.raises(ConfigError, match="temperature is 0"):
        Predictor(network, device="cpu", temperature=0)
    with pytest.raises(ValueError, match="features_only=True and has no head"):
        Predictor(MedMambaSE(network.config, features_only=True), device="cpu")


def test_the_backend_asked_for_computes(network: MedMambaSE, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmambase_kernels import backend

    chosen: list[str | None] = []
    original = backend.choose

    def watched(*arguments: object, **named: object) -> object:
        found = original(*arguments, **named)  # type: ignore[arg-type]  # handed through as they came
        chosen.append(found.name)
        return found

    monkeypatch.setattr(backend, "choose", watched)
    predictor = Predictor(network, device="cpu", backend="torch")
    chosen.clear()
    (found,) = predictor(images / "0.png")
    assert {*chosen} == {"torch"}
    assert found.probabilities is not None
    assert np.abs(found.probabilities - expected(network, images / "0.png")).max() < 1e-5


def test_outputs_that_are_no_numbers_are_a_problem(images: Path) -> None:
    spoiled = small_network(CLASSES)
    with torch.no_grad():
        spoiled.head.bias.fill_(float("nan"))
    (found,) = Predictor(spoiled, device="cpu")(images / "0.png")
    assert found.problem == "the network's outputs are no finite numbers" and found.label is None


def test_a_stream_is_read_ahead_by_some_batches_and_no_further(network: MedMambaSE, images: Path) -> None:
    asked = [0]

    def endless() -> Iterator[Path]:
        while True:
            asked[0] += 1
            yield images / "0.png"

    stream = Predictor(network, device="cpu")(endless(), batch_size=4)
    assert asked[0] == 0  # nothing is done before it is wanted
    for taken, one in enumerate(stream, start=1):
        assert one.problem is None and asked[0] - taken <= 4 * 4 + 4
        if taken == 60:
            break


def test_an_error_of_the_stream_itself_arrives(network: MedMambaSE, images: Path) -> None:
    def breaks() -> Iterator[Path]:
        yield images / "0.png"
        raise LookupError("the list of files ended")

    with pytest.raises(LookupError, match="the list of files ended"):
        list(Predictor(network, device="cpu")(breaks()))


def test_no_spreadsheet_runs_the_name_of_a_predicted_file(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "0.png", images / "=1+1.png")
    assert predict.main([str(run), str(images), "-o", str(tmp_path / "out.csv"), "--device", "cpu"]) == 0
    rows = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert sum(row.startswith("'=1+1.png,") for row in rows) == 1 and not any(row.startswith("=") for row in rows)


def test_an_image_at_the_threshold_is_called(run: Path, network: MedMambaSE, images: Path, tmp_path: Path) -> None:
    (own,) = Predictor.load(run, device="cpu", calibrated=False)(images / "0.png")
    assert own.probabilities is not None
    of_val = np.stack([own.probabilities, np.array([0.6, 0.0, 0.4])])  # on these the threshold is that of the image
    validation = Predictions(("a", "b"), np.array([1, 0]), of_val, network.classes, ("", ""), np.zeros(2, dtype=bool))
    write_predictions(run / "val" / "predictions.csv", validation)
    words = [str(run), str(images / "0.png"), "--at", "solid:sensitivity=1", "-o", str(tmp_path / "out.csv")]
    assert predict.main([*words, "--device", "cpu"]) == 0
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["threshold"]) == float(row["prob_solid"]) and row["called"] == "solid"
