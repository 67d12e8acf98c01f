"""Damage safetensors files on purpose, as fuzz_mutations.py damages others."""

import json
import random
import struct
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load

from fuzz_mutations import of_bytes, of_json, of_text
from medmambase.model import tensor_file


def of_safetensors(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Damage the header's JSON and write its length anew, the length alone, or the numbers; the
    checksum is mostly corrected, so that the damage gets past it."""
    made = _damaged_tensors(data, others, chance)
    return _with_checksum(made) if chance.random() < 0.7 else made


def _damaged_tensors(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    match chance.choice(("header", "header", "header", "dtype", "words", "length", "numbers", "bytes")):
        case "header":
            header = of_json(header, [header], chance)
        case "dtype":
            values = json.loads(header)
            one = values[chance.choice([name for name in values if name != "__metadata__"])]
            one["dtype"] = chance.choice(
                ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "Q")
            )
            if chance.random() < 0.7:  # of the right size, so that only the dtype is wrong
                wide = {"F64": 8, "I64": 8, "C64": 8, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
                count = (one["data_offsets"][1] - one["data_offsets"][0]) // 4
                parts = {name: (v, body[slice(*v["data_offsets"])]) for name, v in values.items() if "dtype" in v}
                parts = {
                    n: (v, bytes(count * wide.get(v["dtype"], 4)) if v is one else b) for n, (v, b) in parts.items()
                }
                body = b""
                for value, part in parts.values():
                    value["data_offsets"], body = [len(body), len(body) + len(part)], body + part
            header = json.dumps(values).encode("utf-8")
        case "words":  # JSON inside of the JSON, or a checksum
            values = json.loads(header)
            words = values.get("__metadata__", {})
            if words:
                key = chance.choice(sorted(words))
                mutation = of_json if words[key].startswith("{") else of_text
                inner = mutation(words[key].encode("utf-8"), [header], chance)
                words[key] = inner.decode("utf-8", "replace")
            header = json.dumps(values).encode("utf-8")
        case "length":
            wrong = chance.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(data)))
            return wrong.to_bytes(8, "little") + data[8:]
        case "numbers":
            made = bytearray(body)
            for _ in range(chance.choice((1, 4, 100))):
                place = 4 * chance.randrange(max(1, len(made) // 4))
                value = chance.choice((float("nan"), float("inf"), -3e38, 1e-42, 0.0, 1e20))
                made[place : place + 4] = struct.pack("<f", value)
            body = bytes(made)
        case _:
            return of_bytes(data, others, chance)
    return len(header).to_bytes(8, "little") + header + body


def _with_checksum(data: bytes) -> bytes:
    """Correct the checksum of a safetensors file; one whose tensors cannot be read, or which has
    none, stays as it is."""
    try:
        tensors, words = load(data), tensor_file.words_of(data)
        (entry,) = words
        told = {} if entry == tensor_file.ALONE else json.loads(words[entry])
        if entry != tensor_file.ALONE and told.pop(tensor_file.CHECKSUM, None) is None:
            return data
        return tensor_file.as_bytes(tensors, entry, told)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError):
        return data
