"""The project on Windows, from Linux: python tools/windows/windows_check.py

Sets Wine up with a Windows Python and the Windows wheels (wine.py), installs the project's own
wheel there, and in a folder with a blank, an accent and a Chinese character runs every test,
compiles every Triton kernel with the assembler in triton-windows, and trains for one epoch through
the console program. What Wine cannot show: a GPU and its driver, the display's watchdog, a missing
C++ runtime, virus scanners, the limit of 260 characters.

Exit code: 0 all is well, 1 something failed, 2 there is no Wine here.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, where environment.py lies

import environment  # found by the line above
from environment import ROOT, say  # found by the line above
from medmambase.doctor import torch_build  # found by the line above
from wine import PYTHON, WHEELS, Done, NoWineError, Wine, WineError  # found by the line above

STEPS = ("semantics", "kernels", "doctor", "training", "tests")
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
PLACE = "dépôt 肺"  # of the copy that is tested
# What --quick leaves out: numbers, drawings and pages, which are alike on every system, and what
# the step `kernels` does too. It compiles for the oldest, one more and the newest GPU.
ALIKE = (
    "audit", "augment", "backend", "bench", "bench_command", "calibration", "comparison", "compile_kernels",
    "config", "cpu_vectors", "damaged_files", "depthwise_silu", "explanation_folder", "far_memory", "figures",
    "gated_norm", "intervals", "loop", "mamba_grid", "maps", "measure_loader", "metrics", "network",
    "odd_formats", "optimise", "phantom", "prediction", "predictions", "published", "report", "report_damage",
    "selective_scan", "selective_scan_2d", "selective_scan_laws", "settings", "squeeze_excite",
    "torch_citizenship", "torch_devices", "torch_func",
)  # fmt: skip  # names
QUICK_KERNELS = ("--arch", "75", "90", "120", "--dtype", "float32")

# What must be as on Windows for the other steps to mean anything; each line fails on Linux.
SEMANTICS = r"""
import locale, multiprocessing, os, pathlib, sys, tempfile


folder = pathlib.Path(tempfile.mkdtemp())
def refused(act, *kinds):
    try:
        act()
    except kinds:
        return True
    return False
for name in "ab":
    (folder / name).write_text("x", encoding="utf-8")
with (folder / "a").open(encoding="utf-8"):
    held = refused(lambda: os.replace(folder / "b", folder / "a"), PermissionError)
    kept = refused((folder / "a").unlink, PermissionError)
(folder / "l").write_text("\n", encoding="utf-8")
(folder / "X").write_text("x", encoding="utf-8")
found = {
    "sys.platform is win32": sys.platform == "win32",
    "an open file is not replaced": held,
    "an open file is not removed": kept,
    "names differ not by case": (folder / "x").exists(),
    "a name with ? is refused": refused(lambda: (folder / "a?").write_text("x", encoding="utf-8"), OSError),
    "the console is cp1252": sys.stdout.encoding == "cp1252" and
        refused(lambda: "\u2588".encode(sys.stdout.encoding), UnicodeEncodeError),
    "text without an encoding is cp1252": locale.getpreferredencoding(False) == "cp1252",
    "text has CR LF": (folder / "l").read_bytes() == b"\r\n",
    "processes are spawned, never forked":
        multiprocessing.get_all_start_methods() == ["spawn"] and not hasattr(os, "fork"),
}
wrong = [name for name, true in found.items() if not true]
print(len(found), "hold" if not wrong else "not as on Windows: " + "; ".join(wrong))
sys.exit(bool(wrong))
"""


@dataclass(frozen=True)
class Report:
    """What a file of tests came to."""

    name: str
    passed: int
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    seconds: float
    output: str


def main(arguments: Sequence[str]) -> int:
    """Set up, run the steps, print a line for each. Returns the exit code."""
    ours, theirs = environment.split(arguments)
    parser = environment.parser(
        "Run medmambase's tests on a Windows Python under Wine, compile its kernels there, and train.",
        "pytest, for example: -- -k scan",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        metavar="STEP",
        help=f"run these only: {', '.join(STEPS)}",
    )
    parser.add_argument(
        "--files", nargs="+", default=["test_*.py"], metavar="NAME", help="of the files in tests, these (test_*.py)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out the tests of numbers and drawings, and most compilations of kernels",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files of tests at a time")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "medmambase-windows",
        help="where Wine's Windows is kept (%(default)s)",
    )
    parser.add_argument(
        "--lock", action="store_true", help=f"choose the newest wheels that fit, write {WHEELS.name}, and end"
    )
    chosen = parser.parse_args(ours)
    python = environment.prepare(chosen.venv.absolute(), test=True)
    uv = [str(python), "-m", "uv"]
    if chosen.lock:
        return _lock(python, uv)
    wine, began = Wine(chosen.folder.absolute()), time.monotonic()
    try:
        wine.set_up(uv)
        copy = _copy(wine)
        _install(wine, copy, uv)
        say(f"Windows is set up in {wine.folder}, {time.monotonic() - began:.0f} s")
        steps = {
            "semantics": lambda: _told("Windows' ways", wine.call("-c", SEMANTICS, cwd=copy)),
            "kernels": lambda: _kernels(wine, copy, chosen.quick),
            "doctor": lambda: _doctor(wine, copy),
            "training": lambda: _training(wine, copy),
            "tests": lambda: _tests(wine, copy, python, _files(copy, chosen.files, chosen.quick), chosen.jobs, theirs),
        }
        results = {name: steps[name]() for name in chosen.only}
    except NoWineError as error:
        say(f"NOT TESTED ON WINDOWS: {error}")
        return environment.NO_WINE
    except WineError as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        wine.stop()
    print()
    for name, fine in results.items():
        say(f"windows {name:10} {'passed' if fine else 'FAILED'}")
    return int(not all(results.values()))


def _lock(python: Path, uv: Sequence[str]) -> int:
    """One hash for each package, that of the wheel which this Windows takes."""
    # Wine's C library lacks what NumPy from 2.1 on calls. A range in the project's own files need
    # not say so: it is no fault of Windows.
    wishes = f"numpy<2.1\ntorch=={torch_build.TORCH}\ntriton-windows=={torch_build.TRITON}.*\n"
    with tempfile.TemporaryDirectory() as folder:
        limits, pinned, wheels = (Path(folder) / name for name in ("limits.txt", "pinned.txt", "wheels"))
        limits.write_text(wishes, encoding="utf-8", newline="\n")
        common = ["--python-version", PYTHON, "--only-binary", ":all:"]
        subprocess.run(
            [*uv, "pip", "compile", str(ROOT / "pyproject.toml"), "--extra", "test", "-c", str(limits),
            "--python-platform", "x86_64-pc-windows-msvc", *common,
             "--no-header", "--no-annotate", "--quiet", "--no-emit-package", "medmambase", "-o", str(pinned)],
             check=True,
        )  # fmt: skip  # a command line
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "--quiet",
                "download",
                "--no-deps",
                "--platform",
                "win_amd64",
                *common,
                "-r",
                str(pinned),
                "-d",
                str(wheels),
            ],
            check=True,
        )
        hashes = {
            _plain(path.name.split("-")[0]): hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels.iterdir()
        }
        lines = [
            f"{line} --hash=sha256:{hashes[_plain(line.split('==')[0])]}"
            for line in pinned.read_text(encoding="utf-8").split()
        ]
    WHEELS.write_text(
        "\n".join(["# Written by: python tools/windows/windows_check.py --lock", *lines, ""]),
        encoding="utf-8",
        newline="\n",
    )
    say(f"{WHEELS} names {len(lines)} wheels")
    return 0


def _plain(name: str) -> str:
    """The name of a package in the one spelling that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy(wine: Wine) -> Path:
    """The project as git has it, changes included, where Windows programs may write."""
    copy = wine.folder / PLACE
    if copy.exists():
        shutil.rmtree(copy)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode("utf-8").split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def _install(wine: Wine, copy: Path, uv: Sequence[str]) -> None:
    """The project's own wheel, by Windows' own pip, so that its console programs are those of
    Windows. Raises WineError."""
    dist = wine.folder / "parts" / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", str(dist), str(copy)], check=True)
    (wheel,) = dist.glob("*.whl")
    wine.give()
    done = wine.call(
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
        wine.path(wheel),
    )
    if done.code:
        raise WineError(f"pip on Windows does not install {wheel.name}:\n{done.output[-2000:]}")


def _files(copy: Path, patterns: Sequence[str], quick: bool) -> list[Path]:
    """The files of tests that are asked for."""
    found = sorted({path for pattern in patterns for path in (copy / "tests").rglob(pattern)})
    return [path for path in found if not (quick and path.stem.removeprefix("test_") in ALIKE)]


def _tests(wine: Wine, copy: Path, python: Path, files: Sequence[Path], jobs: int, words: Sequence[str]) -> bool:
    """Each file of tests in a process of its own, so that one that crashes costs no other; then the
    counts beside Linux's."""
    with ThreadPoolExecutor(jobs) as pool:
        reports = list(pool.map(lambda path: _tested(wine, copy, path, words), files))
    failed = [line for report in reports for line in report.failed]
    skipped = Counter(reason for report in reports for reason in report.skipped)
    passed = sum(report.passed for report in reports)
    for report in reports:
        if report.failed:
            print(report.output)
    here = _collected(python, [path.relative_to(copy).as_posix() for path in files], words)
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
        say(f"{report.failed[0]}; once more. Its last words:\n{report.output[-1500:]}")
        report = once()
    say(
        f"{path.name:32} {report.passed:4} passed, {len(report.skipped):3} skipped, {len(report.failed)} failed, "
        f"{report.seconds:.0f} s"
    )
    return report


def _read(name: str, record: Path, done: Done, seconds: float) -> Report:
    """What pytest wrote down; a process without a record has crashed."""
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


def _kernels(wine: Wine, copy: Path, quick: bool) -> bool:
    """Compiled by triton-windows and its ptxas.exe; nothing of a compiler is on the path."""
    chosen = QUICK_KERNELS if quick else ("--arch", *ARCHITECTURES)
    done = wine.call("tools/kernels/compile_kernels.py", "--quick", "--jobs", "2", *chosen, cwd=copy, timeout=1500)
    return _told("kernels", done, lines=8)


def _doctor(wine: Wine, copy: Path) -> bool:
    """It must come to its last line; there is no GPU here, so that line is of the CPU."""
    done = wine.program("medmambase-doctor", cwd=copy)
    return _told("medmambase-doctor", done, lines=40) and "\nREADY (cpu" in done.output


def _training(wine: Wine, copy: Path) -> bool:
    """One epoch on the phantom by the console program."""
    runs = copy / "läufe"
    done = wine.program(
        "medmambase-train", "--demo", "--epochs", "1", "--runs", "läufe", cwd=copy, timeout=1500, OMP_NUM_THREADS="2"
    )
    return _told("medmambase-train", done, lines=12) and len(list(runs.glob("*/report.html"))) == 1


def _told(name: str, done: Done, lines: int = 5) -> bool:
    say(f"{name}: exit code {done.code}")
    print(*done.output.strip().splitlines()[-lines:], sep="\n", flush=True)
    return done.code == 0


if __name__ == "__main__":
    sys.exit(environment.run(main))
