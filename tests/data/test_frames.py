"""Files with several frames: which are taken, what they are called, and that they are one group."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmambase.config import ConfigError, Preprocessing
from medmambase.data.audit import audit
from medmambase.data.decoded import image_set
from medmambase.data.decoded.disk_cache import Cache
from medmambase.data.decoded.image_set import decode
from medmambase.data.decoded.originals import originals
from medmambase.data.manifest.folders import Manifest
from medmambase.data.manifest.sources import read_images, read_manifest
from medmambase.data.pseudonyms import Pseudonyms
from medmambase.data.reading import images as reading
from medmambase.data.reading.clip import Clip
from medmambase.data.reading.frames import chosen
from medmambase.data.reading.images import ImageError, decode_frames, load
from medmambase.settings import resolve

SMALL = Preprocessing(16, 1, "stretch")


def clip(path: Path, frames: int, seed: int = 0) -> Path:
    """Write a clip of small pictures, each of another grey, with a moving square."""
    pictures = []
    for frame in range(frames):
        pixels = np.full((24, 24), 20 * (frame + 1) + seed, dtype=np.uint8)
        pixels[2:8, 2 + frame : 8 + frame] = 250
        pictures.append(Image.fromarray(pixels))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def folder(root: Path) -> Path:
    """Two classes: clips of GIF and TIFF, and single pictures."""
    clip(root / "a" / "clip ü.gif", 12)
    clip(root / "a" / "two.tif", 2, 5)
    clip(root / "b" / "stack.tiff", 5, 9)
    clip(root / "b" / "one.png", 1, 3)
    return root


@pytest.mark.parametrize(
    ("wish", "count", "wanted"),
    [
        ("first", 9, [0]), ("all", 3, [0, 1, 2]), ("middle", 9, [4]), ("middle", 1, [0]), ("middle", 2, [1]),
        ("3", 9, [1, 4, 7]), ("1", 9, [4]), ("2", 8, [2, 6]), ("5", 3, [0, 1, 2]), ("4", 10, [1, 3, 6, 8]),
    ],
)  # fmt: skip  # a table
def test_frames_are_taken_from_the_middle_of_parts_of_equal_length(wish: str, count: int, wanted: list[int]) -> None:
    assert chosen(wish, count) == wanted


@pytest.mark.parametrize("wish", ["last", "0", "-1", "1.5", "", "9" * 9])
def test_another_wish_is_refused_and_says_what_is_wanted(wish: str) -> None:
    with pytest.raises(ConfigError, match=r"frames .* must be first, middle, all, or how many frames"):
        resolve({"data": "x", "frames": wish})


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.png", "x.webp"])
def test_every_frame_equals_that_of_the_file_opened_for_it_alone(tmp_path: Path, name: str) -> None:
    path = clip(tmp_path / name, 4)
    found = list(decode_frames(path, "percentile", (0, 2, 3)))
    for frame, one in zip((0, 2, 3), found, strict=True):
        assert isinstance(one, reading.Decoded) and one.frames == 4
        with Image.open(path) as picture:
            picture.seek(frame)
            alone = np.asarray(picture.convert("L"))
        grey = one.pixels if one.pixels.ndim == 2 else one.pixels[..., 0]
        assert np.abs(grey.astype(int) - alone).max() <= 2
        again, facts = load(path, SMALL, frame=frame)
        assert torch.equal(again, load(path, SMALL, one)[0]) and facts.frames == 4


def test_frames_are_named_by_their_number_and_belong_to_one_patient(tmp_path: Path) -> None:
    found = read_images(folder(tmp_path), frames="all")
    assert [sample.name for sample in found.samples] == [
        *(f"a/clip ü.gif#{number:02}" for number in range(1, 13)), "a/two.tif#1", "a/two.tif#2", "b/one.png",
        *(f"b/stack.tiff#{number}" for number in range(1, 6)),
    ]  # fmt: skip  # file by file
    assert {sample.patient for sample in found.samples} == {"a/clip ü.gif", "a/two.tif", "", "b/stack.tiff"}
    assert found.notes[-1] == (
        "19 frames of 3 files with several are images; nobody knows the patient of 3 of these files, so the frames of "
        "a file count as one patient"
    )
    named = read_images(tmp_path, frames="2", group_regex=r"(?:^|/)(\w)\w*[ .]")
    assert [(sample.name, sample.patient) for sample in named.samples][:3] == [
        ("a/clip ü.gif#04", "c"), ("a/clip ü.gif#10", "c"), ("a/two.tif#1", "t"),
    ]  # fmt: skip  # a pair a line
    assert read_images(tmp_path) == read_images(tmp_path, frames="first")
    assert all(sample.frame is None for sample in read_images(tmp_path).samples)


def test_no_split_separates_the_frames_of_a_file(tmp_path: Path) -> None:
    for number in range(9):
        clip(tmp_path / "ab"[number % 2] / f"{number}.gif", 3 + number, number)
    samples = read_manifest(tmp_path, seed=1, frames="all").samples
    splits = {sample.path: {one.split for one in samples if one.path == sample.path} for sample in samples}
    assert len(splits) == 9 and all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


def test_a_file_is_decoded_once_and_not_again_with_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = read_images(folder(tmp_path / "data"), frames="all").samples
    opened: list[Path] = []
    monkeypatch.setattr(
        reading, "open_regular", lambda path, _open=reading.open_regular: opened.append(path) or _open(path)
    )
    cache = Cache(tmp_path / "cache")
    first, bad = decode(samples, SMALL, cache=cache)
    assert not bad and sorted(opened) == sorted({sample.path for sample in samples})
    again, _ = decode(samples, SMALL, cache=cache)
    assert len(opened) == 4 and torch.equal(first.images[:], again.images[:])
    assert [one.digest for one in first.facts] == [one.digest for one in again.facts]
    assert len({one.digest for one in first.facts}) == 20
    sparing, _ = decode(samples, SMALL, keep=False)
    assert torch.equal(sparing.images[:], first.images[:])
    other = decode([samples[3], samples[15], samples[1]], SMALL)[0]
    assert torch.equal(other.images[:], first.images[[3, 15, 1]])
    big = originals(first, [11])[0]
    assert big.shape == (3, 24, 24) and big.float().mean() > originals(first, [0])[0].float().mean() + 100


def test_a_frame_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    path = clip(tmp_path / "a" / "cut.tif", 5)
    clip(tmp_path / "b" / "whole.gif", 3)
    with Image.open(path) as picture:
        picture.seek(4)
        place = picture.tag_v2[273][0]  # where the last frame's pixels lie
    content = path.read_bytes()
    samples = read_images(tmp_path, frames="all").samples
    path.write_bytes(content[:place])
    found = list(decode_frames(path, "percentile", range(5)))
    lost = [number for number, one in enumerate(found) if isinstance(one, ImageError)]
    assert lost == [4]
    images, bad = decode(samples, SMALL)
    assert len(images.samples) + len(bad) == 8 and len(bad) == len(lost) < 5
    assert bad[0].reason.startswith(f"frame {lost[0] + 1}: ")


def test_frames_of_a_file_that_has_changed_are_errors(tmp_path: Path) -> None:
    path = clip(tmp_path / "x.gif", 4)
    found = list(decode_frames(path, "percentile", (1, 7)))
    assert not isinstance(found[0], ImageError) and isinstance(found[1], ImageError)
    assert str(found[1]).startswith(f"{path}: frame 8: ")
    path.write_bytes(b"nothing")
    assert all(isinstance(one, ImageError) for one in decode_frames(path, "percentile", (0, 1)))


def test_the_audit_takes_the_frames_of_a_file_for_one_group(tmp_path: Path) -> None:
    found = read_images(folder(tmp_path / "data"), frames="all")
    still = Image.new("L", (24, 24), 90)
    still.putpixel((3, 3), 200)
    still.save(tmp_path / "data" / "a" / "still.tif", save_all=True, append_images=[still, still])
    found = read_images(tmp_path / "data", frames="all")
    images, _ = decode(found.samples, SMALL)
    own = audit(images, found)
    assert not [group for group in (*own.exact, *own.near) if len({name.partition("#")[0] for name in group}) == 1]
    still.save(tmp_path / "data" / "b" / "copy.png")
    found = read_images(tmp_path / "data", frames="all")
    twins = audit(decode(found.samples, SMALL)[0], found)
    assert any("b/copy.png" in group for group in twins.exact) and twins.conflicts


def test_names_below_no_folder_keep_their_number(tmp_path: Path) -> None:
    first, other = clip(tmp_path / "one" / "x.gif", 3), clip(tmp_path / "two" / "x.gif", 3)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "t.csv").write_text(f"path,label\n{first},a\n{other},b\n", encoding="utf-8")
    found = read_images(tmp_path / "table" / "t.csv", frames="middle")
    called = Pseudonyms.new().of_manifest(found)
    assert [sample.name.rpartition("/")[2] for sample in called.samples] == ["x.gif#2", "x.gif#2"]
    assert len({sample.name for sample in called.samples}) == 2 and str(tmp_path) not in called.samples[0].name


def test_a_table_of_files_divides_their_frames(tmp_path: Path) -> None:
    folder(tmp_path / "data")
    (tmp_path / "data" / "a" / "two.tif").rename(tmp_path / "data" / "a" / "two #1.tif")
    rows = "path,split\na/clip ü.gif,train\na/two #1.tif,test\nb/stack.tiff#2,val\nb/one.png,train\n"
    (tmp_path / "s.csv").write_text(rows, encoding="utf-8")
    found = read_images(tmp_path / "data", frames="all", splits=tmp_path / "s.csv")
    assert [(sample.name[-2:], sample.split) for sample in found.samples if sample.split != "train"] == [
        ("#1", "test"), ("#2", "test"), ("#2", "val"),
    ]  # fmt: skip  # a pair a line
    assert any("4 images are not named" in note for note in found.notes)


def test_frames_have_the_label_split_and_patient_that_the_table_gives_their_file(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "t.csv").write_text(
        "path,label,split,patient\na/clip ü.gif,x,val,p1\na/two.tif,y,train,p2\nb/stack.tiff,x,test,\n"
        "b/one.png,x,train,p3\n", encoding="utf-8",
    )  # fmt: skip  # a table
    found = read_manifest(tmp_path / "t.csv", seed=0, frames="all")
    told = {sample.path.name: (found.classes[sample.label], sample.split, sample.patient) for sample in found.samples}
    assert len(found.samples) == 20 and told == {
        "clip ü.gif": ("x", "val", "p1"), "two.tif": ("y", "train", "p2"), "one.png": ("x", "train", "p3"),
        "stack.tiff": ("x", "test", "b/stack.tiff"),
    }  # fmt: skip  # a file a pair


def test_the_note_on_frames_that_are_passed_over_is_for_those_who_chose_none(tmp_path: Path) -> None:
    folder(tmp_path)
    for wish, told in ((None, True), ("all", False)):
        images, _ = decode(read_images(tmp_path, frames=wish).samples, SMALL)
        assert bool(image_set.clips(images)) == told


def test_threads_get_each_frame_of_a_clip_whatever_the_order(tmp_path: Path) -> None:
    path = clip(tmp_path / "x.gif", 5)
    found = Clip(path, SMALL, range(5))
    for frame in (2, 0, 1, 4, 3):
        assert torch.equal(found.take(frame)[0], load(path, SMALL, frame=frame)[0])
    with pytest.raises(ImageError, match="frame 9"):
        Clip(path, SMALL, [8]).take(8)


def test_a_manifest_without_clips_stays_as_it_is(tmp_path: Path) -> None:
    clip(tmp_path / "a" / "x.png", 1)
    clip(tmp_path / "b" / "y.png", 1)
    found: Manifest = read_images(tmp_path, frames="all")
    assert found == read_images(tmp_path)
