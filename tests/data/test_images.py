"""Any image file: the right pixels, or one line that says why not."""

import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from conftest import PATIENCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import colours
from PIL import Image

from medmambase.data.reading.images import ImageError, fit, read_image

RAMP = np.linspace(0, 4000, 64 * 64).reshape(64, 64)
EIGHT_BIT_RAMP = np.rint(RAMP / 4000 * 255)


def png_16_bit_colour(values: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2"), ("jp2", "<u2"), ("tif", "<i4"), ("tif", "<f4")],
)
def test_a_16_bit_ramp_to_4000_comes_out_neither_white_nor_black(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP.astype(dtype)).save(path)
    grey = read_image(path, 1)[:, :, 0].astype(int)
    assert grey.min() == 0 and grey.max() == 255
    assert np.abs(grey - EIGHT_BIT_RAMP).max() <= 2  # 0.1 % is clipped at each end


def test_full_range_scaling_divides_16_bit_values_by_65535(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4000, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1, "range")[0, :, 0].tolist() == [0, 16, 128, 255]


def test_full_range_scaling_of_floats_takes_0_to_1_or_their_own_extremes(tmp_path: Path) -> None:
    for name, values, expected in (
        ("unit", [0.0, 0.2, 0.6], [0, 51, 153]),
        ("wide", [-10.0, 0.0, 10.0], [0, 128, 255]),
    ):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / f"{name}.tif")
        assert read_image(tmp_path / f"{name}.tif", 1, "range")[0, :, 0].tolist() == expected


def test_a_16_bit_colour_png_is_stretched_like_a_grey_one(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png_16_bit_colour(np.repeat(RAMP[:, :, None], 3, axis=2)))
    pixels = read_image(path, 3).astype(int)
    assert np.abs(pixels - EIGHT_BIT_RAMP[:, :, None]).max() <= 18  # Pillow keeps the high byte: 16 steps
    assert read_image(path, 3, "range").max() == 15


def test_not_a_number_is_black_and_infinity_is_clipped(tmp_path: Path) -> None:
    values = np.linspace(10, 20, 4096, dtype=np.float32).reshape(64, 64)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    with np.errstate(all="raise"):  # a NaN made an integer is 0 on one processor and not on another
        grey = read_image(tmp_path / "a.tif", 1)[:, :, 0]
    assert grey[0, :3].tolist() == [0, 255, 0]
    assert abs(int(grey[32, 0]) - 128) <= 2


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
@pytest.mark.parametrize("high_depth", ["percentile", "range"])
def test_a_constant_float_image_is_read_without_a_warning(tmp_path: Path, value: float, high_depth: str) -> None:
    Image.fromarray(np.full((5, 4), value, dtype=np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 3, high_depth).shape == (5, 4, 3)


def test_a_few_bright_dots_on_an_even_16_bit_ground_stay_visible(tmp_path: Path) -> None:
    values = np.full((100, 100), 300, dtype=np.uint16)
    values[50, 50] = 900
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1)[50, 50, 0] == 255


def test_a_transparent_16_bit_value_is_black(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.png", transparency=int(RAMP.astype(np.uint16)[40, 3]))
    grey = read_image(tmp_path / "a.png", 1)[:, :, 0]
    assert grey[40, 3] == 0 and grey[40, 5] > 100


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_black(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((255, 128, 0)):
        picture.putpixel((column, 0), (200, 200, 200, alpha))
    if mode == "PA":  # as a palette whose entries have an alpha each
        picture.convert("RGB").quantize(4).save(tmp_path / "a.png", transparency=bytes([128] * 4))
        assert abs(int(read_image(tmp_path / "a.png", 3).max()) - 100) <= 1
    else:
        picture.convert(mode).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", 3)[0, :, 0].tolist() == [200, 100, 0]


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("CMYK", "tif", 2), ("CMYK", "jpg", 30), ("P", "gif", 40), ("P", "png", 40), ("YCbCr", "tif", 18)],
)
def test_colour_modes_come_out_in_their_colours(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(colours())
    # Before version 13 Pillow could not read the YCbCr TIFF it writes without compression; those
    # that are met are compressed.
    options: dict[str, Any] = {"compression": "jpeg", "quality": 95} if mode == "YCbCr" else {}
    (picture.quantize(256) if mode == "P" else picture.convert(mode)).save(path, **options)
    difference = np.abs(read_image(path, 3).astype(int) - colours())
    assert difference.mean() <= tolerance / 3 and difference.max() <= tolerance


def test_a_1_bit_image_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1)[0, :, 0].tolist() == [255, 0]


def test_lab_is_converted(tmp_path: Path) -> None:
    picture = Image.new("LAB", (2, 2), (137, 128, 128))  # mid grey: a and b are stored with an offset of 128
    picture.save(tmp_path / "a.tif")
    assert np.abs(read_image(tmp_path / "a.tif", 3).astype(int) - 128).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in (50, 150, 250)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert abs(int(read_image(tmp_path / f"a.{suffix}", 1).mean()) - 50) <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that undoes what the reader must do
    stored = Image.fromarray(colours())
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options.get(suffix, {}))
    pixels = read_image(tmp_path / f"a.{suffix}", 3)
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels.astype(int) - colours()).mean() < 3


def test_grey_becomes_colour_by_repetition_and_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    Image.fromarray(colours()[:, :, 0]).save(tmp_path / "grey.png")
    grey = read_image(tmp_path / "grey.png", 3)
    assert np.array_equal(grey, np.repeat(colours()[:, :, :1], 3, axis=2))
    Image.fromarray(colours()).save(tmp_path / "colour.png")
    luma = colours() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "colour.png", 1)[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "gif", "webp", "jp2"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_file_cut_short_costs_one_line(tmp_path: Path, suffix: str, share: float) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError) as caught:
        read_image(cut, 3)
    assert caught.value.path == cut
    assert (
        str(caught.value) == f"{cut}: {caught.value.reason}" and "\n" not in str(caught.value) and caught.value.reason
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [("two\nlines.png", r"two\nlines.png"), ("a\r\u2028b.png", r"a\r\u2028b.png"), ("\udcff ü 肺", r"\udcff ü 肺")],
)
def test_an_error_is_one_line_whatever_the_files_name(name: str, shown: str) -> None:
    assert str(ImageError(Path(name), "damaged")) == f"{shown}: damaged"


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("text.png", "not a known image format"),
        ("missing.png", "No such file"),
        ("folder.png", "."),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name, 3)


def test_a_file_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    for width, height in ((12_000, 9_000), (60_000, 60_000)):  # where Pillow warns, and where it raises
        header = (
            b"BM"
            + struct.pack("<IHHI", 54, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        )
        (tmp_path / "big.bmp").write_bytes(header + bytes(100))
        with pytest.raises(ImageError, match="more than 100 million pixels"):
            read_image(tmp_path / "big.bmp", 3)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "error",
    [
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        KeyError,
        EOFError,
        MemoryError,
        struct.error,
        zlib.error,
        OverflowError,
    ],
)
def test_whatever_pillow_raises_becomes_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("two\nlines")

    Image.new("L", (4, 4)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", fail)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.bmp", 1)
    assert caught.value.reason and "\n" not in str(caught.value)


def test_an_interrupt_is_no_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    Image.new("L", (4, 4)).save(tmp_path / "a.bmp")
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "a.bmp", 1)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_give_an_image_or_an_image_error_and_no_warning(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["jpg", "png", "tif", "bmp", "gif", "webp", "pgm"]))
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(colours())
    (picture.convert("L") if suffix == "pgm" else picture).save(path)
    content = bytearray(path.read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        content[place] = value
    path.write_bytes(bytes(content))
    try:
        assert read_image(path, 3).dtype == np.uint8
    except ImageError as error:
        assert "\n" not in str(error)


def test_warnings_are_as_before_after_threads_leave_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.bmp")
    second_is_in, first_is_out = threading.Event(), threading.Event()
    really_open = Image.open

    def ordered_open(stream: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
        if stream.name.endswith("first.bmp"):
            assert second_is_in.wait(PATIENCE)
        else:
            second_is_in.set()
            assert first_is_out.wait(PATIENCE)
            warnings.warn("from the second thread, still inside", stacklevel=1)
        return really_open(stream, formats=formats)

    monkeypatch.setattr(Image, "open", ordered_open)
    before = list(warnings.filters)
    # What a thread raises is a warning for pytest, and so an error.
    first, second = (
        threading.Thread(target=read_image, args=(tmp_path / f"{name}.bmp", 1)) for name in ("first", "second")
    )
    first.start()
    second.start()
    first.join(PATIENCE)
    first_is_out.set()
    second.join(PATIENCE)
    assert list(warnings.filters) == before


def test_settings_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channels is 4"):
        read_image(tmp_path / "a.png", 4)
    with pytest.raises(ValueError, match="high_depth is 'clip'"):
        read_image(tmp_path / "a.png", 1, "clip")
    with pytest.raises(ValueError, match="resize is 'crop'"):
        fit(np.zeros((2, 2, 1), dtype=np.uint8), 4, "crop")


def test_paths_with_spaces_and_other_alphabets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "é 肺 scan" / "a b.png"
    path.parent.mkdir()
    Image.new("L", (4, 4), 9).save(path)
    assert read_image(path, 1).max() == 9
