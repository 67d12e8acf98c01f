"""Images of other data: what the network has seen of them is known, or said not to be known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuzz_crossval import LEARNED, whole_crossval
from fuzz_run import GREY
from medmambase import MedMambaSE, ModelConfig
from medmambase.config import Preprocessing
from medmambase.data import looks
from medmambase.data.decoded.image_set import decode, no_progress
from medmambase.data.manifest.folders import DataError, Sample
from medmambase.data.manifest.sources import read_images
from medmambase.data.reading.images import load
from medmambase.inference.held_out import Examination, examine
from medmambase.inference.loading import load_ensemble
from medmambase.model import starting
from medmambase.model.starting import Origin, write_origin
from medmambase.run_folder import LOOKS, folds_of


def examined(folder: Path) -> Examination:
    for level, name in ((60, "a"), (90, "b")):
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(folder / "data" / name / "x.png")
    return examine(folder / "run", small(), read_images(folder / "data"), no_progress)


def small() -> MedMambaSE:
    config = ModelConfig(num_classes=2, in_chans=1, depths=(1,), dims=(8,), state=2)
    return MedMambaSE(config, classes=("a", "b"), preprocessing=Preprocessing(size=8, channels=1))


def test_what_the_network_has_seen_is_told_or_that_it_is_not_known(tmp_path: Path) -> None:
    found = examined(tmp_path)
    assert [note.rpartition("not known ")[2] for note in found.notes if "is not there" in note] == [
        "which of these images were in train or val",
        "whether a patient of these images was in train or val",
    ]
    (tmp_path / "run" / "last").mkdir(parents=True)
    pixels = found.images.facts[0].digest
    (tmp_path / "run" / "last" / "images.csv").write_text(f"split,name,label,pixels\ntrain,x,0,{pixels}\n", "utf-8")
    (tmp_path / "run" / "splits.csv").write_text("path,label,patient,split\n", "utf-8")
    found = examined(tmp_path)
    assert found.seen == {"a/x.png"} and not any("is not there" in note for note in found.notes)
    for start, told in (("none: new weights", False), ("w (SHA-256 00...)", True), ("not recorded", True)):
        (tmp_path / "run" / "config.json").write_text(f'{{"start": "{start}"}}', "utf-8")
        notes = examined(tmp_path).notes
        lost = [note for note in notes if note.endswith("which of these images its starting weights have learned from")]
        assert [note.partition(" is not there")[0] for note in lost] == [str(tmp_path / "run" / "start.json")] * told


def test_the_runs_own_data_is_tested_on_its_test_images_and_data_with_new_ones_on_all(tmp_path: Path) -> None:
    digest = examined(tmp_path).images.facts[1].digest
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "last" / "images.csv").write_text(
        f"split,name,label,pixels\ntrain,b/x.png,1,{digest}\n", "utf-8"
    )
    (tmp_path / "run" / "splits.csv").write_text(
        "path,label,patient,split\na/x.png,a,,test\nb/x.png,b,,train\n", "utf-8"
    )
    own = examined(tmp_path)
    assert [sample.name for sample in own.images.samples] == ["a/x.png"] and not own.seen
    assert (
        own.notes[0]
        == "tested on the images that were this run's test images, as it has learned from all others: 1 image"
    )
    assert not any("counts as new" in note for note in own.notes)
    Image.new("L", (8, 8), 70).save(tmp_path / "data" / "a" / "new.png")
    other = examined(tmp_path)
    assert [sample.name for sample in other.images.samples] == ["a/new.png", "a/x.png", "b/x.png"]
    assert other.seen == {"b/x.png"} and other.notes[0] == "tested on all images: 3 images"
    assert any("saved again with losses, counts as new" in note for note in other.notes)


def test_test_images_of_a_run_are_known_by_names_that_are_no_text(tmp_path: Path) -> None:
    digest = examined(tmp_path).images.facts[1].digest
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "last" / "images.csv").write_text(
        f"split,name,label,pixels\ntrain,b/x.png,1,{digest}\n", "utf-8"
    )
    found = read_images(tmp_path / "data")
    found = replace(found, samples=tuple(replace(one, name=f"\udcfc{one.name}") for one in found.samples))
    (tmp_path / "run" / "splits.csv").write_text("path,label,patient,split\n\\udcfca/x.png,a,,test\n", "utf-8")
    assert len(examine(tmp_path / "run", small(), found, no_progress).images.labels) == 1


def test_an_image_that_the_start_has_seen_is_known_however_its_16_bits_were_read(tmp_path: Path) -> None:
    first = examined(tmp_path)
    path = tmp_path / "data" / "a" / "x.png"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 100).save(path)
    digest = load(path, Preprocessing(8, 1, high_depth="range"))[1].digest
    (tmp_path / "run").mkdir(exist_ok=True)
    write_origin(tmp_path / "run", Origin("w", "0" * 64, seen=(digest,)))
    assert not first.seen and examine(tmp_path / "run", small(), read_images(tmp_path / "data"), no_progress).seen == {
        "a/x.png"
    }


def test_a_near_duplicate_of_a_training_image_is_told_of_and_set_apart(tmp_path: Path) -> None:
    rng, data = np.random.default_rng(0), tmp_path / "data"
    pictures = {
        name: Image.fromarray(rng.integers(0, 200, (64, 64), dtype=np.uint8)) for name in ("a/x.png", "b/x.png")
    }
    for name, picture in pictures.items():
        (data / name).parent.mkdir(parents=True)
        picture.save(data / name)
    learned = Sample(data / "a" / "x.png", 0, "train", "long ago/1.png")
    run = tmp_path / "run"
    looks.write(run / LOOKS, decode([learned], Preprocessing(8, 1), keep=False)[0])
    pictures["a/x.png"].point(lambda level: level * 1.2).save(data / "a" / "x.png")
    found = examine(run, small(), read_images(data), no_progress)
    assert found.seen == {"a/x.png"}
    assert found.notes[-1] == (
        "1 of these images is nearly the same as an image in train or val, as after resizing, brightening or saving "
        "again (a/x.png: long ago/1.png): results are given with and without such images"
    )
    (run / LOOKS).write_bytes(b"path,split,look\n\xff\n")
    with pytest.raises(DataError, match=r"looks\.csv: cannot be read"):
        examine(run, small(), read_images(data), no_progress)


@pytest.mark.parametrize("name", ["splits.csv", "last/images.csv"])
def test_a_damaged_list_of_what_the_network_has_seen_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / name).write_bytes(b"path,split\n\xff\xfe,test\n")
    with pytest.raises(DataError, match=f"{Path(name).name}: cannot be read .* restore it: it tells which images"):
        examined(tmp_path)


def test_a_cross_validation_says_that_its_starting_weights_have_seen_an_image(tmp_path: Path) -> None:
    made = whole_crossval(tmp_path)
    examined(tmp_path)  # which draws the images
    _, facts = load(tmp_path / "data" / "a" / "x.png", GREY)
    for fold in folds_of(made):
        starting.write_origin(fold, Origin("start", "0" * 64, (LEARNED,), (facts.digest,)))
    found = examine(made, load_ensemble(made), read_images(tmp_path / "data"), no_progress)
    assert found.seen == {"a/x.png"} and "one that its starting weights have seen" in found.notes[-1]
