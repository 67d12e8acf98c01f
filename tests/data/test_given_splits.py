"""Splits of another table: a run's ``splits.csv`` as it lies, and ``--splits``."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medmambase import run_folder
from medmambase.data.manifest.folders import DataError, Manifest, Sample
from medmambase.data.manifest.given_splits import data_of_splits, with_splits
from medmambase.data.manifest.sources import read_images, read_manifest
from medmambase.data.manifest.splits import write_splits
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.settings import resolve


@pytest.fixture(scope="module")
def classes(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in class folders alone; never changed."""
    root = tmp_path_factory.mktemp("classes ü")
    for path in images.rglob("*.png"):
        (root / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, root / path.parent.name)
    return root


def run_on(data: Path, folder: Path, seed: int) -> Path:
    """The folder of a run on ``data``, as far as splits go, its patients under pseudonyms."""
    run = folder / f"run-{seed}"
    run.mkdir()
    (run / "config.toml").write_text("seed = 3\n", encoding="utf-8")
    run_folder.write_private(run, {"data": str(data)})
    found = read_manifest(data, seed=seed, group_regex=r"(p\d+)_")
    write_splits(run / "splits.csv", Pseudonyms.new().of_manifest(found))
    return run


def split_of(root: Path, **wanted: object) -> dict[str, str]:
    return {sample.name: sample.split for sample in read_manifest(root, **wanted).samples}


def test_a_runs_splits_can_be_used_as_they_lie_whatever_the_seed(classes: Path, tmp_path: Path) -> None:
    run = run_on(classes, tmp_path, seed=3)
    wanted = split_of(classes, seed=3, group_regex=r"(p\d+)_")
    assert split_of(classes, seed=4, group_regex=r"(p\d+)_") != wanted
    assert split_of(run / "splits.csv", seed=4) == wanted
    assert split_of(classes, seed=4, splits=run / "splits.csv") == wanted
    given = read_manifest(run / "splits.csv", seed=4)
    assert given.root == classes and given.method == "using the splits of splits.csv"
    assert all(sample.patient.startswith("p-") and sample.path.is_file() for sample in given.samples)
    assert {s.name for s in read_images(run / "splits.csv").split("test")} == {
        n for n, s in wanted.items() if s == "test"
    }


def test_images_that_a_table_does_not_name_are_left_out_with_a_word(classes: Path, tmp_path: Path) -> None:
    names = [sample.name for sample in read_images(classes).samples]
    rows = [f"{name},{('train', 'val', 'Test')[number % 3]}\n" for number, name in enumerate(names[1:])]
    (tmp_path / "t.csv").write_text("path,split\n" + "".join(rows) + "x/gone.png,test\n", encoding="utf-8")
    found = read_manifest(classes, seed=0, splits=tmp_path / "t.csv")
    assert len(found.samples) == len(names) - 1 and found.samples[2].split == "test"
    assert "1 image is not named in t.csv: left out" in found.notes
    assert "1 image that is named in t.csv cannot be found, such as x/gone.png" in found.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,split\nelse.png,test\n", "names 1 image, such as else.png, and none of them is in"),
        ("path,label\nelse.png,brain\n", "there is no column 'split'; its columns are path, label"),
        ("path,split\nelse.png,exam\n", "t.csv, line 2: split is 'exam'; it must be train, val or test"),
        ("path,split\na.png,test\na.png,val\n", "t.csv, line 3: a.png is named twice"),
    ],
)
def test_a_table_that_divides_nothing_is_one_line(text: str, said: str, classes: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_manifest(classes, seed=0, splits=tmp_path / "t.csv")


def test_a_run_whose_images_have_gone_says_where_they_were(classes: Path, tmp_path: Path) -> None:
    run = run_on(classes, tmp_path, seed=0)
    run_folder.write_private(run, {"data": str(tmp_path / "gone")})
    with pytest.raises(DataError, match="gone, which is not there; give the images, and the table with --splits"):
        read_images(run / "splits.csv")
    (run / "do_not_share.toml").unlink()
    with pytest.raises(DataError, match="does not say where its images lie"):
        read_images(run / "splits.csv")
    (run / "config.toml").write_text("demo = true\n", encoding="utf-8")
    (run / "phantom").mkdir()
    assert data_of_splits(run / "splits.csv") == run / "phantom"
    (run / "config.toml").unlink()
    assert data_of_splits(run / "splits.csv") is None


def test_splits_have_a_seed_of_their_own_if_they_are_given_one() -> None:
    plain, given = resolve({"seed": 4}), resolve({"seed": 4, "split_seed": 0})
    assert (plain.seed_of_splits, given.seed_of_splits, given.training.seed) == (4, 0, 4)
    assert replace(plain, split_seed=7).seed_of_splits == 7
    with pytest.raises(ValueError, match=r"--folds is 5 and --splits t\.csv; images are divided by only one"):
        resolve({"folds": 5, "splits": "t.csv"})


def test_names_that_no_text_can_hold_are_found_in_a_table_that_a_run_has_written(tmp_path: Path) -> None:
    samples = tuple(Sample(tmp_path / name, 0, split, name) for name, split in (("a\udcfc", "val"), ("b", "train")))
    found = Manifest(tmp_path, ("x",), samples, ())
    write_splits(tmp_path / "t.csv", found)
    assert with_splits(found, tmp_path / "t.csv").samples == samples
