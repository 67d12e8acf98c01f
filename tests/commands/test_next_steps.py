"""The lines to paste are those that a shell takes apart again as they were meant."""

import shlex
from pathlib import Path

import pytest

from medmambase.commands import next_steps

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


def test_a_step_is_a_sentence_and_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    next_steps.say_next(("train", next_steps.pasted("medmambase-train", Path("data"))), ("mend the labels", ""))
    assert capsys.readouterr().out == "\nnext: train:\n  medmambase-train data\nnext: mend the labels\n"
