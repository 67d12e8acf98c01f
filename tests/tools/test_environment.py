"""What quickstart.py and check.py decide and say. Nothing is installed here: running the tools from
a bare clone is the other half."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import environment
import quickstart
from environment import Interpreter
from medmambase.doctor import torch_build
from medmambase.doctor.torch_build import Machine, SetupError

TOOLS = Path(environment.__file__).parent
PINNED = f"torch=={torch_build.TORCH}"
READY = Interpreter((3, 11), True, True, "2.13.0+cpu", True)


@pytest.mark.parametrize("tool", ["quickstart.py", "check.py"])
def test_help_says_where_arguments_after_the_dashes_go(tool: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / tool), "--help"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Arguments after -- are passed to" in done.stdout
    assert "--venv" in done.stdout


@pytest.mark.parametrize("tool", ["quickstart.py", "check.py"])
def test_an_old_python_can_parse_the_tool_up_to_its_message(tool: str) -> None:
    body = ast.parse((TOOLS / tool).read_text(encoding="utf-8"), feature_version=(3, 6)).body
    message = next(
        i for i, node in enumerate(body) if isinstance(node, ast.If) and "version_info" in ast.unparse(node.test)
    )
    imports = [ast.unparse(node) for node in body[:message] if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == ["import sys"]


def test_arguments_after_the_dashes_are_passed_on() -> None:
    assert environment.split(["--venv", "a", "--", "-k", "x", "--", "y"]) == (["--venv", "a"], ["-k", "x", "--", "y"])
    assert environment.split(["--venv", "a"]) == (["--venv", "a"], [])


class Calls(list[list[str]]):
    """Stands in for ``environment.call``: remembers the commands, makes a folder for ``venv``, and
    fails the commands that contain ``failing``."""

    failing = "nothing"

    def __call__(self, command: Sequence[str]) -> int:
        self.append(list(command))
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        return int(any(self.failing in word for word in command))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(environment, "call", made)
    monkeypatch.setattr(torch_build, "find_card", lambda: None)
    monkeypatch.setattr("locale.getencoding", lambda: "utf-8")  # so that the project can be editable wherever it lies
    return made


def answer(monkeypatch: pytest.MonkeyPatch, *answers: Interpreter | None) -> None:
    """Let the interpreters that are asked, one after the other, say this."""
    left = list(answers)
    monkeypatch.setattr(environment, "ask", lambda python: left.pop(0))


def test_a_bare_folder_gets_an_environment_then_torch_then_the_project(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    bare = Interpreter((3, 11), True, True, None, False)
    answer(monkeypatch, None, bare, bare, Interpreter((3, 11), True, True, "2.13.0+cpu", False))
    monkeypatch.setattr(environment, "this_machine", lambda: Machine("Linux", "x86_64", (3, 12), None))
    folder = tmp_path / "with spaçe 肺"
    folder.mkdir()
    environment.prepare(folder, test=True)
    venv, torch, triton, project, smoke = calls
    assert venv == [sys.executable, "-m", "venv", "--clear", str(folder)]
    assert f"{PINNED}+cpu" in torch
    assert triton[-1] == "triton==3.7.1"
    assert project[-5:] == ["-e", "./kernels", "-e", ".[test]", f"{PINNED}+cpu"], (
        "the torch that is there must be named, or pip may replace it"
    )
    assert "import torch" in smoke[-1]


@pytest.mark.parametrize(
    ("nested", "torch", "shared"),
    [(False, "2.9.1", True), (False, "2.6.0", False), (True, "2.9.1", False), (False, None, False)],
)
def test_a_torch_of_the_base_python_is_shared(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path, nested: bool, torch: str | None, shared: bool
) -> None:
    answer(monkeypatch, None, Interpreter((3, 11), nested, True, torch, False), READY)
    environment.prepare(tmp_path / "venv")
    assert ("--system-site-packages" in calls[0]) is shared


@pytest.mark.parametrize(
    ("folder", "encoding", "python", "editable"),
    [
        ("C:/kidney", "cp1252", (3, 11), True),
        ("C:/肺", "cp1252", (3, 12), False),
        ("C:/肺", "cp1252", (3, 13), True),
        ("/肺", "utf-8", (3, 11), True),
    ],
)
def test_a_path_that_an_old_python_misreads_gets_a_copy(
    monkeypatch: pytest.MonkeyPatch,
    calls: Calls,
    tmp_path: Path,
    folder: str,
    encoding: str,
    python: tuple[int, int],
    editable: bool,
) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: encoding)
    monkeypatch.setattr(environment, "ROOT", Path(folder))
    monkeypatch.setattr(environment, "_state", lambda test: {})
    answer(monkeypatch, Interpreter(python, True, True, "2.13.0", True))
    environment.prepare(tmp_path)
    both = ["-e", "./kernels", "-e", "."] if editable else ["install", "./kernels", "."]
    assert calls[0][-len(both) - 1 : -1] == both
    assert (tmp_path / "medmambase.json").exists() is editable, "a copy must be made anew each time"


def test_a_second_run_installs_nothing(monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path) -> None:
    answer(monkeypatch, READY, READY, READY, READY)
    environment.prepare(tmp_path, test=True)
    made = len(calls)
    environment.prepare(tmp_path, test=True)
    environment.prepare(tmp_path)
    assert len(calls) == made > 0
    (tmp_path / "medmambase.json").write_text(json.dumps({"project": "elsewhere"}), encoding="utf-8", newline="\n")
    environment.prepare(tmp_path)
    assert len(calls) > made


@pytest.mark.parametrize("changed", ["pyproject.toml", "kernels/pyproject.toml"])
def test_a_change_of_either_distribution_installs_both_again(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path, changed: str
) -> None:
    clone, folder = tmp_path / "clone", tmp_path / "venv"
    (clone / "kernels").mkdir(parents=True)
    folder.mkdir()
    for name in ("pyproject.toml", "kernels/pyproject.toml"):
        (clone / name).write_text("[project]\n", encoding="utf-8")
    monkeypatch.setattr(environment, "ROOT", clone)
    answer(monkeypatch, READY, READY, READY)
    environment.prepare(folder)
    environment.prepare(folder)
    assert len(calls) == 2, "the install and the import of torch"
    (clone / changed).write_text("[project]\nname = 'x'\n", encoding="utf-8")
    environment.prepare(folder)
    assert len(calls) == 4
    assert ["./kernels" in calls[2], "." in calls[2]] == [True, True]


def test_one_wheel_with_the_kernels_in_it_goes_before_the_two_come(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    answer(monkeypatch, replace(READY, undivided=True))
    environment.prepare(tmp_path)
    uninstall, install, _ = calls
    assert uninstall[-3:] == ["uninstall", "--yes", "medmambase"]
    assert "install" in install


@pytest.mark.parametrize(
    ("installed", "undivided"),
    [((), False), (("medmambase",), True), (("medmambase", "medmambase_kernels"), False)],
)
def test_an_interpreter_tells_whether_its_medmambase_holds_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: tuple[str, ...], undivided: bool
) -> None:
    for name in installed:
        about = tmp_path / f"{name}-0.1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\n", encoding="utf-8")
    # Of this folder only: the Python that runs the tests has medmambase too.
    alone = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [{str(tmp_path)!r}]\n"
    monkeypatch.setattr(environment, "PROBE", alone + environment.PROBE)
    said = environment.ask(Path(sys.executable))
    assert said is not None
    assert said.undivided is undivided


def test_a_half_made_environment_is_made_again(monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    answer(monkeypatch, None, None, READY)
    environment.prepare(tmp_path)
    assert calls[0][1:4] == ["-m", "venv", "--clear"]


def test_a_folder_that_is_no_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").touch()
    answer(monkeypatch, None)
    with pytest.raises(SetupError, match="is not a virtual environment"):
        environment.prepare(tmp_path)
    assert calls == []


def test_an_environment_of_an_old_python_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    answer(monkeypatch, Interpreter((3, 10), True, True, None, False))
    with pytest.raises(SetupError, match=r"holds Python 3\.10"):
        environment.prepare(tmp_path)
    assert calls == []


def test_a_python_without_venv_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer(monkeypatch, None)
    with pytest.raises(SetupError, match="apt install python3-venv"):
        environment.prepare(tmp_path / "venv")
    assert calls == []


@pytest.mark.parametrize(
    ("failing", "message"),
    [("venv", "could not be made"), ("pip", "pip failed.*\n.*install -e"), ("import torch", "cannot be imported")],
)
def test_a_step_that_fails_shows_its_command_and_leaves_no_stamp(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path, failing: str, message: str
) -> None:
    calls.failing = failing
    folder = tmp_path / "new"
    answer(monkeypatch, None, None, READY)
    with pytest.raises(SetupError, match=message):
        environment.prepare(folder)
    assert not (folder / "medmambase.json").exists()


def test_an_interpreter_tells_what_it_can_import_without_importing_it() -> None:
    said = environment.ask(Path(sys.executable))
    assert said is not None
    assert said.python == sys.version_info[:2]
    assert said.torch is not None
    assert "torch" in environment.PROBE
    assert "import torch" not in environment.PROBE


def test_a_missing_interpreter_says_nothing(tmp_path: Path) -> None:
    assert environment.ask(tmp_path / "python") is None


@pytest.mark.parametrize(
    ("error", "code", "text"), [(SetupError("delete it"), 1, "delete it"), (KeyboardInterrupt(), 130, "stopped")]
)
def test_a_failure_is_a_message_and_an_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise error

    assert environment.run(fails) == code
    assert text in capsys.readouterr().err


def test_quickstart_trains_and_passes_the_exit_code_on(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "prepare", lambda folder: folder)
    calls.failing = "medmambase-train"
    assert quickstart.main(["--venv", str(tmp_path), "--", "--epochs", "2"]) == 1
    assert calls == [
        [str(tmp_path / ("Scripts" if os.name == "nt" else "bin") / Path(calls[0][0]).name), "--demo", "--epochs", "2"]
    ]
