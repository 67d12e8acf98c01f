"""Frames of files that are shown: on the page of medmambase-serve, and by medmambase-explain."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import write
from PIL import Image
from small_networks import sharp_network

from medmambase import MedMambaSE, Predictor
from medmambase.commands import explain
from medmambase.data.manifest.folders import DataError
from medmambase.data.reading.frames import chosen, file_and_frame, framed_name
from medmambase.data.reading.images import count_frames, load
from medmambase.evaluation.explanation import folder as explanations
from medmambase.inference.loading import frames_of
from medmambase.serving.answers import Answers

CLASSES = ("cyst", "solid")
CPU = torch.device("cpu")
FRAMES = 11


def run_of(folder: Path, frames: str | None) -> Path:
    """A run's folder with a network and a temperature, that learned from these ``frames``."""
    network = sharp_network(CLASSES)
    network.save(folder / "best")
    (folder / "calibration.json").write_text(json.dumps({"temperature": 2.0, "points": []}), encoding="utf-8")
    settings = 'data = "x"\n' + (f'frames = "{frames}"\n' if frames else "")
    (folder / "config.toml").write_text(settings, encoding="utf-8")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A GIF of as many frames as FRAMES, whose name has a number itself."""
    rng = np.random.default_rng(3)
    pictures = [Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)) for _ in range(FRAMES)]
    path = tmp_path / "Film ü #3.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def pixels_in(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")).astype(float).ravel()


def pixels_of(path: Path) -> Iterator[np.ndarray]:
    with Image.open(path) as picture:
        for frame in range(FRAMES):
            picture.seek(frame)
            yield pixels_in(picture)


@pytest.mark.parametrize("wish", [None, "first", "middle", "4", "all"])
def test_the_page_answers_for_the_frames_that_the_run_has_learned_from(
    tmp_path: Path, clip: Path, wish: str | None
) -> None:
    run = run_of(tmp_path / "läuf", wish)
    said = Answers(run, CPU).answer(clip.read_bytes())
    assert said["problem"] is None and said["map"] and said["picture"] and frames_of(run) == (wish or "first")
    every = [[*one.by_class.values()] for one in Predictor.load(run, device="cpu")(clip, frames=wish or "first")]
    assert said["probabilities"] == pytest.approx(np.mean(every, axis=0).tolist(), abs=1e-6)
    assert len(every) == len(chosen(wish or "first", FRAMES))
    assert said["note"] == {
        None: "frame 1 of 11", "first": "frame 1 of 11", "middle": "frame 6 of 11",
        "4": "mean of 4 of 11 frames, shown is frame 7", "all": "mean of 11 of 11 frames, shown is frame 6",
    }[wish]  # fmt: skip  # a table
    frames = list(pixels_of(clip))
    seen = pixels_in(Image.open(io.BytesIO(base64.b64decode(said["picture"].partition(";base64,")[2]))))
    wanted = {None: 0, "first": 0, "middle": 5, "4": 6, "all": 5}[wish]
    assert int(np.argmax([np.corrcoef(seen, one)[0, 1] for one in frames])) == wanted


def test_the_page_counts_the_frames_of_a_dicom_file_that_was_sent(tmp_path: Path) -> None:
    film = np.concatenate([np.full((8, 8), value, dtype=np.uint8) for value in (50, 150, 250)])
    content = write(tmp_path / "a.dcm", film, NumberOfFrames=3, Rows=8, PatientID="P 7").read_bytes()
    assert count_frames(content) == 3 and count_frames(b"nothing") == 1
    answers = Answers(run_of(tmp_path / "run", "all"), CPU)
    said = answers.answer(content)
    assert said["note"] == "mean of 3 of 3 frames, shown is frame 2" and said["patient"] == "P 7"
    assert answers.answer(b"nothing").keys() == {"problem"}


def test_a_frame_that_cannot_be_read_costs_only_itself_on_the_page(tmp_path: Path) -> None:
    film = np.concatenate([np.full((8, 8), value, dtype=np.uint8) for value in (50, 150, 250)])
    path = write(tmp_path / "a.dcm", film, NumberOfFrames=3, Rows=8)
    said = Answers(run_of(tmp_path / "run", "all"), CPU).answer(path.read_bytes()[:-40])
    assert said["note"] == "mean of 2 of 3 frames, shown is frame 2"


def test_settings_that_do_not_tell_the_frames_are_refused_with_their_file(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "last")
    with pytest.raises(DataError, match=r"config\.toml: does not tell which frames were taken .*; restore it"):
        Answers(run, CPU)
    (run / "config.toml").unlink()
    assert frames_of(run) == "first"


def test_the_path_of_a_frame_is_divided_and_that_of_a_file_is_not(tmp_path: Path, clip: Path) -> None:
    for frame in range(FRAMES):
        assert file_and_frame(Path(framed_name(str(clip), frame, FRAMES))) == (clip, frame)
    assert file_and_frame(clip) == (clip, None)
    for name in ("x#0.gif", "x.gif#", "x.gif#0", "x.gif#-1", "x.gif#1.5", "x.gif", "#7"):
        assert file_and_frame(tmp_path / name) == (tmp_path / name, None)
    called_so = tmp_path / "y.gif#07"
    called_so.write_bytes(clip.read_bytes())
    assert file_and_frame(called_so) == (called_so, None)


@pytest.mark.parametrize(("wish", "frame"), [("first", 0), ("middle", 5), ("4", 6), ("all", 5)])
def test_the_frame_in_the_middle_of_those_of_the_run_is_explained(
    tmp_path: Path, clip: Path, wish: str, frame: int
) -> None:
    network = MedMambaSE.load(run_of(tmp_path / "run", wish) / "best")
    Image.new("L", (9, 9), 40).save(clip.parent / "one.png")
    found, bad = explanations.read_subjects(clip.parent, network, 9, wish)
    names = [framed_name(str(clip), frame, FRAMES), str(clip.parent / "one.png")]
    assert not bad and list(found.names) == names
    assert torch.equal(found.pictures[0], load(clip, network.preprocessing, frame=frame)[0])
    asked, _ = explanations.read_subjects(clip.with_name(f"{clip.name}#09"), network, 9, wish)
    assert asked.names == (f"{clip}#09",) and torch.equal(
        asked.pictures[0], load(clip, network.preprocessing, frame=8)[0]
    )


def test_the_command_draws_the_frame_that_is_asked_for(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = run_of(tmp_path / "run", "all"), tmp_path / "out"
    assert explain.main([str(run), f"{clip}#09", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"note: 1 image is one frame of several, such as {clip}#09; give FILE#NUMBER for another" in said
    (drawn,) = out.glob("overlay_*.png")
    with Image.open(drawn) as picture:
        likeness = [np.corrcoef(pixels_in(picture), one)[0, 1] for one in pixels_of(clip)]
    assert int(np.argmax(likeness)) == 8
    assert explain.main([str(run), f"{clip}#12", "-o", str(out)]) == 3
    assert "frame 12: " in capsys.readouterr().err
    assert explain.main([str(run), str(tmp_path / "none.gif#1")]) == 3
    assert "there is no such file or folder" in capsys.readouterr().err
