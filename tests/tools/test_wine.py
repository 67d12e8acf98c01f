"""What wine.py refuses, and how it names paths. Setting Wine up is the other half: it needs a
network."""

import subprocess
import sys
from pathlib import Path

import pytest

import wine
from wine import NoWineError, Wine, WineError


def test_a_folder_of_somebody_elses_is_not_emptied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wine, "_installed", lambda: "wine")
    (tmp_path / "thesis.docx").write_text("", encoding="utf-8")
    with pytest.raises(WineError, match="holds something else"):
        Wine(tmp_path).set_up(["uv"])
    assert (tmp_path / "thesis.docx").exists()


def test_a_path_is_named_as_windows_names_it() -> None:
    assert Wine.path(Path("/tmp/dépôt 肺/x.py")) == "Z:\\tmp\\dépôt 肺\\x.py"


@pytest.mark.skipif(sys.platform != "linux", reason="Wine is set up on Linux only")
def test_without_wine_and_the_right_to_install_it_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(wine, "_root", lambda: False)
    with pytest.raises(NoWineError, match="sudo apt install wine wine64 osslsigncode"):
        wine._installed()


GOOD = (
    "Current message digest    : AB12\nCalculated message digest : AB12\nSubject: /C=US/CN=Python Software Foundation\n"
)


@pytest.mark.parametrize(
    ("said", "fine"),
    [
        (GOOD, True),
        (GOOD.replace("Current message digest    : AB", "Current message digest    : FF"), False),
        (GOOD.replace("Python S", "Our S"), False),
        ("", False),
    ],
)
def test_a_python_that_its_makers_did_not_sign_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: str, fine: bool
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said, ""))
    if fine:
        wine._must_be_signed(Path("python.exe"))
    else:
        with pytest.raises(WineError, match=r"python\.exe is not what the Python Software Foundation signed"):
            wine._must_be_signed(Path("python.exe"))
