"""Several frames of DICOM files."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import JPEG_2000, imagecodecs, pydicom, write
from pydicom.dataset import Dataset

from medmambase.config import Preprocessing
from medmambase.data.decoded.image_set import decode
from medmambase.data.manifest.sources import read_images
from medmambase.data.reading.images import ImageError, count_frames, decode_frames

FILM = [np.full((8, 8), value, dtype=np.uint8) for value in (50, 150, 250)]


def shown(path: Path, frames: tuple[int, ...] = (0, 1, 2)) -> list[object]:
    found = decode_frames(path, "percentile", frames)
    return [one.reason if isinstance(one, ImageError) else sorted(set(one.pixels.ravel().tolist())) for one in found]


@pytest.mark.parametrize("compressed", [False, True])
def test_each_frame_of_a_film_is_read(tmp_path: Path, compressed: bool) -> None:
    about = {"NumberOfFrames": 3, "Rows": 8}
    film = np.concatenate(FILM)
    coded = [imagecodecs.jpeg2k_encode(frame, codecformat="j2k", level=0) for frame in FILM]
    path = (
        write(tmp_path / "a.dcm", film, JPEG_2000, coded, **about)
        if compressed
        else write(tmp_path / "a.dcm", film, **about)
    )
    assert count_frames(path) == 3 and shown(path) == [[50], [150], [250]] and shown(path, (1,)) == [[150]]
    assert "frame 5: " in str(shown(path, (4,))[0])


def test_a_film_that_is_cut_short_keeps_its_first_frames(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = write(tmp_path / "a" / "IM0001", np.concatenate(FILM), NumberOfFrames=3, Rows=8, PatientID="P 7")
    write(tmp_path / "b" / "x.dcm", FILM[0], PatientID="P 8")
    path.write_bytes(path.read_bytes()[:-40])
    found = read_images(tmp_path, frames="all")
    assert [(sample.name, sample.patient) for sample in found.samples] == [
        ("a/IM0001#1", "P 7"), ("a/IM0001#2", "P 7"), ("a/IM0001#3", "P 7"), ("b/x.dcm", "P 8"),
    ]  # fmt: skip  # a pair a line
    images, bad = decode(found.samples, Preprocessing(size=8, channels=1))
    assert [sample.name for sample in images.samples] == ["a/IM0001#1", "a/IM0001#2", "b/x.dcm"]
    assert [one.reason.partition(":")[0] for one in bad] == ["frame 3"]


def test_a_header_that_claims_millions_of_frames_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", FILM[0], NumberOfFrames=2_000_000_000)
    assert count_frames(path) == 10_000
    assert count_frames(write(tmp_path / "b.dcm", FILM[0])) == 1


def test_each_frame_is_seen_through_its_own_window(tmp_path: Path) -> None:
    groups = []
    for low in (0, 100, 200):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = low + 50, 100, "LINEAR_EXACT"
        group.FrameVOILUTSequence = pydicom.Sequence([window])
        groups.append(group)
    values = np.concatenate([np.full((4, 4), value, dtype=np.uint16) for value in (50, 150, 250)])
    values[::4] += 25
    path = write(
        tmp_path / "a.dcm", values, NumberOfFrames=3, Rows=4, PerFrameFunctionalGroupsSequence=pydicom.Sequence(groups)
    )
    every = shown(path)
    assert every[0] == every[1] == every[2] and len(every[0]) == 2  # type: ignore[arg-type]  # a list of greys
