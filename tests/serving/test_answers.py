"""What the page is told of an image is what the network predicts for the file."""

import base64
import io
import json
import re
import sys
from importlib.resources import files as files_of
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import sharp_network

from medmambase import MedMambaSE, ModelConfig, Predictor, Preprocessing
from medmambase.config import ConfigError
from medmambase.data.reading.images import load, normalise
from medmambase.evaluation.calibration import point_at, with_temperature
from medmambase.evaluation.explanation.maps import grad_cam
from medmambase.evaluation.predictions import Predictions, read_predictions, write_predictions
from medmambase.inference.appearance import Appearance
from medmambase.inference.limits import Limits, learn
from medmambase.inference.watch import Seen, Watch
from medmambase.serving.answers import Answers
from write_dicom import dicom_file

CLASSES = ("cyst", "solid", "keine")
CPU = torch.device("cpu")


def know(folder: Path, network: MedMambaSE) -> None:
    """Write what a network knows of its limits, learned from grey pictures."""
    pictures = torch.from_numpy(np.random.default_rng(4).integers(90, 110, (90, 1, 16, 16), dtype=np.uint8))
    with Watch(network) as watch, torch.no_grad():
        network(normalise(pictures, network.preprocessing))
    seen = watch.take()
    first, rest = (Seen(seen.pictures[a:b], (seen.features[0][a:b],), ()) for a, b in ((0, 45), (45, 90)))
    labels, patients = np.random.default_rng(5).integers(0, 3, 45), ("",) * 45
    probabilities = np.random.default_rng(6).dirichlet(np.ones(3), 45)
    found = learn(
        first, rest, probabilities, labels if not network.task.multi_label else np.eye(3)[labels], patients, 2.5
    )
    (folder / "unlike.safetensors").write_bytes(found.detectors[0].to_bytes())
    for sets in found.sets:
        (folder / "conformal.json").write_text(json.dumps(sets.to_dict()), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a network, a temperature, predictions of validation images and their
    appearance."""
    folder = tmp_path_factory.mktemp("läufe") / "läuf 1"
    network = sharp_network(CLASSES)
    network.save(folder / "best")
    (folder / "calibration.json").write_text(json.dumps({"temperature": 2.5, "points": []}), encoding="utf-8")
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 60)
    names = tuple(f"{number}.png" for number in range(60))
    (folder / "val").mkdir()
    patients = tuple(f"patient {number // 2}" for number in range(60))
    labels = rng.integers(0, 3, 30).repeat(2)
    write_predictions(folder / "val" / "predictions.csv", Predictions(names, labels, probabilities, CLASSES, patients))
    grey = Image.fromarray(np.full((16, 16), 40, np.uint8))
    stream = folder / "grey.png"
    grey.save(stream)
    facts = load(stream, network.preprocessing)[1]
    know(folder, network)
    (folder / "appearance.json").write_text(json.dumps(Appearance.of([facts] * 12).to_dict()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def answers(run: Path) -> Answers:
    return Answers(run, CPU)


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2])))


def files(folder: Path) -> list[Path]:
    """Image files of several kinds; the last two are broken."""
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(folder / "photograph.jpg")
    Image.fromarray(rng.integers(0, 60000, (16, 16), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "cut.png").write_bytes((folder / "grey.png").read_bytes()[:200])
    (folder / "notes.txt").write_bytes(b"no picture")
    return [folder / name for name in ("grey.png", "photograph.jpg", "deep.png", "cut.png", "notes.txt")]


def test_an_answer_is_the_calibrated_prediction_of_the_file_and_a_broken_one_is_a_line(
    run: Path, answers: Answers, tmp_path: Path
) -> None:
    paths = files(tmp_path)
    for path, right in zip(paths, Predictor.load(run, device="cpu")(paths, 1), strict=True):
        found = answers.answer(path.read_bytes())
        assert json.loads(json.dumps(found)) == found  # all of it is JSON
        assert found["problem"] == right.problem
        if right.probabilities is None:
            assert list(found) == ["problem"] and "\n" not in found["problem"]
            continue
        assert np.abs(np.array(found["probabilities"]) - right.probabilities).max() < 1e-9
        assert (found["note"], found["patient"]) == (right.note, "")
        assert found["unlike"] is right.unlike is True and tuple(found["set"]) == right.conformal_set != ()
        assert found["map"] is None  # of what nothing should be believed
    assert "more colour" in answers.answer(paths[1].read_bytes())["note"]


def test_an_image_like_the_training_images_is_not_unlike(run: Path, answers: Answers, tmp_path: Path) -> None:
    pixels = np.random.default_rng(7).integers(90, 110, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, facts = answers.answer((tmp_path / "a.png").read_bytes()), answers.facts()
    assert found["unlike"] is False and found["set"]
    assert facts["false_alarms"] == pytest.approx(0.05) and facts["coverage"] == 0.95


def test_of_several_classes_an_image_there_are_neither_sets_nor_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(dims=(8, 16), depths=(1, 1), in_chans=1, num_classes=3, multi_label=True)
    network = MedMambaSE(config, classes=CLASSES, preprocessing=Preprocessing(size=16, channels=1)).eval()
    network.save(tmp_path / "best")
    know(tmp_path, network)
    found = Answers(tmp_path, CPU)
    facts, said = found.facts(), found.answer(files(tmp_path)[0].read_bytes())
    assert facts["multi_label"] and not facts["maps"] and said["map"] is None  # medmambase-explain refuses it, too
    assert facts["coverage"] is None and said["set"] is None
    assert facts["false_alarms"] == pytest.approx(0.05) and said["unlike"] is True


def test_a_dicom_file_tells_its_patient(answers: Answers) -> None:
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    found = answers.answer(dicom_file(bytes(range(256)), (16, 16), 8, "MONOCHROME2", None))
    assert found["problem"] is None and found["patient"] == "P 7"


@pytest.mark.parametrize(("height", "width"), [(20, 30), (900, 1300), (1, 9)])
def test_picture_and_map_are_of_the_same_shape_and_the_map_shows_the_evidence(
    height: int, width: int, run: Path, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers.predictor, "limits", Limits())  # nothing is unlike
    pixels = np.random.default_rng(2).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = answers.answer((tmp_path / "a.png").read_bytes())
    picture, evidence = picture_of(found["picture"]), picture_of(found["map"])
    assert picture.format == "JPEG" and max(picture.size) <= 640
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)
    assert (evidence.format, evidence.mode, evidence.width) == ("PNG", "RGBA", 16)
    assert evidence.height == max(1, round(16 * height / width))  # without the bars of the square
    network = MedMambaSE.load(run / "best")
    image, _ = load(tmp_path / "a.png", network.preprocessing)
    target = torch.tensor([int(np.argmax(found["probabilities"]))])
    cam = grad_cam(network, normalise(image[None], network.preprocessing), target)[0].numpy()
    top = (16 - evidence.height) // 2
    alpha = np.clip(1.4 * cam[top : top + evidence.height], 0, 0.65)
    assert np.abs(np.asarray(evidence)[..., 3] / 255 - alpha).max() < 0.01 and alpha.max() > 0.6


def test_a_picture_of_a_small_image_has_its_pixels(answers: Answers, tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(np.random.default_rng(3).integers(0, 256, (4, 4), dtype=np.uint8), 16, 0), 16, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = np.asarray(picture_of(answers.answer((tmp_path / "a.png").read_bytes())["picture"])).astype(int)
    assert picture.shape == pixels.shape and np.abs(picture - pixels).mean() < 3


def test_operating_points_are_of_calibrated_probabilities_and_that_of_at_comes_first(run: Path) -> None:
    found = Answers(run, CPU, "solid:specificity=0.8")
    validation = with_temperature(read_predictions(run / "val" / "predictions.csv"), 2.5)
    of_images, of_means = found.points[0]
    assert of_images == point_at(validation, "solid:specificity=0.8") and found.chosen
    pairs = validation.probabilities.reshape(30, 2, 3).mean(axis=1)
    means = Predictions(tuple(map(str, range(30))), validation.labels[::2], pairs, CLASSES)
    assert of_means == point_at(means, "solid:specificity=0.8") and of_means.threshold != of_images.threshold
    assert {(point.name, point.rule.split()[0]) for point, _ in found.points[1:]} == {
        (name, figure) for name in CLASSES for figure in ("sensitivity", "specificity")
    }
    facts = found.facts()
    assert json.loads(json.dumps(facts)) == facts
    script = (files_of("medmambase.serving") / "page.js").read_text(encoding="utf-8")
    assert set(re.findall(r"facts\.(\w+)", script)) <= {*facts, "most"}
    assert facts["name"] == run.name and facts["classes"] == list(CLASSES) and facts["maps"] and facts["calibrated"]
    with pytest.raises(ConfigError, match="wanted CLASS:sensitivity"):
        Answers(run, CPU, "solid")


def test_a_network_alone_has_neither_points_nor_calibration(run: Path, tmp_path: Path) -> None:
    MedMambaSE.load(run / "best").save(tmp_path / "alone")
    facts = Answers(tmp_path / "alone", CPU).facts()
    assert (facts["name"], facts["points"], facts["calibrated"]) == ("alone", [], False)
    assert facts["false_alarms"] is facts["coverage"] is None
    with pytest.raises(ConfigError, match=r"val.*predictions\.csv is missing"):
        Answers(tmp_path / "alone", CPU, "solid:sensitivity=0.9")


def test_no_file_is_opened_for_what_a_client_sends(answers: Answers, tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in files(tmp_path)]
    answers.warm_up()
    for content in contents:
        answers.answer(content)  # what is imported when it is first used is now there
    opened: list[object] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # The system is asked how many processors may be used.
        if (
            watching
            and event in ("open", "os.mkdir", "os.rename", "subprocess.Popen")
            and "cgroup" not in str(arguments[0])
        ):
            opened.append(arguments[0])

    sys.addaudithook(hook)  # for good: afterwards it watches nothing
    for content in contents:
        answers.answer(content)
    watching = False
    assert opened == []
