"""How the tests under Wine are chosen, run and counted."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import run_tests
from run_tests import Report
from wine import Done, Wine

ROOT = Path(__file__).resolve().parents[2]
RECORD = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite><testcase name="a"/>
<testcase name="b[肺]"><failure message="m">t</failure></testcase>
<testcase name="c"><skipped message="no GPU">x</skipped></testcase>
<testcase name="d"><error message="m">t</error></testcase></testsuite></testsuites>"""


def test_a_record_of_tests_is_counted(tmp_path: Path) -> None:
    record = tmp_path / "r.xml"
    record.write_text(RECORD, encoding="utf-8")
    report = run_tests._read("test_x.py", record, Done(1, "said"), 3.0)
    assert report == Report("test_x.py", 1, ("no GPU",), ("test_x.py::b[肺]", "test_x.py::d"), 3.0, "said")


@pytest.mark.parametrize(("code", "failed"), [(0, ()), (5, ()), (3, ("test_x.py: exit code 3",))])
def test_an_exit_code_that_no_test_explains_is_a_failure(tmp_path: Path, code: int, failed: tuple[str, ...]) -> None:
    record = tmp_path / "r.xml"
    record.write_text("<testsuites><testcase name='a'/></testsuites>", encoding="utf-8")
    assert run_tests._read("test_x.py", record, Done(code, ""), 1.0).failed == failed


def test_a_process_that_crashed_is_a_failure(tmp_path: Path) -> None:
    assert run_tests._read("test_x.py", tmp_path / "none.xml", Done(-11, ""), 1.0).failed == (
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
    report = run_tests._tested(Wine(tmp_path), tmp_path, tmp_path / "tests" / "test_x.py", ["-k", "scan"])
    assert (report.passed, report.failed) == (1, ())
    assert made[0][-3:] == ("tests/test_x.py", "-k", "scan")
    assert "last words" in capsys.readouterr().out
    (tmp_path / "home" / "test_x.xml").unlink()
    made[:] = [(), ()]
    assert run_tests._tested(Wine(tmp_path), tmp_path, tmp_path / "tests" / "test_x.py", []).failed


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
    monkeypatch.setattr(run_tests, "_tested", lambda wine, copy, path, words: reports[path.name])
    monkeypatch.setattr(run_tests, "_collected", lambda *_: 6)
    files = run_tests.choose_files(tmp_path, ["test_*.py"], False)
    with ThreadPoolExecutor(2) as pool:
        arguments = (Wine(tmp_path), tmp_path, Path("python"), files, pool, [])
        assert run_tests.run_files(*arguments)
        assert "5 passed, 1 skipped, 0 failed on Windows; Linux collects 6" in capsys.readouterr().out
        reports["test_b.py"] = Report("test_b.py", 2, (), ("test_b.py::x",), 1.0, "the traceback")
        assert not run_tests.run_files(*arguments)
        assert "the traceback" in capsys.readouterr().out
        reports.update({name: Report(name, 0, (), (), 1.0, "") for name in reports})
        assert not run_tests.run_files(*arguments), "no test is no proof"


def test_the_quick_way_runs_the_files_that_it_names_and_all_of_them_are_there() -> None:
    every, quick = (run_tests.choose_files(ROOT, ["test_*.py"], quick) for quick in (False, True))
    assert {path.stem for path in quick} == {f"test_{name}" for name in run_tests.OWN_WAYS}
    assert set(quick) < set(every)
