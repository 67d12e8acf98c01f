"""A file of tensors that has changed since it was written is refused, whatever has changed in
it."""

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from medmambase import MedMambaSE, ModelConfig
from medmambase.model.tensor_file import ALONE, CHECKSUM, as_bytes, from_bytes, read_bytes, words_of
from medmambase.model.weights import WeightsError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3), "b": -torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0),
    "none": torch.ones(0, 2), "count": torch.tensor([1, 2]), "half": torch.ones(3, dtype=torch.bfloat16),
}  # fmt: skip  # kinds of tensors
WORDS = {"state": {"lr": 0.1, "epochs": [1, 2]}, "name": "ü"}
ENTRY = "training"


@pytest.mark.parametrize("entry", [ALONE, ENTRY])
def test_what_was_written_is_read_and_the_same_tensors_give_the_same_bytes(entry: str) -> None:
    words = WORDS if entry == ENTRY else None
    content = as_bytes(TENSORS, entry, words)
    found = from_bytes(content, entry)
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], t) for name, t in TENSORS.items())
    assert {as_bytes(TENSORS, entry, words) for _ in range(8)} == {content}
    assert list(words_of(content)) == [entry]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: flipped(content, len(content) - 1),
        lambda content: flipped(content, 8 + int.from_bytes(content[:8], "little")),
        lambda content: content.replace(b'"a":', b'"c":').replace(b'"b":', b'"a":').replace(b'"c":', b'"b":'),
        lambda content: content.replace(b'"a":', b'"A":'),
        lambda content: content.replace(b"[2,3]", b"[3,2]", 1),
        lambda content: content.replace(b'"I64"', b'"U64"'),
    ],
)
@pytest.mark.parametrize("entry", [ALONE, ENTRY])
def test_a_change_of_anything_is_refused(entry: str, change: Callable[[bytes], bytes]) -> None:
    content = as_bytes(TENSORS, entry, WORDS if entry == ENTRY else None)
    assert change(content) != content
    with pytest.raises(ValueError, match="its checksum does not fit what it holds"):
        from_bytes(change(content), entry)


def test_numbers_that_have_become_nan_are_told_with_their_tensor() -> None:
    one = {"a": torch.ones(3), "b": torch.arange(4.0)}
    whole, nan = as_bytes(one), torch.tensor(math.nan).numpy().tobytes()
    with pytest.raises(ValueError, match=r"does not fit .* b holds NaN or infinity in 1 of its 4 values; restore"):
        from_bytes(whole[:-4] + nan)


def test_a_change_of_the_words_is_refused() -> None:
    content = as_bytes(TENSORS, ENTRY, WORDS)
    with pytest.raises(ValueError, match="its checksum does not fit what it holds"):
        from_bytes(content.replace(b'\\"lr\\": 0.1', b'\\"lr\\": 0.2'), ENTRY)


def test_a_file_of_others_or_of_before_has_no_checksum_and_is_read() -> None:
    assert from_bytes(save(TENSORS)).keys() == TENSORS.keys()
    assert from_bytes(save(TENSORS, {CHECKSUM: "sha256:0af3", "format": "pt"})).keys() == TENSORS.keys()
    assert from_bytes(save(TENSORS, {ENTRY: '{"name": "x"}'}), ENTRY).keys() == TENSORS.keys()
    for content in (b"", b"x" * 100, save(TENSORS)[:-1]):
        assert words_of(content) == {}
        with pytest.raises(SafetensorError):
            from_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content + bytes(50_000_000), "its header tells of .* bytes, and it has"),
        (lambda content: content[:-1], "its header tells of"),
        (lambda content: (2**40).to_bytes(8, "little") + content[8:], "its header cannot take 1099511627776"),
        (lambda content: b"", "of its 0 bytes"),
        (lambda content: content.replace(b'"data_offsets"', b'"data_offsetx"', 1), "does not say where its tensors"),
        (lambda content: (41).to_bytes(8, "little") + b'{"a": {"data_offsets": [0,       1e999]}}', "does not say"),
        (lambda content: (20_000).to_bytes(8, "little") + b"[" * 20_000, "brackets inside of brackets"),
        (lambda content: (2).to_bytes(8, "little") + b"[]", "its header holds no names"),
    ],
)
def test_nothing_is_read_of_a_file_whose_size_its_header_does_not_tell(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(as_bytes(TENSORS))
    assert from_bytes(read_bytes(path)).keys() == TENSORS.keys()
    path.write_bytes(change(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_bytes(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(tmp_path)


def test_weights_that_have_changed_do_not_predict(tmp_path: Path) -> None:
    MedMambaSE(ModelConfig(num_classes=2, depths=(1,), dims=(8,), state=2)).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes(), -3))
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*its checksum does not fit what it holds"):
        MedMambaSE.load(tmp_path)
