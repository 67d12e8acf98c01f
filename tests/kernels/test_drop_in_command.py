"""``python -m medmambase_kernels.drop_in`` says in one line what it cannot run, with Python's exit
codes."""

import re
import sys
from pathlib import Path

import pytest

from medmambase_kernels import __version__, drop_in
from medmambase_kernels.drop_in import __main__ as command


def package(folder: Path, text: str) -> None:
    """A package that cannot be run, since it has no ``__main__``."""
    (folder / "a_package").mkdir()
    (folder / "a_package" / "__init__.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["."], 2, r"\. is a folder; give the Python file in it that is to run"),
        (["nowhere.py"], 2, r"nowhere\.py: there is no such file"),
        (["--list", "train.py"], 2, r"--list prints names and runs nothing; leave out train\.py"),
        (["--list", "-m", "train"], 2, "--list prints names and runs nothing; leave out train"),
        (["-m", "not_there"], 1, "there is no module not_there"),
        (["-m", "not_there.inside"], 1, "there is no module not_there"),
        (["-m", "a_package"], 1, r"there is no module a_package\.__main__"),
        (["--version"], 0, rf"medmambase-kernels {re.escape(__version__)}"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    for name in ("argv", "path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    monkeypatch.setattr(command, "_prepare_workers", lambda *_: None)
    try:
        found = command.main(words)
    except SystemExit as stopped:  # argparse's own
        found = stopped.code
    finally:
        drop_in.uninstall()
        sys.modules.pop("a_package", None)
    written = capsys.readouterr()
    assert found == code
    assert re.search(rf"(^|: ){said}\n$", written.err or written.out)


def test_a_module_that_lacks_another_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        command._absent("a_package.part")
    assert command._absent("json.tool") == ""
