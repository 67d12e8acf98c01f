"""The values of every unusual file that must load, against decoders and arithmetic that share
nothing with the reader."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmambase.data.reading.images import ImageError, read_image

imagecodecs = pytest.importorskip(
    "imagecodecs", reason="imagecodecs, of the extra dicom, decodes the files a second time"
)
Array = np.ndarray[Any, np.dtype[Any]]

# How each EXIF orientation is turned upright, in NumPy's words.
TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def stretched(values: Array) -> Array:
    low, high = np.percentile(values, (0.1, 99.9))
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255


def on_black(layers: Array) -> Array:
    """(h, w), or layers of which an even number ends with alpha, to (h, w) or (h, w, 3); 16-bit
    colour by its high byte, then stretched."""
    deep = layers.dtype == np.uint16
    if layers.ndim == 2:
        return stretched(layers.astype(float)) if deep else layers.astype(float)
    if layers.shape[2] == 2 and deep:  # one transparent value of a 16-bit grey picture
        return np.where(layers[..., 1] == 0, 0, stretched(layers[..., 0].astype(float)))
    eight = (layers >> 8 if deep else layers).astype(float)
    colour = eight if layers.shape[2] == 3 else np.rint(eight[..., :-1] * eight[..., -1:] / 255)
    colour = stretched(colour) if deep else colour
    return colour[..., 0] if colour.shape[2] == 1 else colour


def cmyk(inks: Array) -> Array:
    """Four inks, 255 for full, to light."""
    paper = 255 - inks.astype(float)
    return paper[..., :3] * paper[..., 3:] / 255


def lab(stored: Array) -> Array:
    """CIELAB under D50, a and b as signed bytes, to sRGB."""
    lightness = stored[..., 0] / 255 * 100
    a, b = (stored[..., i].astype(np.int8).astype(float) for i in (1, 2))
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = xyz @ np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]).T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def portable(data: bytes) -> Array:
    """PPM, PGM, PBM and PFM."""
    data = re.sub(rb"\A(P6)\n#[^\n]*", rb"\1", data)  # a comment
    found = re.match(
        rb"(P4)\s(\d+)\s(\d+)\s" if data.startswith(b"P4") else rb"(P[56f])\s(\d+)\s(\d+)\s(-?[\d.]+)\s", data
    )
    assert found is not None
    kind, width, height = found[1], int(found[2]), int(found[3])
    body = data[found.end() :]
    if kind == b"P4":
        bits = np.unpackbits(np.frombuffer(body, np.uint8)[: height * -(-width // 8)].reshape(height, -1), axis=1)[
            :, :width
        ]
        return (1 - bits) * 255.0
    if kind == b"Pf":
        return stretched(np.frombuffer(body, "<f4", height * width).reshape(height, width)[::-1].astype(float))
    if found[4] == b"65535":
        return stretched(np.frombuffer(body, ">u2", height * width).reshape(height, width).astype(float))
    return np.frombuffer(body, np.uint8).reshape((height, width, 3) if kind == b"P6" else (height, width)).astype(float)


def rle8(data: bytes) -> Array:
    """A BMP of 8 bits in run lengths, bottom row first."""
    width, height, start = (int.from_bytes(data[place : place + 4], "little") for place in (18, 22, 10))
    palette = np.frombuffer(data, np.uint8, start - 54, 54).reshape(-1, 4)[:, 2::-1]
    rows = np.zeros((height, width), dtype=int)
    place, x, y = start, 0, 0
    while True:
        count, value = data[place], data[place + 1]
        place += 2
        if count:
            rows[y, x : x + count] = value
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return palette[rows[::-1]].astype(float)
        else:
            assert value > 2, "no jumps in this file"
            rows[y, x : x + value] = list(data[place : place + value])
            x, place = x + value, place + value + value % 2


def tiff(data: bytes, name: str) -> Array:
    if (
        name == "tiff_strip_cmyk_16l_jpeg.tif"
    ):  # not compressed, whatever its name: the last bytes of the file but its directory
        return cmyk(np.frombuffer(data, "<u2", 100 * 100 * 4, uncompressed_at(data)).reshape(100, 100, 4) >> 8)
    values = imagecodecs.tiff_decode(data, index=0)
    if name == "hopper.Lab.tif":
        return lab(values)
    if name == "g4_orientation_6.tif":  # 0 is white
        return np.rot90(np.where(values, 0.0, 255.0), -1)
    if name == "multipage.tiff":  # one even page through a palette
        return np.broadcast_to([0.0, 128.0, 0.0], (10, 10, 3))
    return stretched(values.astype(float)) if values.dtype.kind in "if" else on_black(values)


def uncompressed_at(data: bytes) -> int:
    """Where the first strip of a little-endian TIFF begins."""
    place = int.from_bytes(data[4:8], "little")
    for entry in range(int.from_bytes(data[place : place + 2], "little")):
        tag = data[place + 2 + 12 * entry :][:12]
        if int.from_bytes(tag[:2], "little") == 273:
            at = int.from_bytes(tag[8:], "little")
            return at if int.from_bytes(tag[4:8], "little") == 1 else int.from_bytes(data[at : at + 4], "little")
    raise AssertionError("no strips")


def expected(path: Path) -> Array:
    data, name = path.read_bytes(), path.name
    match path.suffix:
        case ".png":
            turn = {"xmp_tags_orientation.png": 3, "exif_imagemagick_orientation.png": 3}.get(name, 1)
            return TURNS[turn](on_black(imagecodecs.png_decode(data)))
        case ".jpg":
            found = re.search(r"hopper_orientation_(\d)", name)
            values = imagecodecs.jpeg_decode(data)
            if name == "pil_sample_cmyk.jpg":  # as Adobe writes it, 255 for no ink
                return cmyk(255 - values)
            return TURNS[int(found[1]) if found else 8 if name == "orientation_rectangle.jpg" else 1](
                values.astype(float)
            )
        case ".bmp":
            return rle8(data) if "rle8" in name else on_black(imagecodecs.bmp_decode(data))
        case ".gif":
            return np.zeros((1, 1)) if name == "no_palette.gif" else on_black(imagecodecs.gif_decode(data, index=0))
        case ".webp":
            return on_black(imagecodecs.webp_decode(data))
        case ".jp2":
            return on_black(imagecodecs.jpeg2k_decode(data))
        case ".tif" | ".tiff":
            return tiff(data, name)
        case _:
            return portable(data)


# Where two right decoders may differ: colour conversions rounded otherwise, chroma enlarged
# otherwise. (mean, most)
LOOSE = {
    "hopper.Lab.tif": (1.0, 10.0),
    "old-style-jpeg-compression.tif": (0.2, 48.0),
    "tiff_strip_cmyk_jpeg.tif": (1.0, 2.0),
}


def test_every_odd_file_that_must_load_has_the_right_values(shared: Path) -> None:
    files = [
        path
        for kind in ("good_modes", "exif_orientation")
        for path in sorted((shared / "data" / "odd_formats" / kind).iterdir())
    ]
    assert len(files) >= 62
    wrong = {}
    for path in files:
        ours, right = read_image(path, 3).astype(float), expected(path)
        right = np.repeat(right[..., None], 3, axis=2) if right.ndim == 2 else right
        assert ours.shape == right.shape, path.name
        difference, (mean, most) = np.abs(ours - right), LOOSE.get(path.name, (1.0, 1.0))
        if difference.mean() > mean or difference.max() > most:
            wrong[path.name] = (round(difference.mean(), 2), difference.max())
    assert not wrong


def test_seven_turned_copies_of_one_photograph_agree(shared: Path) -> None:
    turned = [
        read_image(path, 1).astype(int)
        for path in sorted((shared / "data" / "odd_formats" / "exif_orientation").glob("hopper_orientation_*.jpg"))
    ]
    assert len(turned) == 7
    for other in turned[1:]:
        assert np.abs(other - turned[0]).mean() < 8  # JPEG noise; a wrong turn gives 55


def test_the_damaged_files_give_their_pixels_or_one_line(shared: Path) -> None:
    failed = set()
    for path in sorted((shared / "data" / "odd_formats" / "damaged").iterdir()):
        try:
            assert read_image(path, 3).ndim == 3
        except ImageError as error:
            assert "\n" not in str(error) and error.path == path
            failed.add(path.name)
    assert failed == {
        "bmp_b_badwidth.bmp", "bmp_b_shortfile.bmp", "broken.png", "broken_data_stream.png", "pngtest_bad.png.bin",
        "truncated_end_chunk.png", "truncated_image.png", "truncated_jpeg.jpg", "unknown_compression_method.png",
        "zero_width.gif",
    }  # fmt: skip  # what no decoder can make whole; in the others only what stands beside the pixels is damaged
