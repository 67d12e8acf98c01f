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
