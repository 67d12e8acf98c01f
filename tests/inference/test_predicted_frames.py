"""Predictions of frames, of files and of patients, from clips."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import rows
from PIL import Image
from small_networks import sharp_network

from medmambase import MedMambaSE, Predictor
from medmambase.commands import predict
from medmambase.config import ConfigError
from medmambase.data.reading import images as reading
from medmambase.evaluation.by_patient import of_patients
from medmambase.evaluation.calibration import Calibration, point_at
from medmambase.evaluation.predictions import Predictions, read_predictions, write_predictions

CLASSES = ("cyst", "solid", "keine")


@pytest.fixture(scope="module")
def network() -> MedMambaSE:
    return sharp_network(CLASSES)


@pytest.fixture
def run(network: MedMambaSE, tmp_path: Path) -> Path:
    """A run's folder with a network, and predictions of patients of three images each."""
    found = tmp_path / "läuf 1"
    network.save(found / "best")
    (found / "calibration.json").write_text(json.dumps({"temperature": 2.0, "points": []}), encoding="utf-8")
    p = np.random.default_rng(0).dirichlet((1, 1, 1), 30)
    names, patients = tuple(f"{row}.png" for row in range(30)), tuple(f"p{row // 3}" for row in range(30))
    (found / "val").mkdir()
    write_predictions(
        found / "val" / "predictions.csv", Predictions(names, np.arange(30) // 3 % 3, p, CLASSES, patients)
    )
    return found


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A GIF of 11 frames, a TIFF of 3 and a picture."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "Bilder ü"
    folder.mkdir()
    for name, frames in (("p1 lang.gif", 11), ("p1 kurz.tif", 3), ("p2.png", 1)):
        first, *others = (Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)) for _ in range(frames))
        first.save(folder / name, save_all=True, append_images=others)
    return folder


def frames_of(path: Path) -> Iterator[np.ndarray]:
    with Image.open(path) as picture:
        for frame in range(getattr(picture, "n_frames", 1)):
            picture.seek(frame)
            yield np.asarray(picture.convert("RGB"))


def test_each_frame_is_predicted_like_a_picture_of_its_own(network: MedMambaSE, clips: Path) -> None:
    predictor = Predictor(network, device="cpu")
    for batch in (2, 64):
        found = list(predictor(clips, batch_size=batch, frames="all"))
        named = [(one.path.name if one.path else "", one.frame, one.frames, one.index) for one in found]
        assert named == [
            *(("p1 kurz.tif", number, 3, 0) for number in (1, 2, 3)),
            *(("p1 lang.gif", number, 11, 1) for number in range(1, 12)), ("p2.png", None, 1, 2),
        ]  # fmt: skip  # file by file
        alone = [one for path in sorted(clips.iterdir()) for one in predictor(list(frames_of(path)))]
        for one, other in zip(found, alone, strict=True):
            assert one.probabilities is not None and np.allclose(one.probabilities, other.probabilities, atol=1e-6)
            assert not one.note
    assert len({one.probabilities.tobytes() for one in found if one.probabilities is not None}) == 15
    first = list(predictor(clips))
    assert [(one.frame, one.note) for one in first] == [(None, "frame 1 of 3"), (None, "frame 1 of 11"), (None, "")]
    assert [one.frame for one in predictor(clips, frames="2")] == [1, 3, 3, 9, None]
    with pytest.raises(ConfigError, match="frames is 'last'; it must be first, middle, all, or how many"):
        predictor(clips, frames="last")


def test_a_file_is_opened_twice_whatever_its_length(
    network: MedMambaSE, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[str](), reading.open_regular
    monkeypatch.setattr(reading, "open_regular", lambda path: opened.append(path.name) or real(path))
    assert len(list(Predictor(network, device="cpu")(clips, frames="all"))) == 15
    assert {name: opened.count(name) for name in opened} == dict.fromkeys(("p1 kurz.tif", "p1 lang.gif", "p2.png"), 2)


def test_rows_of_frames_of_files_and_of_patients_agree(run: Path, clips: Path, tmp_path: Path) -> None:
    def table(*words: str) -> list[dict[str, str]]:
        assert predict.main([str(run), str(clips), "-o", str(tmp_path / "x.csv"), "--frames", "all", *words]) == 0
        return rows(tmp_path / "x.csv")

    (clips / "p3 kaputt.gif").write_bytes(b"GIF89a nothing")
    each = table()
    assert [row["path"] for row in each][2:5] == ["p1 kurz.tif#3", "p1 lang.gif#01", "p1 lang.gif#02"]
    assert each[-1]["path"] == "p3 kaputt.gif" and each[-1]["error"]

    def mean(start: str) -> float:
        return float(np.mean([float(row["prob_solid"]) for row in each if row["path"].startswith(start)]))

    files = table("--by-file", "mean")
    assert [(row["path"], row["images"], row["unread"]) for row in files] == [
        ("p1 kurz.tif", "3", "0"), ("p1 lang.gif", "11", "0"), ("p2.png", "1", "0"), ("p3 kaputt.gif", "0", "1"),
    ]  # fmt: skip  # a file a line
    assert [float(row["prob_solid"]) for row in files[:3]] == pytest.approx([mean(r["path"]) for r in files[:3]])
    most = table("--by-file", "max")[1]
    assert float(most["prob_cyst"]) == max(float(r["prob_cyst"]) for r in each if r["path"].startswith("p1 lang"))
    patients = table("--by-patient", "mean", "--group-regex", r"^p\d")
    assert [(row["patient"], row["images"]) for row in patients] == [("p1", "14"), ("p2", "1"), ("p3", "0")]
    assert float(patients[0]["prob_solid"]) == pytest.approx(mean("p1"))
    unknown = table("--by-patient", "mean")
    assert [(row["patient"], row["images"]) for row in unknown][:2] == [("p1 kurz.tif", "3"), ("p1 lang.gif", "11")]


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_threshold_of_patients_is_found_on_patients(run: Path, clips: Path, tmp_path: Path, calibrated: bool) -> None:
    words = ["--by-patient", "mean", "--at", "solid:sensitivity=0.9", *["--calibrated"] * calibrated]
    assert predict.main([str(run), str(clips), "-o", str(tmp_path / "x.csv"), *words]) == 0
    val = of_patients(read_predictions(run / "val" / "predictions.csv"), Calibration(2.0, ()) if calibrated else None)
    assert val
    threshold = point_at(val.predictions, "solid:sensitivity=0.9").threshold
    for row in rows(tmp_path / "x.csv"):
        assert float(row["threshold"]) == pytest.approx(threshold, abs=1e-12)
        assert row["called"] == ("solid" if float(row["prob_solid"]) >= threshold else "not solid")


def test_a_threshold_of_patients_needs_patients_with_several_images(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), str(clips), "--at", "solid:sensitivity=0.9"]
    assert predict.main([*words, "--by-file", "mean"]) == 2
    assert "does not fit --by-file; leave out --at, or take --by-patient mean" in capsys.readouterr().err
    one_each = read_predictions(run / "val" / "predictions.csv").rows(range(0, 30, 3))
    write_predictions(run / "val" / "predictions.csv", one_each)
    assert predict.main([*words, "--by-patient", "mean"]) == 2
    assert "no patient of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(run), str(clips), "--by-file", "mean", "--by-patient", "max"])
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(run), str(clips), "--frames", "0"])
    assert "'0' is not first, middle, all, or how many frames" in capsys.readouterr().err
