"""A broken or hostile file costs one line: never the process, the memory or the day."""

import io
import random
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE
from PIL import Image

import fuzz_inputs
from fuzz_mutations import of_image
from fuzz_readers import picture
from medmambase.config import Preprocessing
from medmambase.data.reading import images
from medmambase.data.reading.images import ImageError, load, read_image

COLOURS = np.stack([np.indices((40, 56)).sum(axis=0) * step % 256 for step in (1, 2, 5)], axis=2).astype(np.uint8)
DEEP = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) * 20


def whole_files() -> dict[str, bytes]:
    """A small file of every format and most of their ways to store pixels."""
    colour, grey, deep = Image.fromarray(COLOURS), Image.fromarray(COLOURS[..., 0]), Image.fromarray(DEEP)
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("jpg", colour, {"exif": exif}), ("progressive.jpg", colour, {"progressive": True}),
        ("cmyk.jpg", colour.convert("CMYK"), {}), ("grey.jpg", grey, {}), ("png", colour, {"exif": exif}),
        ("rgba.png", colour.convert("RGBA"), {}), ("deep.png", deep, {"transparency": 40}),
        ("1.png", grey.convert("1"), {}), ("palette.png", colour.quantize(64), {"transparency": bytes(range(64))}),
        ("frames.png", colour, {"save_all": True, "append_images": [colour]}), ("bmp", colour, {}),
        ("palette.bmp", colour.quantize(16), {}), ("gif", colour.quantize(64),
        {"save_all": True, "append_images": [grey.convert("P")]}), ("webp", colour, {}),
        ("lossless.webp", colour, {"lossless": True, "exif": exif}), ("jp2", colour, {}), ("deep.jp2", deep, {}),
        ("deep.pgm", deep, {}), ("ppm", colour, {}), ("pfm", Image.fromarray(DEEP.astype(np.float32)), {}),
        ("pbm", grey.convert("1"), {}), ("tif", colour, {"exif": exif}), ("lab.tif", Image.new("LAB", (9, 9)), {}),
        ("float.tif", Image.fromarray(DEEP.astype(np.float32)), {}),
        *((f"{kind}.tif", grey.convert("1") if kind == "group4" else colour, {"compression": kind})
          for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")),
        ("pages.tif", deep, {"save_all": True, "append_images": [deep, deep]}),
    ]  # fmt: skip  # a table
    made = {}
    for name, drawn, options in wanted:
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF", "pgm": "PPM", "pbm": "PPM", "pfm": "PPM"}.get(
            name.rsplit(".")[-1], name.rsplit(".")[-1].upper()
        )
        drawn.save(stream, kind, **options)
        made[name] = stream.getvalue()
    return made


def dicom_files(folder: Path) -> dict[str, bytes]:
    """The same of DICOM, stored plain and by each decoder; none without the extra."""
    pytest.importorskip("pydicom")
    imagecodecs = pytest.importorskip("imagecodecs")
    from dicom_files import BIG, JPEG, JPEG_12, JPEG_2000, LITTLE, LOSSLESS_1, write

    made = {}
    for name, values, syntax, frame, elements in (
        ("plain", DEEP, LITTLE, None, {"WindowCenter": 900, "WindowWidth": 500, "PixelPaddingValue": 3}),
        ("colour", COLOURS, LITTLE, None, {}),
        ("big", COLOURS, BIG, None, {}),
        ("jpeg", COLOURS, JPEG, imagecodecs.jpeg_encode(COLOURS), {"PhotometricInterpretation": "YBR_FULL_422"}),
        ("jpeg12", DEEP, JPEG_12, imagecodecs.jpeg_encode(DEEP >> 4, bitspersample=12), {"BitsStored": 12}),
        (
            "lossless",
            DEEP,
            LOSSLESS_1,
            imagecodecs.jpeg_encode(DEEP, lossless=True, bitspersample=16),
            {"PixelRepresentation": 1},
        ),
        (
            "jpeg2000",
            COLOURS,
            JPEG_2000,
            imagecodecs.jpeg2k_encode(COLOURS, codecformat="j2k"),
            {"PhotometricInterpretation": "YBR_RCT"},
        ),
    ):
        made[f"{name}.dcm"] = write(
            folder / "a.dcm", values, syntax, [frame] if frame else None, **elements
        ).read_bytes()
    return made


def attack(path: Path, sources: dict[str, bytes], count: int) -> None:
    """Every source is whole; ``count`` damaged ones of each give an image or a line, each within
    what 100 million pixels may take."""
    for name, data in sources.items():
        path.write_bytes(data)
        assert fuzz_inputs.outcome(picture(path, "range")) == "image", name
        images_of_it = 0
        for number in range(count):
            others = [data, *sources.values()] if number % 4 == 0 else [data]
            path.write_bytes(of_image(data, others, random.Random(f"0/{number}")))
            started = time.process_time()
            case = picture(path, "percentile" if number % 2 == 0 else "range")
            images_of_it += fuzz_inputs.outcome(case) == "image"
            assert time.process_time() - started < 20, (name, number)
        assert images_of_it < count, f"no damage to {name} was ever seen"


def test_damaged_files_of_every_format_give_an_image_or_one_line(tmp_path: Path) -> None:
    attack(tmp_path / "damaged", whole_files(), 15)


def test_damaged_dicom_files_give_an_image_or_one_line(tmp_path: Path) -> None:
    attack(tmp_path / "damaged", dicom_files(tmp_path), 30)


def reason(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(ImageError) as caught:
        read_image(path, 3)
    assert (
        time.process_time() - started < 20
        and len(str(caught.value).splitlines()) == 1
        and len(caught.value.reason) < 300
    )
    return caught.value.reason


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *others: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(others)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    """A little-endian TIFF of one directory: tag -> (type, count, value)."""
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + bytes(64)


def progressive(scans: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (1000, 1000), 100).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


PLAIN_TIFF = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
BOMBS = {
    "a header of 60,000 by 60,000": (png(60_000, 60_000), "more than 100 million pixels"),
    "text that unpacks to 50 MB": (png(10, 10, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "too large"), "a colour profile that unpacks to 50 MB": (png(10, 10,
    chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))), "too large"),
    "a GIF of 65,535 by 65,535": (b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\x00\x02\x02D\x01\0;",
    "more than 100 million pixels"), "a TIFF in one tile of 60,000 by 60,000": (
        tiff(PLAIN_TIFF | {322: (4, 1, 60_000), 323: (4, 1, 60_000), 324: (4, 1, 8), 325: (4, 1, 64)}),
        "more than 100 million pixels",
    ),
    "a TIFF tag that claims 4 billion values": (tiff(PLAIN_TIFF | {273: (4, 0xFFFFFFFF, 8), 279: (4, 1, 256)}), ""),
    "a TIFF of no size": (tiff({258: (3, 1, 8)}), ""),
    "a JPEG that paints 12,000 times": (progressive(12_000), "scans, which would take very long"),
    "a TIFF whose directory lies beyond every file": (b"II+\0\x08\0\0\0" + b"\xff" * 8, ""),
}  # fmt: skip  # a table


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_cannot_ask_for_much(tmp_path: Path, bomb: str) -> None:
    data, expected = BOMBS[bomb]
    assert expected in reason(tmp_path / "bomb", data)


def test_a_progressive_jpeg_of_usual_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(progressive(20))
    assert abs(int(read_image(tmp_path / "a.jpg", 1).mean()) - 100) <= 1


@pytest.mark.slow
def test_a_tiff_of_endless_pages_is_counted_no_further_than_ten_thousand(tmp_path: Path) -> None:
    tags = PLAIN_TIFF | {256: (4, 1, 1), 257: (4, 1, 1), 273: (4, 1, 8), 279: (4, 1, 1)}
    page = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items())
    )
    size = len(page) + 4
    for pages, counted in ((3, 3), (12_000, 10_000)):
        chain = b"".join(page + struct.pack("<I", 8 + (i + 1) * size if i + 1 < pages else 0) for i in range(pages))
        (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + chain)
        assert load(tmp_path / "a.tif", Preprocessing())[1].frames == counted


def test_damage_behind_the_first_frame_costs_nothing(tmp_path: Path) -> None:
    whole = whole_files()["gif"]
    (tmp_path / "a.gif").write_bytes(whole[: len(whole) * 9 // 10])
    assert load(tmp_path / "a.gif", Preprocessing())[0].shape == (3, 128, 128)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LARGE", 10)
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    inside, most, eight_bit = 0, 0, images.eight_bit

    def slow(*arguments: Any) -> np.ndarray:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return eight_bit(*arguments)

    monkeypatch.setattr(images, "eight_bit", slow)
    threads = [threading.Thread(target=read_image, args=(tmp_path / "a.png", 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert most == 1 and not images._large.locked()
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    reason(tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    assert not images._large.locked()
