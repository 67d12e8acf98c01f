"""The program that measures loading prints figures that agree with its verdict."""

import re

import pytest

import measure_loader
from medmambase.data.manifest.folders import scan_folder

SMALL = [
    "--model",
    "nano",
    "--image-size",
    "32",
    "--images",
    "40",
    "--pixels",
    "32",
    "--repeat",
    "1",
    "--batch-size",
    "4",
]


def test_the_table_has_every_way_of_loading_and_the_verdict_fits_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = measure_loader.main(SMALL)
    lines = capsys.readouterr().out.splitlines()
    rates = [re.fullmatch(r"(.+?) +(\d+) images/s +([\d.]+) x the network", line) for line in lines[1:6]]
    assert [found[1] for found in rates if found] == [
        "cold: files to tensors, no cache", "cold: files to tensors, filling the cache", "warm: cache to tensors",
        "kept nowhere: files to batches in each epoch", "memory to augmented batches",
    ]  # fmt: skip  # a list of lines
    consumed = re.fullmatch(r"a training step of nano consumes +([\d.]+) images/s", lines[6])
    assert consumed and lines[0].startswith("40 images of ")
    for found in rates:
        assert found and float(found[2]) / float(consumed[1]) == pytest.approx(float(found[3]), rel=0.1, abs=0.1)
    assert (
        (code == 0)
        == lines[7].startswith("all are at least 5 x")
        == all(float(found[3]) >= 5 for found in rates if found)
    )
    monkeypatch.setattr(measure_loader, "WANTED", 1e9)
    assert measure_loader.main(SMALL) == 1 and "slower than" in capsys.readouterr().out


def test_no_two_drawn_images_are_the_same_file(tmp_path) -> None:
    samples = scan_folder(measure_loader.draw(tmp_path / "drawn", 70, 32)).samples
    assert len(samples) == len({sample.path.read_bytes() for sample in samples}) == 70


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    folder = measure_loader.draw(tmp_path / "drawn", 30, 32)
    (folder / "train" / "brain" / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"bad\.png"):
        measure_loader.main([str(folder), *SMALL])
