"""The audit: what is planted is found, and in a clean set there is nothing to find."""

import io
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data import phantom
from medmambase.data.audit import Audit, counted
from medmambase.data.audit import audit as audit_of
from medmambase.data.decoded.image_set import ImageSet, decode
from medmambase.data.manifest.folders import Manifest, Sample
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading.fitted import thumbnail
from medmambase.data.reading.images import Facts


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distinct drawn images in three splits, with patients; never changed."""
    return phantom.write_phantom(tmp_path_factory.mktemp("phantom"), images_per_class=40, seed=2)


def look(root: Path, size: int = 64, channels: int = 1, keep: bool = True) -> Audit:
    found = read_manifest(root, seed=0, allow_leak=True)
    images, _ = decode(found.samples, Preprocessing(size, channels), keep=keep)
    return audit_of(images, found)


def audit(images: ImageSet, found: Manifest) -> Audit:
    """Of pictures that were made here, in memory: with the thumbnails that files would have."""
    assert isinstance(images.images, torch.Tensor)
    seen = (thumbnail(picture[0].numpy()) for picture in images.images)
    facts = tuple(replace(one, thumbnail=small) for one, small in zip(images.facts, seen, strict=True))
    return audit_of(replace(images, facts=facts), found)


def copy(root: Path, to: Path) -> list[Path]:
    """A few of the drawn images of each split."""
    kept = []
    for split in ("train", "val", "test"):
        for path in sorted((root / split).rglob("*.png"))[::3]:
            target = to / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            kept.append(target)
    return kept


@pytest.mark.parametrize("size", [48, 64, 128])
def test_a_clean_set_gives_no_alarm(drawn: Path, size: int) -> None:
    found = look(drawn, size)
    assert (found.exact, found.near, found.across, found.conflicts, found.leaked, found.lines()) == (
        (),
        (),
        (),
        (),
        frozenset(),
        [],
    )
    assert found.sizes == {"96 x 96": 240} and found.modes == {"L": 240}


def jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    return Image.open(stream)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "twice the size": lambda image: image.resize((192, 192), Image.Resampling.BILINEAR),
    "darker": lambda image: image.point(lambda level: 0.7 * level),
    "brighter": lambda image: image.point(lambda level: 1.3 * level),
    "lifted": lambda image: image.point(lambda level: level + 40),
    "gamma 0.7": lambda image: image.point(lambda level: 255 * (level / 255) ** 0.7),
    "gamma 1.4": lambda image: image.point(lambda level: 255 * (level / 255) ** 1.4),
    "JPEG of quality 50": jpeg,
    "colour": lambda image: Image.merge("RGB", (image, image.point(lambda level: 0.9 * level), image)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_in_another_split_is_found_and_only_it(drawn: Path, tmp_path: Path, change: str) -> None:
    kept = copy(drawn, tmp_path)
    originals = [path for path in kept if "train" in path.parts][::9]
    for number, path in enumerate(originals):
        CHANGES[change](Image.open(path)).save(tmp_path / "test" / path.parent.name / f"twin{number}.png")
    found = look(tmp_path, channels=3)
    planted = {f"test/{path.parent.name}/twin{number}.png" for number, path in enumerate(originals)}
    assert found.leaked == planted and not found.conflicts and not found.exact and len(found.near) == len(originals)
    assert {pair.names for pair in found.across} == {
        (path.relative_to(tmp_path).as_posix(), f"test/{path.parent.name}/twin{number}.png")
        for number, path in enumerate(originals)
    }
    assert all(
        0.94 <= pair.likeness <= 1 and not pair.exact and pair.splits == ("train", "test") for pair in found.across
    )


def test_an_exact_copy_is_found_whatever_its_file(drawn: Path, tmp_path: Path) -> None:
    kept = copy(drawn, tmp_path)
    Image.open(kept[0]).save(tmp_path / "val" / kept[0].parent.name / "same.bmp")
    Image.open(kept[0]).convert("RGB").save(tmp_path / "test" / kept[0].parent.name / "same.png", optimize=True)
    found = look(tmp_path)
    names = [
        kept[0].relative_to(tmp_path).as_posix(),
        f"test/{kept[0].parent.name}/same.png",
        f"val/{kept[0].parent.name}/same.bmp",
    ]
    assert found.exact == (tuple(sorted(names)),) and found.near == () and found.leaked == {names[1]}
    assert Counter(pair.splits for pair in found.across) == {
        ("train", "val"): 1,
        ("train", "test"): 1,
        ("val", "test"): 1,
    }
    assert all(pair.exact and pair.likeness == 1 and "the same pixels" in pair.line() for pair in found.across)
    assert "duplicates in all: 3 images in 1 group" in found.lines()


def test_duplicates_of_different_classes_are_a_conflict_though_they_are_in_one_split(
    drawn: Path, tmp_path: Path
) -> None:
    kept = copy(drawn, tmp_path)
    brain, femur = (
        next(path for path in kept if path.parent.name == name and "train" in path.parts) for name in ("brain", "femur")
    )
    (femur.parent / "exact.png").write_bytes(brain.read_bytes())
    CHANGES["darker"](Image.open(femur)).save(brain.parent / "near.png")
    found = look(tmp_path)
    assert {(pair.names, pair.classes, pair.exact) for pair in found.conflicts} == {
        ((f"train/brain/{brain.name}", "train/femur/exact.png"), ("brain", "femur"), True),
        (("train/brain/near.png", f"train/femur/{femur.name}"), ("brain", "femur"), False),
    }
    assert found.across == () and found.leaked == frozenset()
    assert sum("duplicates of different classes" in line for line in found.lines()) == 2


def noise(
    count: int, labels: list[int], splits: list[str], patients: list[str] | None = None
) -> tuple[ImageSet, Manifest]:
    """Pictures of noise, which have nothing in common."""
    images = torch.randint(0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    samples = tuple(Sample(Path(f"{i:03d}.png"), labels[i], splits[i], f"{i:03d}.png") for i in range(count))
    facts = tuple(Facts(f"digest {i}", 32, 32, "L", 1, patients[i] if patients else "") for i in range(count))
    return ImageSet(images, torch.tensor(labels), samples, facts), Manifest(Path("data"), ("a", "b"), samples, ())


def test_a_patient_whom_only_the_files_know_is_found_in_two_splits() -> None:
    images, found = noise(
        6, [0, 1] * 3, ["train", "train", "val", "test", "test", "test"], ["x", "y", "z", "x", "", "w"]
    )
    audited = audit(images, found)
    assert audited.patients == {"x": Counter(train=1, test=1)} and audited.leaked == {"003.png"}
    assert "patients in two splits: patient x is in train (1 image) and test (1 image)" in audited.lines()


def test_pictures_are_compared_across_the_blocks_that_they_are_compared_in(monkeypatch: pytest.MonkeyPatch) -> None:
    images, found = noise(10, [0, 1] * 5, ["train"] * 10)
    images.images[9], images.images[8] = images.images[5] // 2, images.images[1] // 2
    monkeypatch.setattr("medmambase.data.audit._BLOCK", 4)
    assert audit(images, found).near == (("001.png", "008.png"), ("005.png", "009.png"))


def test_pairs_with_a_test_image_come_first() -> None:
    images, found = noise(4, [0, 1, 0, 1], ["train", "val", "train", "test"])
    speckle = 255 * torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(2))
    images.images[3] = (0.8 * images.images[2] + 0.2 * speckle).to(torch.uint8)
    images.images[1] = images.images[0]
    audited = audit(replace(images, facts=(images.facts[0], images.facts[0], *images.facts[2:])), found)
    for pairs in (audited.across, audited.conflicts):
        assert [pair.names for pair in pairs] == [("002.png", "003.png"), ("000.png", "001.png")]
        assert pairs[0].likeness < pairs[1].likeness == 1.0


def test_blank_pictures_are_no_duplicates_unless_they_are_the_same() -> None:
    images, found = noise(6, [0, 1] * 3, ["train"] * 3 + ["test"] * 3)
    for row in range(4):
        images.images[row] = 10 * row
    audited = audit(images, found)
    assert audited.near == () and audited.exact == ()
    same = replace(images, facts=(*images.facts[:3], replace(images.facts[3], digest="digest 0"), *images.facts[4:]))
    assert audit(same, found).exact == (("000.png", "003.png"),) and audit(same, found).leaked == {"003.png"}


def test_duplicates_within_the_test_split_leak_nothing() -> None:
    images, found = noise(4, [0, 1, 0, 1], ["train", "train", "test", "test"])
    images.images[3] = images.images[2] // 2
    audited = audit(images, found)
    assert audited.near == (("002.png", "003.png"),) and audited.leaked == frozenset() and audited.across == ()
    assert audited.lines()[-1] == "duplicates in all: 2 images in 1 group"  # of two classes
    images, found = noise(4, [0, 1, 1, 1], ["train", "train", "test", "test"])
    images.images[3] = images.images[2] // 2
    assert audit(images, found).lines() == [
        "duplicates in all: 2 images in 1 group, each in one split and of one class"
    ]


def test_what_all_pictures_of_a_probe_share_makes_no_duplicates() -> None:
    """The same fan, the same shading from top to bottom, and a speckle of its own."""
    images, found = noise(8, [0, 1] * 4, ["train", "test"] * 4)
    down, right = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    fan = (right.abs() < 0.2 + 0.7 * down) * (200 - 120 * down)
    images.images[:] = (fan + images.images.float() / 8).to(torch.uint8)
    flat = images.images.flatten(1).float()
    raw = torch.corrcoef(flat)
    assert raw.fill_diagonal_(1).min() > 0.95 and audit(images, found).near == ()
    few = noise(8, [0, 1] * 4, ["train", "test"] * 4)[0].images.float() / 32
    few[5] = few[2]
    images.images[:] = (fan + 4 * few).to(torch.uint8)
    assert audit(images, found).near == (("002.png", "005.png"),)


@pytest.mark.parametrize(("share", "found_twice"), [(0.55, False), (0.72, False), (0.75, True), (0.85, True)])
def test_a_picture_that_is_partly_another_is_its_duplicate_only_if_it_is_that_nearly(
    share: float, found_twice: bool
) -> None:
    images, found = noise(4, [0, 1, 0, 1], ["train"] * 4)
    images.images[3] = (share * images.images[0].float() + (1 - share) * images.images[1].float()).to(torch.uint8)
    assert bool(audit(images, found).near) == found_twice


def test_a_burnt_pixel_makes_no_duplicates_of_blank_pictures() -> None:
    images, found = noise(4, [0, 1, 0, 1], ["train"] * 4)
    images.images[:3] = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1)
    images.images[:3, :, 4, 7] += 3
    assert audit(images, found).near == ()


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_images_are_no_matter(count: int) -> None:
    images, found = noise(count, [0], ["train"])
    audited = audit(images, found)
    assert audited.lines() == [] and audited.to_dict()["findings"] == []


def test_images_that_are_decoded_when_they_are_used_give_the_same(drawn: Path, tmp_path: Path) -> None:
    kept = copy(drawn, tmp_path)
    CHANGES["darker"](Image.open(kept[0])).save(tmp_path / "test" / kept[0].parent.name / "twin.png")
    assert look(tmp_path) == look(tmp_path, keep=False) and look(tmp_path).leaked


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_the_order_of_the_images_changes_nothing_and_splits_change_only_what_is_about_splits(seed: int) -> None:
    chance = random.Random(seed)
    splits = [chance.choice(("train", "val", "test")) for _ in range(30)]
    images, found = noise(
        30, [chance.randrange(2) for _ in range(30)], splits, [chance.choice(("", "p", "q", "r")) for _ in range(30)]
    )
    for _ in range(8):
        one, other = chance.sample(range(30), 2)
        images.images[other] = (images.images[one].float() * chance.uniform(0.8, 1)).to(torch.uint8)
    facts = list(images.facts)
    for _ in range(3):
        one, other = chance.sample(range(30), 2)
        images.images[other], facts[other] = images.images[one], replace(facts[other], digest=facts[one].digest)
    images = replace(images, facts=tuple(facts))
    audited, order = audit(images, found), chance.sample(range(30), 30)
    assert audit(images.rows(order), found) == audited
    one_split = replace(images, samples=tuple(replace(sample, split="train") for sample in images.samples))
    alone = audit(one_split, found)
    assert (alone.exact, alone.near, {pair.names for pair in alone.conflicts}) == (
        audited.exact,
        audited.near,
        {tuple(sorted(p.names)) for p in audited.conflicts},
    )
    assert alone.across == () and alone.leaked == frozenset() and alone.patients == {}
    test = {sample.name for sample in images.samples if sample.split == "test"}
    assert (
        audited.leaked <= test
        and {name for pair in audited.across for name in pair.names if name in test and set(pair.splits) != {"test"}}
        <= audited.leaked
    )


def test_what_is_written_is_json_and_long_lists_are_cut_for_people_alone() -> None:
    import json

    images, found = noise(40, [0, 1] * 20, ["train", "test"] * 20)
    same = replace(images, facts=tuple(replace(facts, digest=f"{row // 2}") for row, facts in enumerate(images.facts)))
    audited = audit(same, found)
    written = json.loads(json.dumps(audited.to_dict()))
    assert len(written["across"]) == len(written["conflicts"]) == len(written["exact"]) == len(written["leaked"]) == 20
    assert (
        sum("duplicates in different splits" in line for line in audited.lines()) == 11
        and "duplicates in different splits: 10 more" in audited.lines()
    )
    assert np.array_equal(sorted(written["leaked"]), written["leaked"])


@pytest.mark.slow
def test_the_duplicates_of_real_sets_are_those_that_are_known(shared: Path) -> None:
    found = look(shared / "data" / "pneumoniamnist28" / "pneumoniamnist.npz", 32)
    assert Counter(pair.splits for pair in found.across) == {("train", "val"): 8} and found.leaked == frozenset()
    frames = look(shared / "data" / "pocus_lung")
    assert (
        frames.across == () and frames.conflicts == () and len(frames.near) > 50
    )  # frames of one video, which are in one split


def test_what_is_found_does_not_depend_on_how_a_network_takes_its_images(drawn: Path, tmp_path: Path) -> None:
    kept = copy(drawn, tmp_path)
    for number, path in enumerate(kept[::7]):
        how = list(CHANGES.values())[number % len(CHANGES)]
        how(Image.open(path)).save(tmp_path / "test" / path.parent.name / f"twin{number}.png")
    found = look(tmp_path, 48, 1)
    assert len(found.near) == len(kept[::7]) and found.leaked
    assert look(tmp_path, 16, 3) == found == look(tmp_path, 224, 1)


def test_findings_are_counted_not_the_lines_that_tell_them(drawn: Path, tmp_path: Path) -> None:
    kept = [path for path in copy(drawn, tmp_path) if "train" in path.parts]
    for number, path in enumerate(kept[:14]):
        (tmp_path / "test" / path.parent.name / f"twin{number}.png").write_bytes(path.read_bytes())
    found = look(tmp_path)
    assert len(found.lines()) == 12  # ten pairs, how many more there are, and a sum
    assert counted(found.to_dict()) == "14 groups of exact duplicates, 14 pairs of duplicates in different splits"
    assert counted({"patients": {"p1": 2}, "near": ()}) == "1 patient in two splits" and counted({}) == ""


def test_images_of_val_and_test_that_the_starting_weights_have_learned_from_are_named(images: Path) -> None:
    found = read_manifest(images, seed=0)
    decoded, _ = decode(found.samples, Preprocessing(32, 1))
    first = {split: decoded.split(split) for split in ("train", "val", "test")}
    seen = [part.facts[0].digest for part in first.values()]
    audited = audit_of(decoded, found, seen)
    assert audited.seen == tuple(sorted(first[split].samples[0].name for split in ("val", "test")))
    assert audited.counted() == "2 images of val or test that the starting weights have learned from"
    assert audited.lines() == [
        f"images of val or test that the starting weights have learned from: {', '.join(audited.seen)}"
    ]
    assert audited.to_dict()["seen"] == list(audited.seen) and audit_of(decoded, found).seen == ()
