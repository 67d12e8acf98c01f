"""Files to tensors: what a set knows of its files, and that it is known again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.decoded import on_demand
from medmambase.data.decoded.image_set import ImageSet, decode, modalities
from medmambase.data.decoded.on_demand import OnDemand
from medmambase.data.manifest.folders import Sample
from medmambase.data.reading.images import Facts, ImageError, load

GREY = Preprocessing(size=8, channels=1)


def samples_in(folder: Path, count: int = 6) -> tuple[Sample, ...]:
    """Pictures that all differ, two of each three in train; named so that nothing but their order
    puts them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12), dtype=np.uint8)).save(
            folder / f"{number:03d}.png"
        )
    return tuple(
        Sample(folder / f"{n:03d}.png", n % 2, "val" if n % 3 == 2 else "train", f"{n % 2}/{n:03d}.png")
        for n in range(count)
    )


def test_each_image_comes_with_what_its_file_was(tmp_path: Path) -> None:
    samples = samples_in(tmp_path)
    Image.new("RGB", (30, 20), (200, 100, 0)).save(samples[3].path)
    samples[1].path.write_bytes(b"no image")
    images, errors = decode(samples, GREY)
    assert [error.path for error in errors] == [samples[1].path]
    assert len(images.facts) == len(images.samples) == len(images.images) == 5
    assert [(fact.width, fact.height, fact.mode) for fact in images.facts[1:3]] == [(12, 9, "L"), (30, 20, "RGB")]
    assert len({fact.digest for fact in images.facts}) == 5
    val = images.split("val")
    assert val.facts == tuple(
        fact for fact, sample in zip(images.facts, images.samples, strict=True) if sample.split == "val"
    )
    assert images.rows([4, 0]).facts == (images.facts[4], images.facts[0])


def test_dicom_files_of_several_modalities_are_told_with_an_example_of_each() -> None:
    def of(*kinds: str) -> ImageSet:
        samples = tuple(Sample(Path(f"{row}"), 0, "train", f"a/{row}.dcm") for row in range(len(kinds)))
        facts = tuple(Facts(f"{row}", 8, 8, "L", 1, modality=kind) for row, kind in enumerate(kinds))
        return ImageSet(torch.zeros(len(kinds), 1, 8, 8), torch.zeros(len(kinds)), samples, facts)

    (note,) = modalities(of("CT", "", "US", "US"))
    assert "several modalities: US (2 images, such as a/2.dcm), CT (1 image, such as a/0.dcm);" in note
    assert note.endswith("; remove the images that do not belong to this task")
    assert modalities(of("US", "", "US")) == modalities(of("", "")) == ()


def test_rows_are_the_images_asked_for_whether_or_not_they_follow_each_other(tmp_path: Path) -> None:
    images, _ = decode(samples_in(tmp_path), GREY)
    for rows in ([], [2], [1, 2, 3], [3, 2, 1], [0, 2, 4], [0, 2, 1, 3], [5, 5], [0, 1, 2, 3, 4, 5]):
        chosen = images.rows(rows)
        assert torch.equal(chosen.images, images.images[rows]) and torch.equal(chosen.labels, images.labels[rows])
        assert chosen.samples == tuple(images.samples[row] for row in rows)
    assert images.rows(range(1, 4)).images.data_ptr() == images.images[1].data_ptr(), (
        "a split in one piece needs no second memory"
    )
    assert images.to_grey().facts == images.facts


def test_the_fingerprint_is_the_same_for_the_same_data_and_another_for_any_change(tmp_path: Path) -> None:
    samples = samples_in(tmp_path / "a")
    images, _ = decode(samples, GREY)
    print_of = {"first": images.fingerprint}
    assert len(print_of["first"]) == 32 and int(print_of["first"], 16)
    again, _ = decode(samples_in(tmp_path / "elsewhere é 肺"), Preprocessing(size=16, channels=3))
    assert again.fingerprint == print_of["first"], (
        "neither the place of the folder nor the size of the network's input is data"
    )

    def with_sample(place: int, sample: Sample) -> ImageSet:
        return replace(images, samples=(*images.samples[:place], sample, *images.samples[place + 1 :]))

    first = images.samples[0]
    print_of["label"] = with_sample(0, replace(first, label=1)).fingerprint
    print_of["split"] = with_sample(0, replace(first, split="val")).fingerprint
    print_of["name"] = with_sample(0, replace(first, name="0/other.png")).fingerprint
    print_of["odd name"] = with_sample(0, replace(first, name="0/\udcff\n.png")).fingerprint
    print_of["order"] = images.rows([1, 0, 2, 3, 4, 5]).fingerprint
    print_of["fewer"] = images.rows([0, 1, 2, 3, 4]).fingerprint
    pixels = np.asarray(Image.open(samples[0].path)).copy()
    pixels[4, 4] ^= 1
    Image.fromarray(pixels).save(samples[0].path)
    print_of["one pixel by one"] = decode(samples, GREY)[0].fingerprint
    assert len(set(print_of.values())) == len(print_of)


def test_a_row_of_an_array_file_is_decoded_without_opening_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    samples = tuple(Sample(tmp_path / "set.npz", 0, "train", f"train/{row}", row=row) for row in range(4))
    (tmp_path / "set.npz").write_bytes(b"not asked for")
    monkeypatch.setattr("medmambase.data.decoded.image_set.pixels_of", lambda sample: rows[sample.row])
    images, errors = decode(samples, GREY)
    assert not errors and torch.equal(images.images[:, 0], torch.from_numpy(rows))


class Loaded:
    """Stands in for ``images.load`` where images are decoded on demand, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        monkeypatch.setattr(on_demand, "load", self)

    def __call__(
        self, path: Path, preprocessing: Preprocessing, pixels: object = None, frame: int = 0
    ) -> tuple[torch.Tensor, Facts]:
        self.names.append(path.name)
        return load(path, preprocessing)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_are_not_kept_are_the_same_whenever_they_are_asked_for(tmp_path: Path, channels: int) -> None:
    samples = samples_in(tmp_path, 9)
    samples[4].path.write_bytes(b"")
    how = replace(GREY, channels=channels)
    (kept, errors), (other, same_errors) = decode(samples, how), decode(samples, how, keep=False)
    assert list(map(str, errors)) == list(map(str, same_errors)) and len(errors) == 1
    assert isinstance(other.images, OnDemand) and other.images.shape == kept.images.shape == (8, channels, 8, 8)
    assert other.facts == kept.facts and other.samples == kept.samples and other.fingerprint == kept.fingerprint
    assert torch.equal(other.labels, kept.labels)
    for rows in ([0], [7, 2, 2], [], slice(2, 5), torch.tensor([6, 1]), slice(None)):
        assert torch.equal(other.images[rows], kept.images[rows])
    for part in ("train", "val", "test"):
        assert torch.equal(other.split(part).images[:], kept.split(part).images)
    assert other.is_grey() and torch.equal(other.to_grey().images[3:], kept.to_grey().images[3:])


def test_a_set_with_one_coloured_picture_is_not_grey_though_it_is_not_kept(tmp_path: Path) -> None:
    samples = samples_in(tmp_path)
    Image.new("RGB", (9, 9), (9, 9, 10)).save(samples[2].path)
    assert not decode(samples, Preprocessing(size=8), keep=False)[0].is_grey()


def test_what_is_expected_is_decoded_once_and_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_in(tmp_path, 12)
    images, _ = decode(samples, GREY, keep=False)
    plain, _ = decode(samples, GREY)
    loaded = Loaded(monkeypatch)
    order = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 0, 11])
    images.expect(order)
    assert isinstance(images.images, OnDemand)
    for _, future in list(images.images.ready):
        future.result()
    assert sorted(loaded.names) == sorted(samples[row].path.name for row in order.tolist()), (
        "before anything was asked for"
    )
    for rows in order.split(3):
        assert torch.equal(images.images[rows], plain.images[rows])
    assert len(loaded.names) == len(order), "nothing was decoded twice"
    images.expect(order)
    assert torch.equal(images.images[[8, 7]], plain.images[[8, 7]]) and torch.equal(
        images.images[order[:2]], plain.images[order[:2]]
    )
    images.expect(torch.tensor([10, 3]))
    for _, future in list(images.images.ready):
        future.result()
    loaded.names.clear()
    assert torch.equal(images.images[[10, 3]], plain.images[[10, 3]]) and loaded.names == [], (
        "only the last expectation counts"
    )
    plain.expect(order)  # nothing to do


def test_only_so_many_images_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = decode(samples_in(tmp_path, 4), GREY, keep=False)
    loaded = Loaded(monkeypatch)
    images.expect(torch.arange(4).repeat(1000))
    assert isinstance(images.images, OnDemand)
    for _, future in list(images.images.ready):
        future.result()
    assert len(loaded.names) == 256
    for rows in torch.arange(4).repeat(100).split(50):
        images.images[rows]
    for _, future in list(images.images.ready):
        future.result()
    assert len(loaded.names) == 256 + 400


@pytest.mark.parametrize("fate", ["gone", "changed", "damaged"])
def test_a_file_that_is_no_longer_what_it_was_stops_the_run_with_one_line(tmp_path: Path, fate: str) -> None:
    samples = samples_in(tmp_path)
    images, _ = decode(samples, GREY, keep=False)
    if fate == "gone":
        samples[1].path.unlink()
    else:
        samples[1].path.write_bytes(samples[2].path.read_bytes() if fate == "changed" else b"")
    images.expect(torch.arange(6))
    assert len(images.images[[0]]) == 1
    with pytest.raises(ImageError, match=r"001\.png: .") as caught:
        images.images[[1, 2]]
    assert fate != "changed" or "has changed since it was first read" in str(caught.value)
    assert len(images.images[[2]]) == 1
