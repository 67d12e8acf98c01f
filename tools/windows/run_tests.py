"""Run the project's tests on the Windows Python under Wine, each file in a process of its own, and
count what came of them.
"""

import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from environment import ROOT, say
from wine import Done, Wine

# windows_check.py --quick runs these alone: how files are named, locked, replaced and written, how
# processes start and end, and what the console shows.
OWN_WAYS = (
    "ascii_folders", "check_command", "checkpoint", "csv_table", "disk_cache", "drop_in", "environment", "folders",
    "guard", "interrupt", "privacy", "survival", "tables",
)  # fmt: skip  # names


@dataclass(frozen=True)
class Report:
    """The outcome of one file of tests."""

    name: str
    passed: int
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    seconds: float
    output: str


def choose_files(copy: Path, patterns: Sequence[str], quick: bool) -> list[Path]:
    """Find the files of tests that match a pattern; ``quick`` takes those of OWN_WAYS only."""
    found = sorted({path for pattern in patterns for path in (copy / "tests").rglob(pattern)})
    return [path for path in found if not quick or path.stem.removeprefix("test_") in OWN_WAYS]


def run_files(
    wine: Wine, copy: Path, python: Path, files: Sequence[Path], pool: Executor, words: Sequence[str]
) -> bool:
    """Run each file in a process of its own, as many at a time as ``pool`` has threads, so that one
    that crashes costs no other, and print the counts beside Linux's. Returns whether tests ran and
    none failed."""
    linux = pool.submit(_collected, python, [path.relative_to(copy).as_posix() for path in files], words)
    reports = list(pool.map(lambda path: _tested(wine, copy, path, words), files))
    failed = [line for report in reports for line in report.failed]
    skipped = Counter(reason for report in reports for reason in report.skipped)
    passed = sum(report.passed for report in reports)
    for report in reports:
        if report.failed:
            print(report.output)
    here = linux.result()
    print(f"\n{passed} passed, {skipped.total()} skipped, {len(failed)} failed on Windows; Linux collects {here}")
    for reason, count in skipped.most_common():
        print(f"  {count:4} skipped: {reason}")
    for line in failed:
        print(f"  FAILED {line}")
    return bool(passed) and not failed


def _tested(wine: Wine, copy: Path, path: Path, words: Sequence[str]) -> Report:
    record = wine.folder / "home" / f"{path.stem}.xml"
    pytest = (
        "-u",
        "-X",
        "faulthandler",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--color=no",
        f"--junitxml={wine.path(record)}",
    )

    def once() -> Report:
        record.unlink(missing_ok=True)
        began = time.monotonic()
        done = wine.call(*pytest, path.relative_to(copy).as_posix(), *words, cwd=copy, timeout=600)
        return _read(path.name, record, done, time.monotonic() - began)

    report = once()
    if not record.is_file():
        say(f"{report.failed[0]}; trying once more. Its last output:\n{report.output[-1500:]}")
        report = once()
    say(
        f"{path.name:32} {report.passed:4} passed, {len(report.skipped):3} skipped, {len(report.failed)} failed, "
        f"{report.seconds:.0f} s"
    )
    return report


def _read(name: str, record: Path, done: Done, seconds: float) -> Report:
    """Read the record that pytest wrote; a process that left none has crashed."""
    if not record.is_file():
        return Report(
            name, 0, (), (f"{name}: ended before its last test, exit code {done.code}",), seconds, done.output
        )
    cases = ElementTree.parse(record).getroot().iter("testcase")
    failed, skipped, passed = [], [], 0
    for case in cases:
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            failed.append(f"{name}::{case.get('name')}")
        elif "skipped" in kinds:
            skipped.append(kinds["skipped"].get("message", ""))
        else:
            passed += 1
    if done.code not in (0, 5) and not failed:  # 5: no test was asked for
        failed.append(f"{name}: exit code {done.code}")
    return Report(name, passed, tuple(skipped), tuple(failed), seconds, done.output)


def _collected(python: Path, names: Sequence[str], words: Sequence[str]) -> int:
    done = subprocess.run(
        [str(python), "-m", "pytest", "--collect-only", "-q", *names, *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return sum("::" in line for line in done.stdout.splitlines())
