"""Write tensors as the bytes of a safetensors file with a checksum of all that is in it, and read
them back.

Numbers that a disk or a copy has changed are numbers still: a network would predict with them, and
a training go on from them. A file without a checksum, of an earlier version or of somebody else, is
read as it is.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmambase.files import open_regular

CHECKSUM = "checksum"  # the name of a word
ALONE = "medmambase_checksum"  # the header's entry where there are no words; other programs may write a "checksum"
_MOST_HEADER = 100_000_000  # bytes; the format allows no more


def as_bytes(tensors: Mapping[str, Tensor], entry: str = ALONE, words: Mapping[str, Any] | None = None) -> bytes:
    """Return the content of a file of these tensors, whose header holds ``words`` as the JSON of
    ``entry``. The same ones give the same bytes, since there is one entry: of several the library
    changes the order."""
    from safetensors.torch import save

    plain, told = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, dict(words or {})
    told |= {CHECKSUM: checksum(plain, told)}
    text = told[CHECKSUM] if entry == ALONE else json.dumps(told, ensure_ascii=False, allow_nan=False)
    return save(plain, {entry: text})


def from_bytes(content: bytes, entry: str = ALONE) -> dict[str, Tensor]:
    """Return the tensors of a file. Raises SafetensorError for what is none, and ValueError,
    LookupError or TypeError where its checksum does not fit what it holds, or its ``entry`` is
    damaged."""
    from safetensors.torch import load

    tensors, words = load(content), words_of(content)
    told = {CHECKSUM: words.get(ALONE)} if entry == ALONE else json.loads(words[entry])
    wanted = told.pop(CHECKSUM, None)
    if wanted is not None and wanted != checksum(tensors, told):
        said = "its checksum does not fit what it holds: it has changed since it was written"
        raise ValueError(f"{said}{_of_no_numbers(tensors)}; restore it")
    return tensors


def words_of(content: bytes) -> dict[str, str]:
    """Return the words in the header of a file; {} where it has none, or is another kind of
    file."""
    try:
        words = _header(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    except ValueError:
        return {}
    return words if isinstance(words, dict) else {}


def read_bytes(path: Path) -> bytes:
    """Return the content of a file whose size is the one that its header tells: nothing of any
    other is read into memory. Raises OSError and ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _MOST_HEADER):
            raise ValueError(f"of its {size} bytes its header cannot take {length}")
        parts = [value for name, value in _header(file.read(length)).items() if name != "__metadata__"]
        try:
            told = 8 + length + max((int(part["data_offsets"][1]) for part in parts), default=0)
        except (LookupError, TypeError, ValueError, OverflowError) as error:  # 1e999 is infinite
            raise ValueError("its header does not say where its tensors lie") from error
        if told != size:
            raise ValueError(f"its header tells of {told} bytes, and it has {size}")
        file.seek(0)
        return file.read()


def not_finite(t: Tensor) -> int:
    """Count the NaN and infinities of a tensor of any type."""
    return int((~t.to(torch.float64).isfinite()).sum()) if t.is_floating_point() else 0


def checksum(tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> str:
    """Return a hash of the words, and of names, types, shapes and numbers of the tensors, which lie
    on the CPU."""
    found = hashlib.blake2b(json.dumps(words).encode("ascii"), digest_size=16)
    for part in _parts(tensors):
        found.update(part)
    return found.hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and numbers of tensors on any device."""
    found = hashlib.sha256()
    for part in _parts({name: t.detach().cpu() for name, t in tensors.items()}):
        found.update(part)
    return found.hexdigest()


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        t = tensors[name]
        yield json.dumps([name, str(t.dtype), list(t.shape)]).encode("ascii")
        yield t.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _of_no_numbers(tensors: Mapping[str, Tensor]) -> str:
    """Name the first tensor with NaN or infinity, if there is one, since that tells how a file was
    changed."""
    for name, t in tensors.items():
        if bad := not_finite(t):
            return f", and {name} holds NaN or infinity in {bad} of its {t.numel()} values"
    return ""


def _header(content: bytes) -> dict[str, Any]:
    """Read the JSON of a header. Raises ValueError."""
    try:
        header = json.loads(content)
    except RecursionError as error:
        raise ValueError("brackets inside of brackets without end") from error
    if not isinstance(header, dict):
        raise ValueError("its header holds no names")
    return header
