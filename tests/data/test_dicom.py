"""DICOM: the picture a viewer shows, whatever way it is stored, and one line for what is no
picture."""

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import (
    DEFLATED,
    JPEG_LS,
    LOSSLESS_1,
    PHOTO,
    RAMP,
    grey,
    reason,
    window,
    write,
)
from PIL import Image

from medmambase.config import Preprocessing
from medmambase.data.manifest.sources import read_manifest
from medmambase.data.reading import dicom
from medmambase.data.reading.images import is_dicom, load, read_image

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra dicom is not installed")
from pydicom.dataset import Dataset  # noqa: E402  # after it is known to be there


def test_eight_bits_stay_as_they_are_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    values = PHOTO[..., 2]
    assert np.array_equal(grey(write(tmp_path / "a.dcm", values)), values)
    assert np.array_equal(
        grey(write(tmp_path / "b.dcm", values, PhotometricInterpretation="MONOCHROME1")), 255 - values
    )


@pytest.mark.parametrize(("mode", "turn"), [("MONOCHROME2", 1), ("MONOCHROME1", -1)])
def test_sixteen_bits_without_a_window_are_scaled_as_a_16_bit_png_is(tmp_path: Path, mode: str, turn: int) -> None:
    path = write(tmp_path / "a.dcm", RAMP, BitsStored=13, PhotometricInterpretation=mode)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(grey(path), grey(tmp_path / "a.png")[::turn, ::turn])
    whole = np.rint(RAMP / (2**13 - 1) * 255)
    assert np.abs(grey(path, "range") - (whole if turn == 1 else 255 - whole)).max() <= 1


def test_signed_values_of_twelve_bits_reach_from_black_to_white(tmp_path: Path) -> None:
    stored = (RAMP.astype(np.int16) - 2048) & 0xFFF  # the four bits above belong to nobody
    path = write(tmp_path / "a.dcm", stored.astype(np.int16), BitsStored=12)
    assert np.array_equal(grey(path, "range"), np.rint(RAMP / 4095 * 255))


@pytest.mark.parametrize("high_depth", ["percentile", "range"])
def test_the_first_window_of_the_file_is_what_is_shown(tmp_path: Path, high_depth: str) -> None:
    for name, elements, right in (
        ("linear", {"WindowCenter": [1000, 5], "WindowWidth": [401, 9]}, window(RAMP, 799.5, 1199.5)),
        (
            "exact",
            {"WindowCenter": 1000, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
            window(RAMP, 800, 1200),
        ),
        (
            "sigmoid",
            {"WindowCenter": 1000, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"},
            np.rint(255 / (1 + np.exp(-4 * (RAMP / 400 - 2.5)))),
        ),
        (
            "rescaled",
            {"WindowCenter": 0, "WindowWidth": 401, "RescaleSlope": 2, "RescaleIntercept": -2000},
            window(RAMP * 2.0 - 2000, -200.5, 199.5),
        ),
        (
            "inverted",
            {"WindowCenter": 1000, "WindowWidth": 401, "PhotometricInterpretation": "MONOCHROME1"},
            255 - window(RAMP, 799.5, 1199.5),
        ),
    ):
        assert np.abs(grey(write(tmp_path / f"{name}.dcm", RAMP, **elements), high_depth) - right).max() <= 1, name


@pytest.mark.parametrize(
    "elements",
    [{"WindowWidth": 0}, {"WindowWidth": 1}, {"WindowWidth": -50}, {"WindowCenter": 60000}, {"WindowCenter": ""}],
)
def test_a_window_that_shows_nothing_is_as_none(tmp_path: Path, elements: dict[str, Any]) -> None:
    path = write(tmp_path / "a.dcm", RAMP, **({"WindowCenter": 1000, "WindowWidth": 400} | elements))
    assert np.array_equal(grey(path), grey(write(tmp_path / "b.dcm", RAMP)))


def test_a_table_goes_before_a_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], [4095 - i for i in range(4096)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write(tmp_path / "a.dcm", RAMP, BitsStored=12, VOILUTSequence=[table], WindowCenter=5, WindowWidth=5)
    assert np.array_equal(grey(path), np.rint((4095 - RAMP.astype(float)) / 4095 * 255))


def test_a_falling_rescale_turns_the_values_round(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", PHOTO[..., 1], RescaleSlope=-1, RescaleIntercept=255)
    assert np.array_equal(grey(path), 255 - PHOTO[..., 1])


def test_an_enhanced_file_has_its_window_in_the_groups(tmp_path: Path) -> None:
    shown, group = Dataset(), Dataset()
    shown.WindowCenter, shown.WindowWidth = 1000, 401
    group.FrameVOILUTSequence = [shown]
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        path = write(tmp_path / "a.dcm", RAMP, **{groups: [group]})
        assert np.abs(grey(path) - window(RAMP, 799.5, 1199.5)).max() <= 1


@pytest.mark.parametrize("mode", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_as_contrast(tmp_path: Path, mode: str) -> None:
    values = (RAMP % 500 + 1000).astype(np.int16)
    values[:20] = -2000
    shown = grey(write(tmp_path / "a.dcm", values, PixelPaddingValue=-2000, PhotometricInterpretation=mode))
    bare = grey(write(tmp_path / "b.dcm", values[20:], PhotometricInterpretation=mode))
    assert shown[:20].max() == 0 and np.array_equal(shown[20:], bare)


def test_colours_come_out_in_their_colours(tmp_path: Path) -> None:
    assert np.array_equal(read_image(write(tmp_path / "a.dcm", PHOTO), 3), PHOTO)
    planes = np.moveaxis(PHOTO, 2, 0).reshape(PHOTO.shape)  # the bytes of three planes
    assert np.array_equal(read_image(write(tmp_path / "b.dcm", planes, PlanarConfiguration=1), 3), PHOTO)
    ybr = np.asarray(Image.fromarray(PHOTO).convert("YCbCr"))
    assert (
        np.abs(
            read_image(write(tmp_path / "c.dcm", ybr, PhotometricInterpretation="YBR_FULL"), 3).astype(int) - PHOTO
        ).max()
        <= 3
    )
    deep = PHOTO.astype(np.uint16) << 4
    full = read_image(write(tmp_path / "d.dcm", deep, BitsStored=12), 3, "range")
    assert np.abs(full.astype(int) - PHOTO).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette_becomes_its_colours(tmp_path: Path, depth: int) -> None:
    kind = np.uint8 if depth == 8 else np.uint16
    tables = {
        colour: (np.arange(256) * step % 256).astype(kind) * kind(1 if depth == 8 else 257)
        for colour, step in (("Red", 1), ("Green", 3), ("Blue", 7))
    }
    elements: dict[str, Any] = {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, depth] for colour in tables}
    elements |= {f"{colour}PaletteColorLookupTableData": table.tobytes() for colour, table in tables.items()}
    index = PHOTO[..., 0]
    shown = read_image(
        write(tmp_path / "a.dcm", index, PhotometricInterpretation="PALETTE COLOR", **elements), 3
    ).astype(int)
    assert np.array_equal(shown, np.stack([index.astype(int) * step % 256 for step in (1, 3, 7)], axis=2))


def test_the_first_frame_the_patient_and_the_number_of_frames_are_told(tmp_path: Path) -> None:
    frames = [np.full((8, 8), value, dtype=np.uint8) for value in (50, 150, 250)]
    path = write(
        tmp_path / "IM000001",
        np.concatenate(frames),
        NumberOfFrames=3,
        Rows=8,
        PatientID=" Müller\n7 ",
        SpecificCharacterSet="ISO_IR 192",
    )
    image, facts = load(path, Preprocessing(size=8, channels=1))
    assert image.unique().tolist() == [50] and is_dicom(path)
    assert (facts.mode, facts.frames, facts.patient, facts.width, facts.height) == (
        "DICOM MONOCHROME2",
        3,
        "Müller 7",
        8,
        8,
    )
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", Preprocessing(size=8))[1].digest == facts.digest and not is_dicom(
        tmp_path / "a.png"
    )


def test_a_folder_of_dicom_files_is_split_by_the_patients_they_tell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for patient in range(14):
        for image in range(3):
            name = f"IM{patient:03d}{image}" + ("" if image else ".dcm")
            folder = tmp_path / "data" / "ab"[patient % 2]
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / name, rng.integers(0, 256, (6, 6), dtype=np.uint8), PatientID=f"P {patient}")
    found = read_manifest(tmp_path / "data", seed=0)
    of = {
        patient: {sample.split for sample in found.samples if sample.patient == patient}
        for patient in {sample.patient for sample in found.samples}
    }
    assert (
        len(found.samples) == 42
        and len(of) == 14
        and all(len(splits) == 1 for splits in of.values())
        and "by patient" in found.method
    )
    (tmp_path / "data" / "a" / "broken.dcm").write_bytes(b"x" * 128 + b"DICM" + b"y" * 50)
    assert [
        sample.patient for sample in read_manifest(tmp_path / "data", seed=0).samples if sample.name == "a/broken.dcm"
    ] == [""]


def test_of_a_long_film_only_the_first_frame_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", PHOTO, NumberOfFrames=100_000)
    with path.open("r+b") as stream:
        stream.truncate(2_000_000)
    tracemalloc.start()
    try:
        assert np.array_equal(read_image(path, 3), PHOTO)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_a_length_field_cannot_set_aside_more_than_the_file_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    tracemalloc.start()
    try:
        with dicom._Bounded(tmp_path / "a") as stream:
            assert stream.read(4) == b"0123" and stream.read(2**31) == b"456789" and stream.read(2**31) == b""
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_picture_costs_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", RAMP)
    (tmp_path / "cut.dcm").write_bytes(whole.read_bytes()[:-1000])
    assert "cut short" in reason(tmp_path / "cut.dcm") and dicom.patient_of(tmp_path / "cut.dcm") == "P 7"
    assert "a segmentation (SEG): not an image" in reason(write(tmp_path / "b.dcm", RAMP, Modality="SEG"))
    assert "a dose grid" in reason(write(tmp_path / "c.dcm", RAMP, Modality="RTDOSE"))
    assert "'HSV', is not read" in reason(write(tmp_path / "d.dcm", PHOTO, PhotometricInterpretation="HSV"))
    assert "more than 100 million pixels" in reason(write(tmp_path / "e.dcm", RAMP, Rows=60000, Columns=60000))
    assert "stored as JPEG-LS, which is not read" in reason(
        write(tmp_path / "h.dcm", RAMP, JPEG_LS, [imagecodecs.jpegls_encode(RAMP)])
    )
    assert "deflated" in reason(write(tmp_path / "f.dcm", RAMP, DEFLATED))
    assert dicom.patient_of(tmp_path / "f.dcm") == ""  # it would be unpacked whole
    no_pixels = pydicom.dcmread(whole)
    del no_pixels.Rows, no_pixels.PixelData
    no_pixels.Modality = "RTPLAN"
    no_pixels.save_as(tmp_path / "g.dcm")
    assert "a treatment plan (RTPLAN)" in reason(tmp_path / "g.dcm")


@pytest.mark.parametrize("missing", ["pydicom", "imagecodecs"])
def test_without_the_extra_a_dicom_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    path = write(tmp_path / "a", RAMP, LOSSLESS_1, [imagecodecs.jpeg_encode(RAMP, lossless=True, bitspersample=16)])
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    assert reason(path).endswith('DICOM file; to read it: pip install "medmambase[dicom]"')


def stored(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of an uncompressed file, found without a DICOM library."""
    data = path.read_bytes()
    return np.frombuffer(data, dtype, int(np.prod(shape)), data.rindex(b"\xe0\x7f\x10\x00O") + 12).reshape(shape)


def test_the_odd_dicom_files_show_the_values_that_others_find(shared: Path) -> None:
    folder = shared / "data" / "odd_formats" / "dicom"
    magnet = window(stored(folder / "MR_small.dcm", "<i2", (64, 64)), 600 - 0.5 - 1599 / 2, 600 - 0.5 + 1599 / 2)
    overlay = window(
        stored(folder / "examples_overlay.dcm", "<u2", (300, 484)), 450 - 0.5 - 789 / 2, 450 - 0.5 + 789 / 2
    )
    tomogram = stored(folder / "CT_small.dcm", "<i2", (128, 128))
    film = (folder / "examples_ybr_color.dcm").read_bytes()
    echo = next(
        pydicom.encaps.generate_frames(pydicom.dcmread(folder / "examples_jpeg2k.dcm").PixelData, number_of_frames=1)
    )  # in several pieces
    square = (folder / "SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    bone = (folder / "JPEG-lossy.dcm").read_bytes()
    right = {
        "MR_small.dcm": magnet,
        "MR_small_RLE.dcm": magnet,
        "examples_overlay.dcm": overlay,
        "CT_small.dcm": window(tomogram, *np.percentile(tomogram, (0.1, 99.9))),
        "examples_rgb_color.dcm": stored(folder / "examples_rgb_color.dcm", "u1", (240, 320, 3)),
        "examples_ybr_color.dcm": imagecodecs.jpeg_decode(film[film.index(b"\xff\xd8\xff") :]),
        "examples_jpeg2k.dcm": imagecodecs.jpeg2k_decode(echo),
        "SC_rgb_jpeg_dcmtk.dcm": imagecodecs.jpeg_decode(square[square.index(b"\xff\xd8\xff") :]),
        "JPEG-lossy.dcm": window(
            imagecodecs.jpeg_decode(bone[bone.index(b"\xff\xd8\xff") :]),
            *np.percentile(imagecodecs.jpeg_decode(bone[bone.index(b"\xff\xd8\xff") :]), (0.1, 99.9)),
        ),
    }
    for name, values in right.items():
        difference = np.abs(
            read_image(folder / name, 3).astype(float) - (values[..., None] if values.ndim == 2 else values)
        )
        assert difference.max() <= 1.5, name
    for name in ("SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm"):  # the same test card
        assert (
            np.abs(read_image(folder / name, 3).astype(int) - read_image(folder / "SC_rgb_jpeg_dcmtk.dcm", 3)).mean()
            < 3
        )
    assert (
        read_image(folder / "ExplVR_BigEnd.dcm", 3).shape == (60, 80, 3)
        and read_image(folder / "examples_palette.dcm", 3).std(axis=2).max() > 50
    )
    for name in ("MR_truncated.dcm", "badVR.dcm", "liver_1frame.dcm", "no_meta.dcm", "rtplan.dcm"):
        reason(folder / name)
