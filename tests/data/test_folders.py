"""Folders as people have them: classes, splits, litter, and messages that say what to do."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import decode, lost
from medmambase.data.manifest.folders import DataError, Manifest
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading.images import ImageError


def fill(root: Path, tree: dict[str, int], suffix: str = "png") -> Path:
    """``tree``: folder below root -> how many images, each of its own grey."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(root / folder / f"{number:03d}.{suffix}")
    return root


def scan_folder(root: Path, seed: int = 0, runs: Path | None = None) -> Manifest:
    return read_manifest(root, seed=seed, runs=runs)


def counts(manifest: Manifest) -> dict[str, int]:
    return {split: len(manifest.split(split)) for split in ("train", "val", "test")}


def everywhere(
    number: int, splits: Iterable[str] = ("train", "val", "test"), classes: Iterable[str] = ("a", "b")
) -> dict[str, int]:
    return {f"{split}/{name}": number for split in splits for name in classes}


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "VAL"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_the_names_people_give_to_splits_are_understood(tmp_path: Path, val: str, test: str) -> None:
    manifest = scan_folder(fill(tmp_path, everywhere(2, ("Train", val, test))))
    assert counts(manifest) == {"train": 4, "val": 4, "test": 4}
    assert manifest.classes == ("a", "b") and manifest.notes == ()
    first = manifest.split("val")[0]
    assert (first.name, first.label, first.path) == (f"{val}/a/000.png", 0, tmp_path / val / "a" / "000.png")


def test_classes_are_the_sorted_folder_names_of_train(tmp_path: Path) -> None:
    manifest = scan_folder(fill(tmp_path, everywhere(4, ("train", "val"), ("Zebra", "ant", "Fetal femur", "肺"))))
    assert manifest.classes == ("Fetal femur", "Zebra", "ant", "肺")
    assert all(manifest.classes[sample.label] == sample.path.parent.name for sample in manifest.samples)


def test_class_folders_alone_are_split_70_15_15_in_every_class(tmp_path: Path) -> None:
    manifest = scan_folder(fill(tmp_path, {"a": 100, "b": 40}))
    by_class = Counter((sample.split, manifest.classes[sample.label]) for sample in manifest.samples)
    assert by_class == {
        ("train", "a"): 70,
        ("val", "a"): 15,
        ("test", "a"): 15,
        ("train", "b"): 28,
        ("val", "b"): 6,
        ("test", "b"): 6,
    }
    assert "--group-regex" in manifest.notes[-1]
    assert manifest.method == "split 70/15/15 into train, val and test by image, stratified, seed 0"


def test_the_split_hangs_on_the_seed_and_the_relative_path_alone(tmp_path: Path) -> None:
    def splits(root: Path, seed: int) -> dict[str, str]:
        return {sample.name: sample.split for sample in scan_folder(root, seed).samples}

    here, there = fill(tmp_path / "here", {"a": 30, "b": 30}), fill(tmp_path / "there", {"b": 30, "a": 30, "c": 9})
    assert splits(here, 0) == splits(here, 0)
    assert splits(here, 0) != splits(here, 1)
    assert splits(here, 0).items() <= splits(there, 0).items()  # another class changes nothing
    held_back = [name for name, split in splits(here, 0).items() if split == "val"]
    assert held_back != sorted(splits(here, 0))[: len(held_back)]


@pytest.mark.parametrize("number", range(1, 12))
def test_a_small_class_keeps_an_image_in_train_and_from_three_on_has_one_everywhere(
    tmp_path: Path, number: int
) -> None:
    manifest = scan_folder(fill(tmp_path, {"small": number, "big": 50}))
    small = Counter(sample.split for sample in manifest.samples if manifest.classes[sample.label] == "small")
    assert small["train"] >= 1 and small.total() == number
    assert (number >= 3) == (small["val"] >= 1) == (small["test"] >= 1)
    assert (number < 3) == any("val has no images of small" in note for note in manifest.notes)


def test_only_train_is_split_in_three(tmp_path: Path) -> None:
    assert counts(scan_folder(fill(tmp_path, everywhere(20, ["train"])))) == {"train": 28, "val": 6, "test": 6}


@pytest.mark.parametrize("empty_val", [False, True])
def test_without_val_some_of_train_becomes_val_and_test_is_left_alone(tmp_path: Path, empty_val: bool) -> None:
    fill(tmp_path, everywhere(20, ("train", "test")))
    if empty_val:
        (tmp_path / "val" / "a").mkdir(parents=True)
    manifest = scan_folder(tmp_path)
    assert counts(manifest) == {"train": 34, "val": 6, "test": 40}
    assert {sample.name.split("/")[0] for sample in manifest.split("val")} == {"train"}


def test_without_test_a_note_says_so(tmp_path: Path) -> None:
    manifest = scan_folder(fill(tmp_path, everywhere(3, ("train", "val"))))
    assert counts(manifest) == {"train": 6, "val": 6, "test": 0}
    assert manifest.notes == ("there is no test split, so there will be no test results",)


def test_images_deep_below_a_class_are_found_in_every_suffix(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(1))
    fill(tmp_path / "train", {"a/patient 1/left": 2}, "JPG")
    fill(tmp_path / "train", {"a/patient 1/right": 2}, "tiff")
    manifest = scan_folder(tmp_path)
    assert len(manifest.split("train")) == 6
    assert "train/a/patient 1/left/000.JPG" in {sample.name for sample in manifest.samples}


def test_what_other_programs_leave_behind_is_no_image(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(2))
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "._000.png", ".hidden.png"):
        (tmp_path / "train" / "a" / name).write_bytes(b"x")
    fill(tmp_path, {"__MACOSX/train/a": 2, "train/__MACOSX": 2, "train/.cache": 2, "train/a/@eaDir": 2})
    manifest = scan_folder(tmp_path)
    assert counts(manifest) == {"train": 4, "val": 4, "test": 4} and manifest.notes == ()


def test_what_is_left_out_is_named_in_a_note(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(2) | {"masks": 3, "train/empty": 0, "train": 1})
    notes = scan_folder(tmp_path).notes
    assert any("ignored beside the splits: masks" in note for note in notes)
    assert any("no images in train/ in class folder empty" in note for note in notes)
    assert any("1 image lies directly in train/" in note for note in notes)


def test_a_class_missing_from_val_is_a_note(tmp_path: Path) -> None:
    manifest = scan_folder(fill(tmp_path, everywhere(2) | {"train/c": 2, "test/c": 1}))
    assert manifest.notes == ("val has no images of c: its results say nothing about them",)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "no images found; put them in one folder for each class"),
        ({"a": 0, "b": 0}, "no images found"),
        ({"": 3}, "3 images lie there in no class folder, such as 000.png; put the images of each class into a folder"),
        ({"train": 1, "test": 2}, "3 images lie there in no class folder"),
        (
            {"": 3, "a": 5},
            "class folder found, 'a', and 3 images directly in .*, such as 000.png; put each class",
        ),
        ({"a": 5}, "only one class found, 'a'; a classifier needs at least two"),
        ({"set/train/a": 5, "set/train/b": 5}, "only one class found, 'set'; give .*set instead"),
        (everywhere(2, ("val", "test")), "there is test/ and val/ but no train/"),
        (everywhere(2, ["val"]) | {"train/a": 0}, "there are no training images"),
        (
            everywhere(2) | {"val/Femurr": 1, "train/Femur": 2},
            "val has class 'Femurr' but train has no images of it; the nearest name in train is 'Femur'",
        ),
        (everywhere(2, ("train", "val")) | {"test/A": 1}, "test has class 'A' but .* nearest name in train is 'a'"),
        (everywhere(2) | {"valid/a": 1}, "both mean val; keep one"),
        ({"a": 1, "b": 2}, "no class has more than 2 images, too few to set some aside"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_what_to_do(tmp_path: Path, tree: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scan_folder(fill(tmp_path, tree))


def test_a_missing_folder_and_a_file_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder; give a folder that holds train/"):
        scan_folder(tmp_path / "nowhere")
    (tmp_path / "file.zip").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="this is a file of another kind; give a folder"):
        scan_folder(tmp_path / "file.zip")


def test_decoding_keeps_the_order_and_names_each_broken_file_once(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(40))
    broken = [tmp_path / "train" / "a" / "007.png", tmp_path / "val" / "b" / "039.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    manifest = scan_folder(tmp_path)
    image_set, errors = decode(manifest.samples, Preprocessing(size=8, channels=1))
    assert [error.path for error in errors] == broken and all(isinstance(error, ImageError) for error in errors)
    assert all(error.__traceback__ is None and error.__cause__ is None for error in errors), (
        "nothing half decoded is kept"
    )
    assert image_set.samples == tuple(sample for sample in manifest.samples if sample.path not in broken)
    assert image_set.images.shape == (238, 1, 8, 8) and image_set.images.dtype == torch.uint8
    assert image_set.images[:, 0, 0, 0].tolist() == [int(sample.path.stem) for sample in image_set.samples]
    assert (
        image_set.labels.tolist() == [sample.label for sample in image_set.samples]
        and image_set.labels.dtype == torch.int64
    )
    val = image_set.split("val")
    assert len(val.samples) == len(val.labels) == 79 and val.images[:, 0, 0, 0].tolist() == [
        int(sample.path.stem) for sample in val.samples
    ]


def test_nothing_readable_is_an_empty_set_not_a_crash(tmp_path: Path) -> None:
    samples = scan_folder(fill(tmp_path, everywhere(1))).samples
    for sample in samples:
        sample.path.write_bytes(b"")
    image_set, errors = decode(samples, Preprocessing(size=8))
    assert image_set.images.shape == (0, 3, 8, 8) and len(errors) == 6
    assert decode((), Preprocessing(size=8))[0].labels.shape == (0,)


def test_progress_sees_every_file(tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(results: Iterable[object], total: int) -> Iterator[object]:
        for result in results:
            seen.append(total)
            yield result

    samples = scan_folder(fill(tmp_path, everywhere(2))).samples
    decode(samples, Preprocessing(size=8), progress)
    assert seen == [12] * 12


def test_grey_files_of_any_mode_become_one_channel_equal_to_reading_them_grey(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(1))
    ramp = Image.fromarray(np.arange(70, dtype=np.uint8).reshape(7, 10) * 3)
    for name, mode in (("x", "RGB"), ("y", "RGBA"), ("z", "P")):
        ramp.convert(mode).save(tmp_path / "train" / "a" / f"{name}.png")
    samples = scan_folder(tmp_path).samples
    colour, _ = decode(samples, Preprocessing(size=16, channels=3))
    assert colour.is_grey()
    assert torch.equal(colour.to_grey().images, decode(samples, Preprocessing(size=16, channels=1))[0].images)
    Image.new("RGB", (9, 9), (9, 9, 10)).save(tmp_path / "train" / "b" / "tinted.png")
    assert not decode(scan_folder(tmp_path).samples, Preprocessing(size=16))[0].is_grey()


def test_an_interrupt_during_decoding_gets_out_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def slow_load(path: Path, preprocessing: Preprocessing) -> torch.Tensor:
        read.append(path)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    def interrupted(results: Iterable[object], total: int) -> Iterator[object]:
        raise KeyboardInterrupt
        yield from results

    samples = scan_folder(fill(tmp_path, everywhere(2))).samples * 1000
    monkeypatch.setattr("medmambase.data.decoded.image_set.load", slow_load)
    with pytest.raises(KeyboardInterrupt):
        decode(samples, Preprocessing(size=8), interrupted)
    assert len(read) < len(samples)


def test_more_images_than_memory_is_a_message(tmp_path: Path) -> None:
    sample = scan_folder(fill(tmp_path, everywhere(1))).samples[0]
    with pytest.raises(DataError, match=r"30000 images of 10000 px need .* GB of memory"):
        decode((sample,) * 30_000, Preprocessing(size=10_000))


@pytest.mark.slow
def test_another_process_makes_the_same_split(tmp_path: Path) -> None:
    """Python's own ``hash`` of a text would differ there."""
    root = fill(tmp_path / "é 肺", {"a": 20, "b": 20})
    code = "import sys, pathlib; from medmambase.data.manifest.sources import read_manifest as read; "
    code += "print([s.split for s in read(pathlib.Path(sys.argv[1]), seed=0).samples])"
    folders = [str(Path(__file__).resolve().parents[2] / name) for name in (".", "kernels")]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}; {code}", str(root)]
    output = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    assert output.strip() == str([sample.split for sample in scan_folder(root).samples])


def test_a_real_set_is_read(shared: Path) -> None:
    manifest = scan_folder(shared / "data" / "pocus_lung")
    assert (
        manifest.classes == ("covid", "pneumonia", "regular") and len(manifest.samples) == 588 and manifest.notes == ()
    )


def past_run(folder: Path) -> None:
    """What a finished training leaves: three files that tell it, and pictures."""
    fill(folder, {"": 1, "explain": 4, "test": 1})
    for name in ("config.json", "metrics.csv", "train.log"):
        (folder / name).write_text("", encoding="utf-8")


@pytest.mark.parametrize("given", ["runs", None])
def test_the_runs_of_earlier_trainings_are_no_class(
    tmp_path: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill(tmp_path, {"a": 5, "b": 5}))
    before = scan_folder(Path())
    past_run(Path("runs/x-001"))
    past_run(Path("runs/x-002"))
    fill(Path("runs/x-003/phantom"), {"train/a": 5 if given else 0})  # interrupted before it had figures
    again = scan_folder(Path(), runs=given and Path(given))
    assert (again.classes, again.samples) == (before.classes, before.samples)
    assert again.notes == ("left out, since runs of earlier trainings lie there: runs", *before.notes)


def test_the_settings_of_a_cross_validation_among_the_images_make_no_run_of_them(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 12, "b": 12})
    (tmp_path / "crossval.toml").write_text("folds = 4\n", encoding="utf-8")
    (tmp_path / "a" / "crossval.toml").write_text("folds = 4\n", encoding="utf-8")
    assert len(scan_folder(tmp_path).samples) == 24


def test_runs_beside_the_splits_and_inside_a_class_are_named_in_one_note(tmp_path: Path) -> None:
    fill(tmp_path, everywhere(2) | {"masks": 1})
    past_run(tmp_path / "old" / "x-001")
    past_run(tmp_path / "train" / "a" / "y-001")
    manifest = scan_folder(tmp_path, runs=tmp_path / "train" / "a")  # a folder of images stays a class
    assert counts(manifest) == {"train": 4, "val": 4, "test": 4}
    assert manifest.notes == (
        "ignored beside the splits: masks",
        "left out, since runs of earlier trainings lie there: old, train/a/y-001",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_a_class_whose_name_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 5, "b\udcff": 5})
    with pytest.raises(DataError, match=r"class folder 'b\\udcff' is not valid UTF-8, .*; rename the folder"):
        scan_folder(tmp_path)


def test_what_is_lost_in_reading_is_noted_by_split_and_by_class(tmp_path: Path) -> None:
    manifest = scan_folder(fill(tmp_path, everywhere(2) | {"test/a": 3}))
    assert lost(manifest, manifest.samples) == ()
    kept = [
        sample
        for sample in manifest.samples
        if sample.split == "train" or (sample.split == "test" and sample.label == 1)
    ]
    assert lost(manifest, kept) == (
        "none of the 4 images of val can be read: the last epoch is kept as the best, chosen by no figure",
        "test has no images of a that can be read: its results say nothing about them",
    )
