"""A prediction says of which training or validation image its own is a duplicate."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuzz_run import GREY, SMALL
from medmambase import MedMambaSE, run_folder
from medmambase.data import looks
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest.folders import DataError, Sample
from medmambase.inference.predictor import Predictor

NAMES = ("train.png", "val.png", "test.png", "new.png")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    rng, found = np.random.default_rng(0), {name: tmp_path / name for name in NAMES}
    for path in found.values():
        Image.fromarray(rng.integers(0, 200, (48, 48), dtype=np.uint8)).save(path)
    Image.new("L", (48, 48), 90).save(found.setdefault("even.png", tmp_path / "even.png"))
    return found


def write_run(run: Path, pictures: dict[str, Path], splits: dict[str, str]) -> None:
    """A run that has images of these splits, with every file that tells of them."""
    MedMambaSE(SMALL, classes=("a", "b"), preprocessing=GREY).save(run / run_folder.BEST)
    samples = [Sample(pictures[name], 0, split, f"=long ago\n{name}") for name, split in splits.items()]
    images, _ = decode(samples, GREY, keep=False)
    looks.write(run / run_folder.LOOKS, images)
    rows = [(s.split, s.name, "0", facts.digest) for s, facts in zip(images.samples, images.facts, strict=True)]
    run_folder.write_rows(run / run_folder.LAST / run_folder.IMAGES, ("split", "name", "label", "pixels"), rows)


def notes(run: Path, *paths: Path) -> list[str]:
    return [one.note for one in Predictor.load(run, device="cpu")(paths)]


def brighter(path: Path) -> Path:
    to = path.with_stem(f"{path.stem}-brighter")
    with Image.open(path) as picture:
        picture.point(lambda level: level * 1.2).save(to)
    return to


def test_a_prediction_notes_a_duplicate_of_what_the_run_has_learned_from(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    write_run(run, pictures, {"train.png": "train", "even.png": "train", "val.png": "val", "test.png": "test"})
    train, val, test, new, even = pictures.values()
    assert notes(run, train, brighter(train), even, val, brighter(val), test, brighter(test), new) == [
        "the same pixels as a training image: =long ago train.png",
        "nearly the same as a training image: =long ago train.png",
        "the same pixels as a training image: =long ago even.png",
        "the same pixels as a validation image: =long ago val.png",
        "nearly the same as a validation image: =long ago val.png",
        *[""] * 3,
    ]
    (one,) = Predictor.load(run, device="cpu")(brighter(train))
    assert one.duplicate == ("nearly the same as a training image", "=long ago train.png")
    (run / run_folder.LAST / run_folder.IMAGES).unlink()
    assert notes(run, train, even) == ["nearly the same as a training image: =long ago train.png", ""]
    (run / run_folder.LOOKS).write_bytes(b"path,split,look\n\xff\n")
    with pytest.raises(DataError, match=r"looks\.csv: cannot be read"):
        Predictor.load(run, device="cpu")
    (run / run_folder.LOOKS).unlink()
    assert notes(run, train) == [""]


def test_the_networks_of_a_cross_validation_know_the_images_of_all_folds(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    made = tmp_path / "crossval"
    write_run(made / "fold-0", pictures, {"train.png": "val", "val.png": "test", "test.png": "train"})
    write_run(made / "fold-1", pictures, {"train.png": "train", "val.png": "val", "test.png": "test"})
    for fold in (0, 1):
        (made / f"fold-{fold}" / run_folder.REPORT).touch()  # which says that it has ended
    (made / run_folder.CROSSVAL).write_text("folds = 2\n", encoding="utf-8")
    copies = [brighter(pictures[name]) for name in NAMES]
    assert notes(made, *copies) == [
        "nearly the same as a training image: =long ago train.png",
        "nearly the same as a validation image: =long ago val.png",
        "nearly the same as a training image: =long ago test.png",
        "",
    ]
    shutil.copytree(made / "fold-0", tmp_path / "alone")
    assert notes(tmp_path / "alone", copies[0]) == ["nearly the same as a validation image: =long ago train.png"]
