"""A trained network leaves as a file that gives its answers: the same probabilities and calls, what
belongs to them in the file, and a program that prepares pictures."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase import MedMambaSE, ModelConfig, Predictor, Preprocessing, export_run
from medmambase.commands import export
from medmambase.config import Block, ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.images import load
from medmambase.evaluation.calibration import with_temperature
from medmambase.evaluation.predictions import read_predictions
from medmambase.portable import python_api, recipe
from medmambase.portable.network import PortableNetwork
from medmambase.portable.parity import Parity, compare
from medmambase_kernels import ExportError, check_onnx, onnx_session, plain_program

try:
    check_onnx()
    WITHOUT_ONNX = ""
except ImportError as error:
    WITHOUT_ONNX = str(error)
needs_onnx = pytest.mark.skipif(bool(WITHOUT_ONNX), reason=WITHOUT_ONNX)


def small(
    seed: int,
    classes: tuple[str, ...] = ("a", "b", "c"),
    channels: int = 1,
    multi_label: bool = False,
    block: Block = "medmambase",
) -> MedMambaSE:
    torch.manual_seed(seed)
    network = MedMambaSE(
        ModelConfig(
            dims=(8, 16), depths=(1, 1), state=2, in_chans=channels, num_classes=len(classes), multi_label=multi_label,
            block=block,
        ),
        classes=classes, preprocessing=Preprocessing(size=16, channels=channels),
    )  # fmt: skip  # one argument list
    with torch.no_grad():
        network.head.weight.mul_(100)
    return network.eval()


@pytest.fixture
def light(run: Path) -> Path:
    """A finished run with a network that is quickly exported in the place of its own."""
    own = Predictor.load(run, device="cpu").network
    small(0, own.classes, own.preprocessing.channels).save(run / "best")
    (run / "unlike.safetensors").unlink()  # which measures the features of its own
    return run


@needs_onnx
def test_the_command_writes_a_file_that_says_what_it_needs_and_answers_alike(
    light: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(light)]) == 0
    said = capsys.readouterr().out
    path, program = light / "model.onnx", light / "predict_with_model.py"
    assert f"{path.resolve()}: " in said
    tests = (light / "splits.csv").read_text(encoding="utf-8").split(",test")
    assert f"compared on {len(tests) - 1} test images of the run: largest difference of a probability " in said
    assert "called alike 100.0%" in said
    assert "one image on the CPU with 1 thread: " in said
    assert said.endswith(program.read_text(encoding="utf-8"))

    predictor, session = Predictor.load(light, device="cpu"), onnx_session(path, 1)
    files = sorted(images.rglob("*.png"))[:19]
    pixels = np.stack([load(file, predictor.network.preprocessing)[0].permute(1, 2, 0).numpy() for file in files])
    expected = np.stack([one.probabilities for one in predictor(files)])
    for batch in (1, 3, 16):
        (found,) = session.run(None, {"image": pixels[:batch]})
        assert np.abs(found - expected[:batch]).max() <= 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(predictor.classes)
    assert json.loads(about["temperatures"]) == [predictor.temperature]
    assert json.loads(about["preprocessing"]) == predictor.network.preprocessing.to_dict()
    assert json.loads(about["trained_on"])["run"] == "lauf ü"
    assert len(json.loads(about["weights"])[0]) == 64
    # Thresholds are those of the probabilities that the file gives: calibrated ones.
    validated = with_temperature(read_predictions(light / "val" / "predictions.csv"), predictor.temperature)
    points = json.loads(about["operating_points"])
    assert points
    assert predictor.temperature != 1
    for point in points:
        column = validated.probabilities[:, validated.classes.index(point["name"])]
        assert np.isclose(column, point["threshold"], rtol=0, atol=1e-12).any()

    done = subprocess.run(
        [sys.executable, str(program), str(files[0])], capture_output=True, encoding="utf-8", check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip  # one argument list
    shown = ast.literal_eval(done.stdout[done.stdout.index("{") :])
    assert shown == pytest.approx(dict(zip(predictor.classes, expected[0], strict=True)), abs=1e-4)


def test_a_program_of_pytorchs_operators_answers_alike(light: Path) -> None:
    exported = export_run(light, light / "out" / "net.pt2", format="pt2")
    assert exported.parity.holds
    assert exported.program is None
    about = dict.fromkeys(("classes", "about"), "")
    channels = json.loads((light / "best" / "config.json").read_text(encoding="utf-8"))["preprocessing"]["channels"]
    program = torch.export.load(exported.path, extra_files=about)
    assert json.loads(about["classes"]) == list(Predictor.load(light).classes)
    assert program.module()(torch.zeros(5, 16, 16, channels, dtype=torch.uint8)).shape == (
        5,
        len(json.loads(about["classes"])),
    )


@pytest.mark.parametrize("block", ["medmamba", "notebook", "medmamba_v0"])
def test_networks_of_every_block_leave_for_any_number_of_images(block: Block) -> None:
    portable = PortableNetwork(small(0, block=block), temperature=0.7)
    program = plain_program(portable, [portable.example()], [{0: "batch"}]).module()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype=np.uint8)
    predictor = Predictor(portable.network, device="cpu", temperature=0.7)
    expected = np.stack([one.probabilities for one in predictor(pixels)])
    for batch in (1, 3, 16):
        with torch.no_grad():
            found = program(torch.from_numpy(pixels[:batch])).numpy()
        assert np.abs(found - expected[:batch]).max() <= 1e-5


def test_a_file_holds_where_every_probability_and_every_call_does() -> None:
    assert Parity(4, 1e-5, 1.0, 1.0, 1.0, 1).holds
    assert not Parity(4, 2e-5, 1.0, 1.0, 1.0, 1).holds
    assert not Parity(4, 0.0, 0.75, 1.0, 1.0, 1).holds


def test_a_file_is_run_in_batches_of_1_3_and_16_and_one_that_gives_no_numbers_does_not_hold() -> None:
    predictor, sizes = Predictor(small(0), device="cpu"), []

    def nothing(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return np.full((len(images), 3), np.nan, dtype=np.float32)

    parity = compare(predictor, nothing, np.zeros((21, 16, 16, 1), dtype=np.uint8))
    assert sizes[:4] == [1, 3, 16, 1]
    assert parity.difference == float("inf")
    assert not parity.holds


def test_a_file_that_would_answer_otherwise_is_not_left(light: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PortableNetwork.forward
    monkeypatch.setattr(PortableNetwork, "forward", lambda self, image: forward(self, image).flip(1))
    with pytest.raises(ExportError, match=r"model.pt2: not written, since it would not give the network's answers"):
        export_run(light, format="pt2")
    assert not list(light.glob("model.pt2*"))


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_program_prepares_pictures_as_training_does(resize: str, channels: int, tmp_path: Path) -> None:
    how = Preprocessing(size=24, channels=channels, resize=resize)
    module = {"__name__": "program"}
    text = recipe.program("model.onnx", "predict.py", how.size, how.channels, how.resize)
    exec(text.replace("import onnxruntime\n", ""), module)  # noqa: S102  # it is what a user runs
    drawn = np.random.default_rng(0)
    for number, shape in enumerate([(40, 31, 3), (13, 50), (24, 24, 3), (5, 7)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(drawn.integers(0, 256, shape, dtype=np.uint8)).save(path)
        expected = load(path, how)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(module["prepare"](path), expected)
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # lies on its side, as phones store pictures
    Image.fromarray(drawn.integers(0, 256, (40, 31, 3), dtype=np.uint8)).save(turned, exif=exif)
    assert np.array_equal(module["prepare"](turned), load(turned, how)[0].permute(1, 2, 0).numpy())


@needs_onnx
def test_the_networks_of_a_cross_validation_leave_in_one_file(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "läufe"
    folder.mkdir()
    (folder / "crossval.toml").write_text("folds = 2\n", encoding="utf-8")
    for number, temperature in enumerate((0.5, 4.0)):
        small(number).save(folder / f"fold-{number}" / "best")
        text = f'{{"temperature": {temperature}, "points": []}}'
        (folder / f"fold-{number}" / "calibration.json").write_text(text, encoding="utf-8")
        (folder / f"fold-{number}" / "report.html").touch()
    exported = export_run(folder, tmp_path / "both.onnx", images=images)
    assert exported.parity.holds
    assert exported.parity.images == len(list(images.rglob("*.png")))
    about = onnx_session(exported.path, 1).get_modelmeta().custom_metadata_map
    assert json.loads(about["temperatures"]) == [0.5, 4.0]
    assert len(json.loads(about["weights"])) == 2


@needs_onnx
def test_a_network_of_several_labels_leaves_with_its_sigmoids(images: Path, tmp_path: Path) -> None:
    small(0, multi_label=True).save(tmp_path / "several")
    exported = export_run(tmp_path / "several", images=images)
    assert exported.parity.holds
    session = onnx_session(exported.path, 1)
    (found,) = session.run(None, {"image": np.random.default_rng(0).integers(0, 256, (9, 16, 16, 1), dtype=np.uint8)})
    assert abs(found.sum(1) - 1).min() > 1e-3
    assert json.loads(session.get_modelmeta().custom_metadata_map["multi_label"]) is True


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(0).save(tmp_path / "alone")
    with pytest.raises(DataError, match="does not tell where its images lie, so there is nothing to compare"):
        export_run(tmp_path / "alone", format="pt2")
    with pytest.raises(ConfigError, match="format"):
        export_run(run, format="tflite")

    def missing() -> None:
        raise ImportError("ONNX needs onnx, which is not installed; run pip install onnx")

    monkeypatch.setattr(python_api, "check_onnx", missing)
    with pytest.raises(ConfigError, match=r"^--format is onnx, and ONNX needs onnx, .*; run pip install onnx$"):
        export_run(run)
