"""``tools/unpack_medmnist.py``: a MedMNIST file becomes the folders that training reads."""

import sys
from pathlib import Path

import numpy as np
import pytest

import unpack_medmnist
from medmambase.data.folders import scan_folder
from medmambase.data.images import read_image


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["unpack_medmnist.py", *arguments])
    return unpack_medmnist.main()


def test_every_image_lands_in_its_split_and_class_with_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9), dtype=np.uint8)
    labels = np.array([[0], [1], [0], [1], [0], [1]], dtype=np.uint8)
    parts = {f"{split}_{kind}": values for split in ("train", "val", "test") for kind, values in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "set.npz", **parts)
    assert run(monkeypatch, str(tmp_path / "set.npz"), str(tmp_path / "out"), "normal", "ill") == 0
    manifest = scan_folder(tmp_path / "out")
    assert manifest.classes == ("ill", "normal")
    assert [len(manifest.split(split)) for split in ("train", "val", "test")] == [6, 6, 6]
    assert np.array_equal(read_image(tmp_path / "out" / "val" / "ill" / "00003.png", 1)[:, :, 0], images[3])


def test_a_file_of_another_kind_and_too_few_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.npz").write_text("hello", encoding="utf-8")
    assert run(monkeypatch, str(tmp_path / "a.npz"), str(tmp_path / "out"), "a") == 3
    assert run(monkeypatch, str(tmp_path / "b.npz"), str(tmp_path / "out"), "a") == 3
    parts = {
        f"{split}_{kind}": np.ones((1, 2, 2)[: 1 if kind == "labels" else 3], np.uint8) for split in ("train", "val", "test") for kind in ("images", "labels")
    }
    np.savez(tmp_path / "c.npz", **parts)
    with pytest.raises(SystemExit):
        run(monkeypatch, str(tmp_path / "c.npz"), str(tmp_path / "out"), "a")
    assert "2 class names are wanted; got 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
