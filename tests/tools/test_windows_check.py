"""What windows_check.py and check_wheels.py decide. Running them is the other half: they need Wine
and a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import check_wheels
import windows_check
import wine
from windows_check import Report
from wine import Done, NoWineError, Wine, WineError

ROOT = Path(__file__).resolve().parents[2]
RECORD = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite><testcase name="a"/>
<testcase name="b[肺]"><failure message="m">t</failure></testcase>
<testcase name="c"><skipped message="no GPU">x</skipped></testcase>
<testcase name="d"><error message="m">t</error></testcase></testsuite></testsuites>"""


def test_a_record_of_tests_is_counted(tmp_path: Path) -> None:
    record = tmp_path / "r.xml"
    record.write_text(RECORD, encoding="utf-8")
    report = windows_check._read("test_x.py", record, Done(1, "said"), 3.0)
    assert report == Report("test_x.py", 1, ("no GPU",), ("test_x.py::b[肺]", "test_x.py::d"), 3.0, "said")


@pytest.mark.parametrize(("code", "failed"), [(0, ()), (5, ()), (3, ("test_x.py: exit code 3",))])
def test_an_exit_code_that_no_test_explains_is_a_failure(tmp_path: Path, code: int, failed: tuple[str, ...]) -> None:
    record = tmp_path / "r.xml"
    record.write_text("<testsuites><testcase name='a'/></testsuites>", encoding="utf-8")
    assert windows_check._read("test_x.py", record, Done(code, ""), 1.0).failed == failed


def test_a_process_that_crashed_is_a_failure(tmp_path: Path) -> None:
    assert windows_check._read("test_x.py", tmp_path / "none.xml", Done(-11, ""), 1.0).failed == (
        "test_x.py: ended before its last test, exit code -11",
    )


def test_a_crash_is_tried_once_more_and_counts_the_second_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    made = []

    def call(self: Wine, *arguments: str, cwd: Path, timeout: float) -> Done:
        made.append(arguments)
        if len(made) == 2:
            (tmp_path / "home" / "test_x.xml").write_text(
                "<testsuites><testcase name='a'/></testsuites>", encoding="utf-8"
            )
        return Done(0 if len(made) == 2 else -11, "last words")

    monkeypatch.setattr(Wine, "call", call)
    report = windows_check._tested(Wine(tmp_path), tmp_path, tmp_path / "tests" / "test_x.py", ["-k", "scan"])
    assert (report.passed, report.failed) == (1, ())
    assert made[0][-3:] == ("tests/test_x.py", "-k", "scan")
    assert "last words" in capsys.readouterr().out
    (tmp_path / "home" / "test_x.xml").unlink()
    made[:] = [(), ()]
    assert windows_check._tested(Wine(tmp_path), tmp_path, tmp_path / "tests" / "test_x.py", []).failed


def test_one_failed_test_fails_the_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / "tests" / name).write_text("", encoding="utf-8")
    reports = {
        "test_a.py": Report("test_a.py", 3, ("no GPU",), (), 1.0, ""),
        "test_b.py": Report("test_b.py", 2, (), (), 1.0, ""),
    }
    monkeypatch.setattr(windows_check, "_tested", lambda wine, copy, path, words: reports[path.name])
    monkeypatch.setattr(windows_check, "_collected", lambda *_: 6)
    arguments = (Wine(tmp_path), tmp_path, Path("python"), windows_check._files(tmp_path, ["test_*.py"], False), 2, [])
    assert windows_check._tests(*arguments)
    assert "5 passed, 1 skipped, 0 failed on Windows; Linux collects 6" in capsys.readouterr().out
    reports["test_b.py"] = Report("test_b.py", 2, (), ("test_b.py::x",), 1.0, "the traceback")
    assert not windows_check._tests(*arguments)
    assert "the traceback" in capsys.readouterr().out
    reports.update({name: Report(name, 0, (), (), 1.0, "") for name in reports})
    assert not windows_check._tests(*arguments), "no test is no proof"


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


def test_a_folder_of_somebody_elses_is_not_emptied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wine, "_installed", lambda: "wine")
    (tmp_path / "thesis.docx").write_text("", encoding="utf-8")
    with pytest.raises(WineError, match="holds something else"):
        Wine(tmp_path).set_up(["uv"])
    assert (tmp_path / "thesis.docx").exists()


def test_what_is_left_out_for_speed_is_there_to_be_left_out() -> None:
    every, quick = (windows_check._files(ROOT, ["test_*.py"], quick) for quick in (False, True))
    assert {path.stem for path in every} - {path.stem for path in quick} == {
        f"test_{name}" for name in windows_check.ALIKE
    }


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
        with pytest.raises(WineError, match=r"python\.exe: is not what the Python Software Foundation signed"):
            wine._must_be_signed(Path("python.exe"))


def test_the_locked_wheels_are_those_that_the_project_asks_for() -> None:
    lines = [line for line in wine.WHEELS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    locked = {line.partition("==")[0] for line in lines}
    asked = {
        re.split(r"[^\w.-]", wish)[0].lower()
        for wish in check_wheels.requirements(ROOT / "pyproject.toml")
        if "linux" not in wish
    }
    assert asked <= locked, "python tools/windows/windows_check.py --lock"


def test_extras_are_asked_for_and_the_project_itself_is_not(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\nname = "a-b"\ndependencies = ["x>=1"]\n[project.optional-dependencies]\nt = ["a-b[u]", "y; '
        "sys_platform == 'win32'\"]\n",
        encoding="utf-8",
    )
    assert check_wheels.requirements(file) == ["x>=1", "y; sys_platform == 'win32'"]


def test_a_package_of_another_system_or_one_too_few_is_a_fault() -> None:
    assert list(check_wheels.misfits("Windows", ["torch", "triton-windows"])) == []
    assert list(check_wheels.misfits("Windows", ["torch"])) == ["triton-windows is not among them"]
    assert list(check_wheels.misfits("Windows", ["torch", "triton-windows", "nvidia-cublas"])) == [
        "nvidia-cublas is, and is not for Windows"
    ]
    assert list(check_wheels.misfits("macOS", ["torch", "triton"])) == ["triton is, and is not for macOS"]


@pytest.mark.parametrize(("refused", "control", "code"), [(None, True, 0), ("3.13", True, 1), (None, False, 1)])
def test_one_case_without_a_wheel_or_a_check_that_cannot_fail_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    refused: str | None,
    control: bool,
    code: int,
) -> None:
    def resolve(uv: object, wishes: Path, system: str, python: str, resolution: str) -> tuple[list[str], str]:
        wished = wishes.read_text(encoding="utf-8")
        if wished == f"{check_wheels.WITHOUT_WHEELS}\n":
            return [], "no wheels" if control else ""
        assert "extra-package" in wished
        return ["torch", "triton-windows"] if system == "Windows" else [
            "torch"
        ], "no solution" if python == refused else ""

    monkeypatch.setattr(check_wheels, "resolve", resolve)
    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "p"\ndependencies = ["torch"]\n', encoding="utf-8")
    assert check_wheels.main(["--project", str(project), "--with", "extra-package"]) == code
    printed = capsys.readouterr().out
    assert f"24 resolutions, {0 if code == 0 else 6 if refused else 1} faults" in printed
