"""Every argument of the public functions and classes of ``medmambase`` is refused by its name: of
another type, out of its range, a file where a folder is wanted and the other way round.

The settings of ``train``, ``crossval`` and ``pretrain`` are refused in ``test_settings``.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medmambase
import medmambase_kernels
from medmambase import (
    MedMambaSE,
    ModelConfig,
    Predictor,
    PretrainRun,
    TrainConfig,
    crossval,
    export_run,
    pretrain,
    train,
)
from medmambase.config import ConfigError
from medmambase.data.manifest.folders import DataError
from medmambase.model.weights import WeightsError
from medmambase.run_folder import RunFolderError
from medmambase.training.python_api import CrossvalRun, Run

SMALL = ModelConfig(num_classes=2, depths=(1,), dims=(8,))
ERRORS = (TypeError, ValueError, DataError, RunFolderError, WeightsError)
FLAG: list[Any] = ["yes", 1, None]
CALLED: list[Any] = ["print", 3]
# What each argument refuses, by the start of its message after "NAME is"; "file" and "folder" stand
# for one of each.
PATH: list[Any] = [3, None, 1.5, ["runs"]]
SAY = {"say": CALLED}
TOML = {"config": [3, 1.5, "folder", "nowhere"]}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file, a folder, and a network's folder."""
    here = tmp_path_factory.mktemp("places")
    (here / "file").write_text("nothing", encoding="utf-8", newline="\n")
    (here / "folder").mkdir()
    MedMambaSE(SMALL).save(here / "network")
    return {"file": here / "file", "folder": here / "folder", "nowhere": here / "nowhere", "network": here / "network"}


@pytest.fixture(scope="module")
def network() -> MedMambaSE:
    return MedMambaSE(SMALL)


def refused(call: Callable[..., Any], values: dict[str, list[Any]], places: dict[str, Path]) -> None:
    """Every value is refused by a message that begins with the argument's name, or the file."""
    for name, wrong in values.items():
        for value in wrong:
            given = places.get(value, value) if isinstance(value, str) else value
            with pytest.raises(ERRORS) as raised:
                call(**{name: given})
                pytest.fail(f"{name}={value!r} is taken")
            message = str(raised.value)
            start = (
                re.escape(str(given))
                if given is not value
                else rf"(--)?{name}(\[0\])?( is| has| cannot be used| {re.escape(str(value))})"
            )
            assert re.match(start, message), f"{name}={value!r}: {type(raised.value).__name__}: {message}"
            assert re.search(r"must|give|wanted|at least|leave it out|no images found", message), message


def test_a_network_refuses_what_it_cannot_be_made_of(places: dict[str, Path]) -> None:
    values: dict[str, list[Any]] = {
        "config": [3, None, "tiny", {}], "classes": ["ab", 3, [1, 2], ["a", "a"], ["a"]],
        "preprocessing": [3, {}, "letterbox"], "features_only": FLAG,
    }  # fmt: skip  # a table
    assert values.keys() == inspect.signature(MedMambaSE).parameters.keys()
    refused(lambda **given: MedMambaSE(**{"config": SMALL} | given), values, places)
    with pytest.raises(TypeError, match=r"^preset is 'tiny'; it must be a ModelConfig"):
        TrainConfig().model("tiny")  # type: ignore[arg-type]  # the fault
    with pytest.raises(ConfigError, match=r"^ModelConfig is 3; it must be named values"):
        ModelConfig.from_dict(3)


def test_a_network_refuses_what_is_no_image(network: MedMambaSE) -> None:
    for module in (network, network.for_prediction()):
        for image, message in (
            (
                np.zeros((1, 3, 8, 8)),
                "the image is a ndarray; this network wants a torch.Tensor (batch, 3, height, width)",
            ),
            (torch.zeros(3, 8, 8), "the image has shape (3, 8, 8); this network wants (batch, 3, height, width)"),
            (torch.zeros(1, 3, 8, 8).double(), "the image has dtype torch.float64; this network wants torch.float32"),
            (
                torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
                "the image has dtype torch.uint8; this network wants torch.float",
            ),
            (torch.zeros(1, 3, 8, 8, device="meta"), "the image is on meta, and this network on cpu; move one of them"),
        ):
            with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
                module(image)


def test_what_loads_refuses_another_type_and_tells_a_file_from_a_folder(
    places: dict[str, Path], network: MedMambaSE
) -> None:
    refused(network.save, {"folder": [*PATH, "file"]}, places)
    refused(
        lambda **given: MedMambaSE.load(**{"folder": places["network"]} | given),
        {"folder": [*PATH, "file", "folder", "nowhere"], "features_only": FLAG},
        places,
    )
    whole: dict[str, list[Any]] = {
        "source": [*PATH, "file", "folder", "nowhere"], "num_classes": ["2", 0, 2.5, True], "in_chans": ["1", 2, True],
        "features_only": FLAG, "say": CALLED,
    }  # fmt: skip  # a table
    assert whole.keys() == inspect.signature(MedMambaSE.from_pretrained).parameters.keys()
    refused(lambda **given: MedMambaSE.from_pretrained(**{"source": places["network"]} | given), whole, places)
    refused(
        lambda **given: MedMambaSE.from_upstream(**{"source": {}} | given),
        {"source": [*PATH, "file", "folder"], "say": CALLED},
        places,
    )
    for kind in (Run, CrossvalRun, PretrainRun):
        refused(kind, {"folder": [*PATH, "file", "folder", "nowhere"]}, places)
    for path, why in (("file", "it is a file, not a folder"), ("nowhere", "there is no such folder")):
        for load in (Run, Predictor.load, MedMambaSE.load):
            with pytest.raises(ERRORS, match=why):
                load(places[path])


def test_a_predictor_refuses_what_it_cannot_predict_with(places: dict[str, Path], network: MedMambaSE) -> None:
    values: dict[str, list[Any]] = {
        "network": [3, None, "runs/data-001", SMALL], "device": ["nonsense", 1.5],
        "temperature": ["1", 0, -1, None, True], "precision": ["half", 3, None], "appearance": [3, "grey"],
        "limits": [3, "none"], "thresholds": [3, {"0": 0.5}], "training_images": [3, "looks.csv"],
    }  # fmt: skip  # a table
    assert values.keys() | {"backend"} == inspect.signature(Predictor).parameters.keys()
    refused(lambda **given: Predictor(**{"network": network} | given), values, places)
    loading: dict[str, list[Any]] = {"run": [*PATH, "file", "folder", "nowhere"], "calibrated": ["yes", 1]}
    refused(lambda **given: Predictor.load(**{"run": places["network"]} | given), loading, places)
    predictor = Predictor(network)
    refused(lambda **given: list(predictor([], **given)), {"batch_size": ["3", 0, 1.5, None, True]}, places)
    refused(predictor, {"images": [3, None, "folder", "nowhere"]}, places)


def test_an_export_refuses_what_it_cannot_export_or_compare_on(places: dict[str, Path]) -> None:
    values: dict[str, list[Any]] = {
        "run": [*PATH, "file", "folder", "nowhere"], "output": [3, 1.5, ["model.pt2"]], "format": ["tflite", 3, None],
        "images": [3, 1.5, ["images"], "nowhere"], "progress": CALLED,
    }  # fmt: skip  # a table
    assert values.keys() == inspect.signature(export_run).parameters.keys()
    refused(lambda **given: export_run(**{"run": places["network"], "format": "pt2"} | given), values, places)


def data_and(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The function with images to look for, and a place for its runs, unless others are given."""
    return lambda **given: function(**{"data": str(folder), "runs": str(folder / "runs")} | given)


def test_training_refuses_what_is_no_function_no_flag_and_no_file(places: dict[str, Path], tmp_path: Path) -> None:
    of_folds: dict[str, list[Any]] = {"folds": ["3", 1, 2.5], "jobs": ["2", 0, 1.5, True], "distil": FLAG}
    calls: tuple[tuple[Callable[..., Any], dict[str, list[Any]]], ...] = (
        (train, {**TOML, **SAY, "progress": CALLED, "on_epoch": CALLED, "resume": FLAG}),
        (crossval, {**TOML, **SAY, **of_folds}),
        (pretrain, {**TOML, **SAY, "progress": CALLED, "on_round": CALLED, "resume": FLAG}),
    )
    for function, values in calls:
        named = {name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert values.keys() == named - {"data"}, function
        refused(data_and(function, tmp_path), values, places)
        with pytest.raises(ConfigError, match=r"^DATA is \['data'\]; it must be text$"):
            function(["data"])
    assert not (tmp_path / "runs").exists()


def test_the_names_of_the_package_are_all_looked_at_here_or_are_the_kernels() -> None:
    here = {
        "MedMambaSE",
        "Predictor",
        "PretrainRun",
        "Run",
        "CrossvalRun",
        "train",
        "crossval",
        "pretrain",
        "export_run",
    }
    checked = {"ModelConfig", "Preprocessing", "TrainConfig"}  # field by field: see test_config.py
    values = {"PRESETS", "RECIPES", "Prediction", "Exported"}
    kernels = set(medmambase.__all__) & set(medmambase_kernels.__all__)
    assert set(medmambase.__all__) == here | checked | values | kernels
