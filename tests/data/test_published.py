"""Published sets as they are downloaded: MedMNIST's files and FETAL_PLANES_DB, and files that only
look like them."""

import io
import pickle
import tracemalloc
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest import published
from medmambase.data.manifest.folders import DataError
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading.images import ImageError

SPLITS = ("train", "val", "test")


def arrays(shape: tuple[int, ...] = (28, 28), classes: int = 3, column: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for split, count in zip(SPLITS, (9, 6, 12), strict=True):
        labels = np.arange(count, dtype=np.uint8) % classes
        found |= {
            f"{split}_images": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
            f"{split}_labels": labels[:, None] if column else labels,
        }
    return found


@pytest.mark.parametrize("shape", [(28, 28), (64, 64, 3), (12, 20, 1)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_medmnist_file_of_any_size_keeps_its_official_split_and_its_pixels(
    tmp_path: Path, shape: tuple[int, ...], save
) -> None:
    held = arrays(shape, classes=4)
    save(tmp_path / "octmnist_64.npz", **held)
    found = read_manifest(tmp_path / "octmnist_64.npz", seed=5)
    assert Counter(sample.split for sample in found.samples) == {"train": 9, "val": 6, "test": 12}
    assert found.classes == ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")
    assert found.method == "using the train/val/test split found in the data"
    for sample in found.samples:
        row = int(sample.name.partition("/")[2])
        expected = held[f"{sample.split}_images"][row]
        assert np.array_equal(published.pixels_of(sample), expected[..., 0] if shape[2:] == (1,) else expected)
        assert sample.label == row % 4


def test_a_file_of_another_name_has_numbered_classes_and_labels_may_be_flat(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays(column=False))
    assert read_manifest(tmp_path / "mine.npz", seed=0).classes == ("0", "1", "2")
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays())  # more classes than that set has
    assert read_manifest(tmp_path / "pneumoniamnist.npz", seed=0).classes == ("0", "1", "2")


def test_rows_are_decoded_like_files_and_memory_is_given_back(tmp_path: Path) -> None:
    held = arrays((16, 16))
    np.savez(tmp_path / "a.npz", **held)
    samples = read_manifest(tmp_path / "a.npz", seed=0).samples
    images, bad = decode(samples, Preprocessing(size=16, channels=1))
    assert not bad and not published._arrays
    for sample, image in zip(samples, images.images, strict=True):
        assert np.array_equal(image[0].numpy(), held[f"{sample.split}_images"][int(sample.name.partition("/")[2])])
    with ThreadPoolExecutor(8) as pool:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(pool.map(published.pixels_of, samples), images.images[:, 0].numpy(), strict=True)
        )
    assert len(published._arrays) == 3
    published.forget()


def test_folds_leave_the_official_test_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    found = read_manifest(tmp_path / "a.npz", seed=0, folds=3, fold=0)
    assert (
        Counter(sample.split for sample in found.samples) == {"train": 9, "val": 6, "test": 12}
        and "this fold is the validation set" in found.method
    )


def without(key: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays().items() if name != key}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (without("val_images"), "has no array 'val_images'; wanted a MedMNIST file with train_images"),
        (without("test_labels"), "has no array 'test_labels'"),
        (
            arrays() | {"train_images": np.zeros((9, 28, 28), np.float32)},
            "train_images is float32 .*; wanted 8-bit pictures",
        ),
        (
            arrays((28, 28, 28)),
            r"val_images has shape \(6, 28, 28, 28\): volumes|train_images has shape \(9, 28, 28, 28\): volumes",
        ),
        (arrays() | {"train_labels": np.zeros((9, 14), np.uint8)}, "val_labels has shape .*; wanted a class for each"),
        (
            arrays() | {"train_labels": np.zeros((8, 1), np.uint8)},
            r"train_images has shape \(9, 28, 28\) and train_labels \(8, 1\)",
        ),
        (arrays() | {"train_labels": np.full((9, 1), -1)}, "train_labels is int64 .*; wanted whole numbers from 0 on"),
        (arrays() | {"train_labels": np.full((9, 1), 0.5)}, "train_labels is float64"),
        (arrays() | {"train_labels": np.array(["a"] * 9)}, "train_labels is <U1"),
        (arrays() | {"train_images": np.zeros((9, 28), np.uint8)}, r"train_images has shape \(9, 28\)"),
        (arrays() | {"train_labels": np.zeros((9, 1), np.uint8)}, "train has no images of it|has class"),
        (arrays(classes=1), "only one class found"),
        (arrays((28, 0)), r"train_images has shape \(9, 28, 0\): pictures without pixels"),
        (
            arrays() | {"train_labels": np.zeros((9, 0), np.uint8)},
            r"train_labels has shape \(9, 0\); wanted a class for each",
        ),
    ],
)
def test_what_is_no_set_of_pictures_with_one_label_each_is_refused(
    tmp_path: Path, held: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(DataError, match=said) as caught:
        read_manifest(tmp_path / "a.npz", seed=0)
    assert len(str(caught.value).splitlines()) == 1 and str(tmp_path / "a.npz") in str(caught.value)


class Bomb:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_nothing_is_unpickled_and_damaged_files_cost_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **(arrays() | {"train_labels": np.array([Bomb(tmp_path / "exploded")] * 9, dtype=object)}))
    with pytest.raises(
        DataError,
        match=r"a\.npz: (is not a MedMNIST .npz file, or is damaged \(Object arrays cannot be loaded|train_labels)",
    ):
        read_manifest(path, seed=0)
    assert not (tmp_path / "exploded").exists()
    np.savez_compressed(path, **arrays())
    good = path.read_bytes()
    for content in (
        b"",
        b"hello",
        good[: len(good) // 2],
        good[:-30],
        pickle.dumps([1]),
        good[:200] + b"x" * 400 + good[600:],
    ):
        path.write_bytes(content)
        try:
            samples = read_manifest(path, seed=0).samples
        except DataError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)
            continue
        images, bad = decode(samples, Preprocessing(size=28))  # the labels were whole
        assert len(images.labels) + len(bad) == 27


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
def test_whatever_unpacking_raises_costs_one_line(kind: int, tmp_path: Path) -> None:
    path, stream = tmp_path / "a.npz", io.BytesIO()
    np.save(stream, arrays()["train_images"])
    open_bracket = stream.getvalue().replace(b"(", b" ").replace(b"'descr'", b"(descr'")  # Python's own tokenizer fails
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("train_images.npy", open_bracket)
    if kind == zipfile.ZIP_LZMA:
        content = bytearray(path.read_bytes())
        content[60:90] = bytes(30)  # of the packed numbers
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: is not a MedMNIST \.npz file, or is damaged"):
        read_manifest(path, seed=0)


def test_a_small_file_that_would_fill_any_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**3, 10**3)}
    )
    np.savez(tmp_path / "a.npz", **without("train_images"))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("train_images.npy", header.getvalue())
    with pytest.raises(
        DataError, match=r"train_images is uint8 \(1000000000, 1000, 1000\); wanted .* 20 GB of them at most"
    ):
        read_manifest(tmp_path / "a.npz", seed=0)


def test_a_shape_below_zero_which_numpy_lets_pass_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, **arrays((28, 28, 3)))
    whole, path = zipfile.ZipFile(stream), tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in whole.namelist():
            content = whole.read(name)
            damaged = content.replace(b"(9, 28, 28, 3)", b"(9, 28, -1, 3)") if name == "train_images.npy" else content
            file.writestr(name, damaged)
    with pytest.raises(DataError, match=r"a\.npz: .* is damaged \(shape \(9, 28, -1, 3\) is below 0\)"):
        read_manifest(path, seed=0)


def test_a_row_that_has_gone_is_one_unreadable_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    sample = read_manifest(tmp_path / "a.npz", seed=0).samples[8]
    np.savez(tmp_path / "a.npz", **{name: array[:3] for name, array in arrays().items()})
    with pytest.raises(ImageError, match=r"a.npz: train_images is uint8 \(3, 28, 28\), without row 8"):
        published.pixels_of(sample)
    published.forget()
    (tmp_path / "a.npz").unlink()
    with pytest.raises(ImageError, match=r"a.npz: there is no such file"):
        published.pixels_of(sample)


def test_a_label_beyond_the_number_of_images_is_refused_before_its_classes_are_named(tmp_path: Path) -> None:
    labels = np.zeros((9, 1), dtype=np.int64)
    labels[4] = 2**62
    np.savez(tmp_path / "a.npz", **(arrays() | {"train_labels": labels}))
    with pytest.raises(
        DataError, match=r"a\.npz: train_labels holds 4611686018427387904; wanted .* below the number of images, 27"
    ):
        read_manifest(tmp_path / "a.npz", seed=0)


def test_pictures_too_large_for_an_image_are_too_large_in_an_array(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, 10_001, 10_000)})
    np.savez(tmp_path / "a.npz", **without("train_images"))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("train_images.npy", header.getvalue())
    with pytest.raises(DataError, match="wanted pictures of 100 million pixels at most"):
        read_manifest(tmp_path / "a.npz", seed=0)


def test_rows_in_order_are_unpacked_one_by_one_and_in_any_other_order_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = arrays((40, 50))
    np.savez_compressed(tmp_path / "a.npz", **held)
    whole: list[str] = []
    original = published._array
    monkeypatch.setattr(published, "_array", lambda path, key: whole.append(key) or original(path, key))
    samples = read_manifest(tmp_path / "a.npz", seed=0).samples
    whole.clear()  # of the labels
    images, bad = decode(samples, Preprocessing(size=40, channels=1))
    assert len(images.labels) == 27 and not bad and whole == []
    rows = [sample for sample in samples if sample.split == "train"]
    for sample in (rows[0], rows[3], rows[1], rows[2], rows[4]):  # threads ask nearly in order
        assert np.array_equal(published.pixels_of(sample), held["train_images"][sample.row])
    assert whole == []
    assert np.array_equal(published.pixels_of(rows[0]), held["train_images"][0]) and whole == ["train_images"]
    assert np.array_equal(published.pixels_of(rows[8]), held["train_images"][8]) and whole == ["train_images"]
    published.forget()


@pytest.mark.slow
def test_memory_is_bounded_by_a_row_not_by_the_array(tmp_path: Path) -> None:
    count, side = 60, 1000
    np.savez_compressed(
        tmp_path / "zeros.npz",
        **{f"{split}_images": np.zeros((count, side, side), np.uint8) for split in SPLITS},
        **{f"{split}_labels": (np.arange(count) % 2)[:, None] for split in SPLITS},
    )
    samples = read_manifest(tmp_path / "zeros.npz", seed=0).samples
    tracemalloc.start()
    try:
        images, bad = decode(samples, Preprocessing(size=16, channels=1))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(images.labels) == 3 * count and not bad
    assert most < 40 * side * side  # of 180 rows


def test_an_array_by_columns_and_damage_behind_the_first_rows_are_met_before_any_row_is_used(tmp_path: Path) -> None:
    held = arrays((12, 20))
    np.savez(tmp_path / "a.npz", **(held | {"val_images": np.asfortranarray(held["val_images"])}))
    samples = read_manifest(tmp_path / "a.npz", seed=0).samples
    for sample in samples:
        assert np.array_equal(published.pixels_of(sample), held[f"{sample.split}_images"][sample.row])
    published.forget()
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(held["train_images"][8].tobytes()) + 5] ^= 1  # in the last row of train
    (tmp_path / "a.npz").write_bytes(content)
    images, bad = decode(samples, Preprocessing(size=12))
    assert len(images.labels) == 18 and len(bad) == 9 and "Bad CRC-32" in bad[0].reason


PLANES = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"


@pytest.fixture
def fetal(tmp_path: Path) -> Path:
    """A small FETAL_PLANES_DB: 24 patients of two images each, the last six of them in its test
    split."""
    lines = []
    (tmp_path / "Images").mkdir()
    for patient in range(24):
        for image in range(2):
            name = f"Patient{patient:05d}_Plane{image + 1}_1_of_2"
            plane = ("Fetal brain", "Maternal cervix", "Other")[(patient + image) % 3]
            lines.append(f"{name};{patient};{plane};Not A Brain;Op. 1;Voluson E6;{int(patient < 18)}\n")
            Image.new("L", (6, 4), 9 * patient).save(tmp_path / "Images" / f"{name}.png")
    (tmp_path / "FETAL_PLANES_DB_data.csv").write_text(PLANES + "".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("by", ["folder", "csv"])
def test_fetal_planes_is_read_as_it_is(fetal: Path, by: str) -> None:
    found = read_manifest(fetal if by == "folder" else fetal / "FETAL_PLANES_DB_data.csv", seed=0)
    assert found.classes == ("Fetal brain", "Maternal cervix", "Other") and found.root == fetal
    assert {sample.patient for sample in found.split("test")} == {str(patient) for patient in range(18, 24)}
    assert found.split("val") and not {s.patient for s in found.split("val")} & {
        s.patient for s in found.split("train")
    }
    assert (
        found.split("test")[0].name == "Images/Patient00018_Plane1_1_of_2.png" and found.split("test")[0].path.is_file()
    )
    assert found.method.startswith("split 85/15 into train and val by patient")


def test_another_line_of_fetal_planes_is_named(fetal: Path) -> None:
    path = fetal / "FETAL_PLANES_DB_data.csv"
    path.write_text(PLANES + "a;1;Other;x;x;x;2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"FETAL_PLANES_DB_data.csv, line 2: Train is '2'"):
        read_manifest(fetal, seed=0)
    path.write_text(PLANES + "a;1;Other;x;x;x;1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none of its 1 images exists, such as .*a.png"):
        read_manifest(fetal, seed=0)


def test_the_real_file_has_its_official_counts(shared: Path) -> None:
    found = read_manifest(shared / "data" / "pneumoniamnist28" / "pneumoniamnist.npz", seed=0)
    assert found.classes == ("normal", "pneumonia")
    assert Counter(sample.split for sample in found.samples) == {"train": 4708, "val": 524, "test": 624}
    assert Counter(sample.label for sample in found.split("test")) == {0: 234, 1: 390}
