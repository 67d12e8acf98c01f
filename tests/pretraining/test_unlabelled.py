"""Which images a pretraining learns from: any that are there, but none of val and test."""

from pathlib import Path

import pytest
from PIL import Image

from medmambase.data.decoded.image_set import no_progress
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.manifest.splits import write_splits
from medmambase.pretraining import unlabelled
from medmambase.pretraining.settings import PretrainSettings


def pictures(folder: Path, *names: str, mode: str = "L") -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (8, 8), shade if mode == "L" else (shade, 0, 0)).save(folder / name)


def found(folder: Path, **changes: object) -> list[str]:
    return [one.name for one in unlabelled.find(PretrainSettings(data=str(folder), **changes)).samples]


def test_images_in_folders_of_any_form_are_found_without_those_of_runs(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b/c.png", "b/d/e.png", "val/f.png", "runs/x-001/curves.png")
    for name in ("config.json", "metrics.csv", "train.log"):
        (tmp_path / "runs" / "x-001" / name).write_text("", encoding="utf-8")
    assert found(tmp_path) == ["a.png", "b/c.png", "b/d/e.png", "val/f.png"]  # no train: val is a name like any other
    pictures(tmp_path, "Training/a/g.png")
    manifest = unlabelled.find(PretrainSettings(data=str(tmp_path)))
    assert "val/f.png" not in [sample.name for sample in manifest.samples] and len(manifest.samples) == 4
    assert "left out, so that a training can be tested on them: 1 image of val" in manifest.notes[-1]
    with pytest.raises(DataError, match="no images found"):
        found(tmp_path / "runs")


def test_only_the_train_part_of_a_table_is_learned_from(images: Path, tmp_path: Path) -> None:
    manifest = read_manifest(images, seed=0)
    write_splits(tmp_path / "splits.csv", manifest)
    wanted = sorted(sample.name for sample in manifest.split("train"))
    assert sorted(found(images, splits=str(tmp_path / "splits.csv"))) == wanted
    (tmp_path / "all.csv").write_text(
        "path,split\n" + "".join(f"{sample.name},test\n" for sample in manifest.samples), encoding="utf-8"
    )
    with pytest.raises(DataError, match="there are no images in train, only in test"):
        found(images, splits=str(tmp_path / "all.csv"))
    with pytest.raises(DataError, match="there is no such file or folder; give a folder that holds images at any"):
        found(tmp_path / "absent")


def test_grey_images_stay_grey_and_what_cannot_be_read_is_told_or_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "grey", "a.png", "b.png", "c.png")
    (tmp_path / "grey" / "d.png").write_text("no picture", encoding="utf-8")

    def taken(folder: str, **changes: object) -> unlabelled.Decoded:
        settings = PretrainSettings(data=str(tmp_path / folder), image_size=(16, 24), **changes)
        return unlabelled.take_in(unlabelled.find(settings), settings, no_progress)

    decoded = taken("grey")
    assert decoded.images.images.shape == (3, 1, 24, 24) and decoded.preprocessing.channels == 1
    assert [error.path.name for error in decoded.bad] == ["d.png"]
    assert taken("grey", in_chans="3").images.images.shape == (3, 3, 24, 24)
    with pytest.raises(DataError, match=r"d\.png: .*; fix or remove unreadable files"):
        taken("grey", on_bad="error")
    pictures(tmp_path / "red", "a.png", "b.png", "c.png", mode="RGB")
    assert taken("red").preprocessing.channels == 3 and taken("red", in_chans="1").preprocessing.channels == 1
    (tmp_path / "grey" / "a.png").unlink()
    with pytest.raises(DataError, match=r"2 images can be read; .*d\.png: .*a pretraining needs at least 3"):
        taken("grey")
