"""What windows_check.py decides. Running it is the other half: it needs Wine and a network."""

from pathlib import Path

import pytest

import windows_check
from wine import NoWineError, Wine, WineError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(NoWineError("none"), 2, "NOT TESTED ON WINDOWS: none"), (WineError("broken"), 1, "FAILED: broken")],
)
def test_only_a_machine_without_wine_is_let_off(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    code: int,
    said: str,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    monkeypatch.setattr(Wine, "set_up", fails)
    monkeypatch.setattr(Wine, "stop", lambda self: None)
    assert windows_check.main(["--folder", str(tmp_path / "w")]) == code
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [([], ["-k", "scan"]), (["--quick"], ["-m", "not slow", "-k", "scan"])])
def test_the_quick_way_leaves_out_the_slow_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    heard: list[list[str]] = []

    def hears(*arguments: object) -> bool:
        heard.append(list(arguments[-1]))  # type: ignore[call-overload]  # the last is the words for pytest
        return True

    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    monkeypatch.setattr(Wine, "set_up", lambda self, uv: None)
    monkeypatch.setattr(Wine, "stop", lambda self: None)
    monkeypatch.setattr(windows_check, "_copy", lambda wine: tmp_path)
    monkeypatch.setattr(windows_check, "_install", lambda wine, copy, uv: None)
    monkeypatch.setattr(windows_check, "choose_files", lambda copy, patterns, quick: [])
    monkeypatch.setattr(windows_check, "run_files", hears)
    assert windows_check.main(["--folder", str(tmp_path / "w"), "--only", "tests", *flags, "--", "-k", "scan"]) == 0
    assert heard == [words]


@pytest.mark.parametrize("failing", ["_kernels", "_doctor", "_training"])
def test_one_program_that_fails_fails_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, failing: str
) -> None:
    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    monkeypatch.setattr(Wine, "set_up", lambda self, uv: None)
    monkeypatch.setattr(Wine, "stop", lambda self: None)
    monkeypatch.setattr(windows_check, "_copy", lambda wine: tmp_path)
    monkeypatch.setattr(windows_check, "_draw", lambda pictures, python: None)
    monkeypatch.setattr(windows_check, "_install", lambda wine, copy, uv: None)
    for name in ("_kernels", "_doctor", "_training"):
        monkeypatch.setattr(windows_check, name, lambda *_, fine=name != failing: fine)
    words = ["--folder", str(tmp_path / "w"), "--only", "kernels", "doctor", "training"]
    assert windows_check.main(words) == 1
    told = dict(line.split()[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("== windows "))
    assert {f"_{name}": said for name, said in told.items()} == {
        name: "FAILED" if name == failing else "passed" for name in ("_kernels", "_doctor", "_training")
    }
