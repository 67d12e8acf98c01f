"""The lines to paste are those that a shell takes apart again as they were meant."""

import shlex
from pathlib import Path

import pytest

from medmambase.commands import next_steps, train
from medmambase.settings import resolve

WORDS = ("runs/Daten ü 001", r"(patient\d+)", "it's", "plain")


def test_a_posix_shell_reads_the_words_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_steps, "WINDOWS", False)
    assert shlex.split(next_steps.pasted("medmambase-predict", *WORDS, 3)) == ["medmambase-predict", *WORDS, "3"]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        (r"C:\my data", r'"C:\my data"'),
        (r"runs\x-001", r"runs\x-001"),
        ("[^/]+$", '"[^/]+$"'),  # cmd would take the circumflex away
        ("a&b\\", '"a&b\\\\"'),
        ("", '""'),
    ],
)
def test_a_windows_shell_gets_double_quotes_where_it_needs_them(
    word: str, quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_steps, "WINDOWS", True)
    assert next_steps.pasted("medmambase-train", word, "--seed", 1) == f"medmambase-train {quoted} --seed 1"


def test_a_new_network_is_shown_images_that_it_has_not_learned_from_or_told_that_it_has(tmp_path: Path) -> None:
    for name in ("x/train/brain", "x/Testing/brain", "y/brain"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x" / "TEST").write_text("", encoding="utf-8")  # before "Testing", and no folder
    (tmp_path / "t.csv").write_text("path,label\n", encoding="utf-8")
    new = "classify new images", Path("path/to/new/images")
    for data, wanted in {
        "x": ("classify the test images", tmp_path / "x" / "Testing"), "y": new, "t.csv": new, "gone": new
    }.items():  # fmt: skip  # a table
        assert train.to_classify(tmp_path / "run", resolve({"data": str(tmp_path / data)})) == wanted
    divided = resolve({"data": str(tmp_path / "x"), "splits": "table.csv"})  # test/ may be learned from
    assert train.to_classify(tmp_path / "run", divided) == new
    what, images = train.to_classify(tmp_path / "run", resolve({"demo": True}))
    assert "most of which it has learned from" in what and images == tmp_path / "run" / "phantom"


def test_a_step_is_a_sentence_and_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    next_steps.say_next(("train", next_steps.pasted("medmambase-train", Path("data"))), ("mend the labels", ""))
    assert capsys.readouterr().out == "\nnext: train:\n  medmambase-train data\nnext: mend the labels\n"
