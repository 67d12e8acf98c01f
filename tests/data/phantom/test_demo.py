"""The synthetic set: the same bytes each time, patients kept apart, and beyond a linear model."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import scan_folder
from medmambase.data.phantom import CLASSES, write_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = write_phantom(tmp_path_factory.mktemp("phantom"), images_per_class=100, size=64)
    manifest = scan_folder(root)
    assert manifest.classes == CLASSES and manifest.notes == ()
    image_set, errors = decode(manifest.samples, Preprocessing(size=32, channels=1))
    assert not errors
    return image_set


def digest(root: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        content.update(path.relative_to(root).as_posix().encode())
        content.update(path.read_bytes())
    return content.hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    digests = [
        digest(write_phantom(tmp_path / str(i), images_per_class=6, size=48, seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_pictures_are_those_of_before(tmp_path: Path) -> None:
    root, content = write_phantom(tmp_path / "out", images_per_class=5, size=32, seed=3), hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        content.update(path.relative_to(root).as_posix().encode())
        with Image.open(path) as image:
            content.update(np.asarray(image).tobytes())  # the pixels: how well a PNG is packed hangs on zlib
    assert content.hexdigest() == "e04766664a94dec0a759db7bf3bb66a58eba96e02072af1c449bc357885d6231"


def test_the_files_are_8_bit_grey_of_the_size_asked_for(tmp_path: Path) -> None:
    paths = sorted(write_phantom(tmp_path / "out", images_per_class=5, size=50).rglob("*.png"))
    assert len(paths) == 30 and len({path.name for path in paths}) == 30
    for path in paths:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (50, 50))


def test_every_split_has_every_class_in_60_20_20(phantom: ImageSet) -> None:
    for split, number in (("train", 60), ("val", 20), ("test", 20)):
        assert np.bincount(phantom.split(split).labels.numpy()).tolist() == [number] * 6


def test_no_patient_is_in_two_splits_and_each_has_several_images(phantom: ImageSet) -> None:
    patients = {
        split: [sample.path.name.split("_")[0] for sample in phantom.split(split).samples]
        for split in ("train", "val", "test")
    }
    assert (
        not set(patients["train"]) & set(patients["val"])
        | set(patients["train"]) & set(patients["test"])
        | set(patients["val"]) & set(patients["test"])
    )
    assert len(patients["train"]) / len(set(patients["train"])) == 12


def test_the_sector_is_grey_on_black_and_no_class_is_told_by_its_brightness(phantom: ImageSet) -> None:
    grey = phantom.images[:, 0].float()
    assert grey[:, 0, 0].max() == 0 and grey[:, 0, -1].max() == 0, "outside the fan is black"
    means = np.array([grey[phantom.labels == label].mean() for label in range(6)])
    spread_of_one_class = min(grey[phantom.labels == label].mean((1, 2)).std().item() for label in range(6))
    assert 30 < means.min() and means.max() < 100 and np.ptp(means) < 2 * spread_of_one_class


def test_a_linear_model_on_pixels_fails(phantom: ImageSet) -> None:
    train, test = phantom.split("train"), phantom.split("test")
    pixels = [part.images.flatten(1).numpy() / 255 for part in (train, test)]
    scaler = StandardScaler().fit(pixels[0])
    model = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(pixels[0]), train.labels.numpy())
    score = balanced_accuracy_score(test.labels.numpy(), model.predict(scaler.transform(pixels[1])))
    assert score < 0.55, f"balanced accuracy {score:.3f}; guessing gives 0.167"


@pytest.mark.parametrize(
    ("images_per_class", "size", "message"), [(4, 96, "images_per_class is 4"), (10, 16, "size is 16")]
)
def test_too_few_images_or_pixels_are_refused(tmp_path: Path, images_per_class: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path, images_per_class=images_per_class, size=size)
