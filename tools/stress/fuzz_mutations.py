"""Damage files on purpose: bytes, and the structure of texts, JSON, zip archives, PNG and DICOM;
fuzz_tensor_files.py does safetensors files.

Each function takes whole bytes and random numbers and returns the damaged bytes, the same for the
same numbers.
"""

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Mutation = Callable[[bytes, Sequence[bytes], random.Random], bytes]
"""Takes a whole file, others of its kind, and random numbers; returns the damaged file."""


@dataclass(frozen=True)
class Case:
    """A whole file at ``path``, how it is damaged, and what reads it: the function returns a word
    for what it found, and raises where a command would end."""

    path: Path
    damage: Mutation
    read: Callable[[], str]


_NUMBERS = (
    "0", "-1", "1e999", "-1e999", "nan", "inf", "2147483648", "9223372036854775808", "1" + "0" * 400, "9" * 5000,
    "0.1e-400", "-0.0", "1_0", "0x10", "1.", "\u0661", "true", "''", "1979-13-41", "[]",
)  # fmt: skip  # a list of numbers, and of what is none
_PIECES = (
    '"', "'", '"""', "\0", "\ufeff", "\r", "\n\n", ",", ";", "\t", "=", "[", "]", "{", "}", "#", "\\", "\\u0000",
    "=1+1", "../", "C:\\", "\ud7ff\U0001f600", "\u202e", "\x1b[2J", "x" * 5000, "[" * 3000,
    '{"a":' * 3000, "a.a=" * 200,
)  # fmt: skip  # a list of what parsers trip over
_JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 1e308, -0.5, 1e-300, float("nan"), float("inf"), "", "x",
    "\0", "\ud800", "1", [], {}, [0], [[]], {"a": 1}, "x" * 10_000, [1] * 1000,
)  # fmt: skip  # a list of values


def of_bytes(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Flip bytes, replace numbers by extremes, cut, splice with another file, repeat and drop
    pieces."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(made)
        if size < 8:
            break
        # Headers are near the beginning.
        place = chance.randrange(min(size, 600)) if chance.random() < 0.6 else chance.randrange(size)
        match chance.choice(("flip", "flip", "flip", "extreme", "extreme", "cut", "splice", "repeat", "drop")):
            case "flip":
                for _ in range(chance.choice((1, 1, 2, 8, 32))):
                    made[min(size - 1, place + chance.randrange(64))] = chance.randrange(256)
            case "extreme":
                width = chance.choice((1, 2, 4))
                value = chance.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
                made[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
            case "cut":
                del made[place:]
            case "splice":
                other = chance.choice(others)
                made[place:] = other[chance.randrange(len(other)) :] if chance.random() < 0.5 else other[place:]
            case "repeat":
                piece = made[place : place + chance.choice((4, 64, 4096))]
                made[place:place] = piece * chance.choice((1, 3))
            case _:
                del made[place : place + chance.choice((1, 4, 256))]
    return bytes(made)


def of_image(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Like ``of_bytes``; a PNG's checksums are mostly corrected, so that the damage gets past
    them."""
    made = of_bytes(data, others, chance)
    return _with_checksums(made) if chance.random() < 0.7 else made


def of_text(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Replace numbers and words, drop, repeat and swap lines, put in what parsers trip over."""
    text = data.decode("utf-8", "replace")
    for _ in range(chance.choice((1, 1, 2, 4))):
        words = list(re.finditer(r"[^\s,;=\"'\[\]{}:]+", text))
        place = chance.randrange(len(text) + 1)
        lines = text.splitlines(keepends=True)
        match chance.choice(("number", "number", "word", "piece", "piece", "line", "swap", "case")):
            case "number" if words:
                word = chance.choice([w for w in words if w[0][:1].isdigit()] or words)
                text = text[: word.start()] + chance.choice(_NUMBERS) + text[word.end() :]
            case "word" if words:
                word, other = chance.choice(words), chance.choice(words)
                text = text[: word.start()] + other[0] + text[word.end() :]
            case "piece":
                text = text[:place] + chance.choice(_PIECES) + text[place + chance.choice((0, 0, 1, 20)) :]
            case "line" if lines:
                row = chance.randrange(len(lines))
                lines[row : row + 1] = [lines[row]] * chance.choice((0, 2, 2, 50))
                text = "".join(lines)
            case "swap":
                old, new = chance.choice((",;", ";,", ",\t", "\n\r", "\"'", "=:", ".,", "tf", "/\\"))
                text = text.replace(old, new, chance.choice((1, -1)))
            case _:
                text = text[:place] + text[place:].swapcase()
    made = text.encode("utf-8", "surrogatepass")
    return made if chance.random() < 0.8 else of_bytes(made or b"x", others, chance)


def of_json(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Replace, drop, repeat or rename values anywhere in the object; else damage the text."""
    if chance.random() < 0.3:
        return of_text(data, others, chance)
    values = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        values = _with_another(values, chance)
    return json.dumps(values, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def _another(chance: random.Random) -> Any:
    """A value of its own: it may be changed in its turn."""
    return deepcopy(chance.choice(_JSON_VALUES))


def _with_another(values: Any, chance: random.Random) -> Any:
    """The same values, but for one that is chosen at random, each as likely."""
    places: list[tuple[Any, Any]] = []

    def walk(holder: Any) -> None:
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                walk(holder[key])

    if not isinstance(values, dict | list) or chance.random() < 0.02:
        return _another(chance)
    walk(values)
    if not places:
        return values
    holder, key = chance.choice(places)
    match chance.choice(("other", "other", "other", "other", "near", "near", "drop", "new", "nest")):
        case "near" if isinstance(holder[key], int | float):
            factor = chance.choice((-1, 2, 0.5, 1000, 10**6))
            holder[key] = type(holder[key])(holder[key] * factor) if abs(holder[key]) < 1e300 else 0
        case "drop":
            del holder[key]
        case "new" if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key) if chance.random() < 0.5 else deepcopy(holder[key])
        case "new":
            holder.insert(key, deepcopy(holder[key]) if chance.random() < 0.05 else _another(chance))
        case "nest":
            holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
        case _:
            holder[key] = _another(chance)
    return values


def of_npz(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Damage members and pack them again with right checksums; or the archive's own headers."""
    if chance.random() < 0.4:
        at_the_end = len(data) - chance.randrange(1, min(len(data), 700))  # where the directory lies
        made = bytearray(of_bytes(data[at_the_end:], others, chance)) if chance.random() < 0.5 else None
        return data[:at_the_end] + made if made is not None else of_bytes(data, others, chance)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(stream, "w") as made_of:
        members = [(info.filename, whole.read(info)) for info in whole.infolist()]
        victim = chance.randrange(len(members))
        for number, (name, content) in enumerate(members):
            name, content = _member(name, content, chance) if number == victim else (name, content)
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            if name:
                made_of.writestr(name, content, compress_type=chance.choice(kinds))
    made_bytes = stream.getvalue()
    return made_bytes if chance.random() < 0.8 else of_bytes(made_bytes, others, chance)


def _member(name: str, content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """A damaged .npy file: its magic, its header's Python literal, its numbers; or its name."""
    length = int.from_bytes(content[8:10], "little")
    header, body = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    match chance.choice(("shape", "shape", "descr", "text", "numbers", "cut", "name", "magic")):
        case "shape":
            sizes = ("0", "1", "-1", "2", "28", "1000000000", "99999999999999999999", "1.5", "None", "True", "(1,)")
            shape = ", ".join(chance.choice(sizes) for _ in range(chance.choice((0, 1, 2, 3, 4, 40))))
            header = re.sub(r"\([^)]*\)", lambda _: f"({shape},)" if shape else "()", header)
        case "descr":
            kinds = (
                "|u1",
                "<u2",
                ">i8",
                "<f4",
                "|O",
                "|S0",
                "|V2147483647",
                "<U100000000",
                "<M8[ns]",
                "|b1",
                "<c16",
                "x",
            )
            header = re.sub(r"'[|<>][^']*'", lambda _: repr(chance.choice(kinds)), header)
        case "text":
            header = of_text(header.encode("latin-1"), [content], chance).decode("latin-1")
        case "numbers":
            body = of_bytes(body or b"x", [body or b"x"], chance)
        case "cut":
            body = body[: chance.randrange(len(body) + 1)]
        case "name":
            name = chance.choice((f"{name}x", "", name.upper(), f"../{name}", name.replace("images", "labels")))
        case _:
            return name, of_bytes(content, [content], chance)
    return name, content[:8] + min(len(header), 65535).to_bytes(2, "little") + header.encode(
        "latin-1", "replace"
    ) + body


def of_dicom(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Damage the length, the VR or the value of elements, drop or repeat them; else bytes."""
    if chance.random() < 0.4:
        return of_bytes(data, others, chance)
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = [found.start() - 4 for found in re.finditer(rb"(?<=.{4})[A-Z]{2}", bytes(made[132:]), re.DOTALL)]
        if not places:
            break
        place = 132 + chance.choice(places)  # of an element's tag: two bytes of group, two of number, two of VR
        long = bytes(made[place + 4 : place + 6]) in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
        at, width = (place + 8, 4) if long else (place + 6, 2)
        length = int.from_bytes(made[at : at + width], "little")
        end = min(len(made), at + width + length)
        match chance.choice(("length", "length", "VR", "value", "value", "value", "drop", "repeat", "tag")):
            case "length":
                most = 2 ** (8 * width) - 1
                new = chance.choice((0, 1, length + 1, length + 2, max(0, length - 2), most, most - 1, most // 2))
                made[at : at + width] = min(new, most).to_bytes(width, "little")
            case "VR":
                made[place + 4 : place + 6] = chance.choice(
                    (b"US", b"SS", b"DS", b"IS", b"OW", b"SQ", b"UN", b"??", b"LO")
                )
            case "value" if length:
                words = (
                    b"0",
                    b"-1",
                    b"1e400",
                    b"nan",
                    b"99999999999999",
                    b"a\\b",
                    b"\\\\",
                    b"\xff\xff",
                    b"\0\0",
                    b"\x01\0",
                )
                room = end - at - width  # a damaged length may be 4 GB
                made[at + width : end] = chance.choice(words).ljust(room, chance.choice((b" ", b"\0")))[:room]
            case "drop":
                del made[place:end]
            case "repeat":
                made[place:place] = made[place:end] * chance.choice((1, 2))
            case _:
                made[place : place + 4] = struct.pack(
                    "<HH", chance.choice((0x28, 0x8, 0x7FE0, 0xFFFE)), chance.randrange(0x2000)
                )
    return bytes(made)


def _with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG; anything else stays as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        if len(body) < 4 + length:
            break
        parts.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts) + data[place:]
