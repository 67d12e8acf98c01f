"""Check the project on Windows, from Linux: python tools/windows/windows_check.py

Sets Wine up with a Windows Python and the Windows wheels (wine.py), and installs the project's own
two wheels there. In a folder with a blank, an accent and a Chinese character it then runs every
test, compiles every Triton kernel with the assembler in triton-windows, and trains for one epoch
and predicts through the console programs, all beside one another. What Wine cannot show: a GPU and
its driver, the display's watchdog, a missing C++ runtime, virus scanners, the limit of 260
characters.

Exit code: 0 everything passed, 1 something failed, 2 Wine is not installed and cannot be.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, where environment.py lies

import environment  # found by the line above
from environment import DISTRIBUTIONS, ROOT, say  # found by the line above
from lock_wheels import lock  # found by the line above
from run_tests import choose_files, run_files  # found by the line above
from wine import WHEELS, Done, NoWineError, Wine, WineError  # found by the line above

STEPS = ("semantics", "kernels", "doctor", "training", "tests")
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
PLACE = "dépôt 肺"  # of the copy that is tested
QUICK_KERNELS = ("--arch", "90", "--dtype", "float32", "--jobs", "1")
PICTURES = "Bilder ü"  # the set that is trained on
IMAGES_PER_CLASS, TEST_IMAGES = 40, 48

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


def main(arguments: Sequence[str]) -> int:
    """Set Windows up, run the steps, and print a line for each. Returns the exit code."""
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
        "--files",
        nargs="+",
        default=["test_*.py"],
        metavar="NAME",
        help="run the files of tests with these names only (default: test_*.py)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run only the tests of what is Windows' own, leave out those marked slow and most compilations of kernels",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="programs and files of tests to run at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "medmambase-windows",
        help="folder in which Wine's Windows is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--lock", action="store_true", help=f"choose the newest wheels that fit, write them to {WHEELS.name}, and end"
    )
    chosen = parser.parse_args(ours)
    words = [*(["-m", "not slow"] if chosen.quick else []), *theirs]
    python = environment.prepare(chosen.venv.absolute(), test=True)
    uv = [str(python), "-m", "uv"]
    if chosen.lock:
        return lock(python)
    wine, began = Wine(chosen.folder.absolute()), time.monotonic()
    try:
        wine.set_up(uv)
        copy = _copy(wine)
        if "training" in chosen.only:
            _draw(copy / PICTURES, python)
        _install(wine, copy, uv)
        say(f"Windows is set up in {wine.folder}, {time.monotonic() - began:.0f} s")
        results = {}
        if "semantics" in chosen.only:
            results["semantics"] = _told("Windows' ways", wine.call("-c", SEMANTICS, cwd=copy))
        # Most programs keep one core busy; the first of these take longest.
        programs: dict[str, Callable[[], bool]] = {
            "training": lambda: _training(wine, copy),
            "kernels": lambda: _kernels(wine, copy, chosen.quick),
            "doctor": lambda: _doctor(wine, copy),
        }
        with ThreadPoolExecutor(chosen.jobs) as pool:
            running = {name: pool.submit(program) for name, program in programs.items() if name in chosen.only}
            if "tests" in chosen.only:
                files = choose_files(copy, chosen.files, chosen.quick)
                results["tests"] = run_files(wine, copy, python, files, pool, words)
            results |= {name: future.result() for name, future in running.items()}
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


def _copy(wine: Wine) -> Path:
    """Copy the project as git has it, changes included, to where Windows programs may write."""
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


def _draw(pictures: Path, python: Path) -> None:
    """Draw the set that is trained on, with Linux's Python: Wine needs longer to draw the pictures
    than to learn from them."""
    draw = (
        "import pathlib, sys; from medmambase.data.phantom import write_phantom; "
        f"write_phantom(pathlib.Path(sys.argv[1]), images_per_class={IMAGES_PER_CLASS})"
    )
    subprocess.run([str(python), "-c", draw, str(pictures)], cwd=ROOT, check=True)


def _install(wine: Wine, copy: Path, uv: Sequence[str]) -> None:
    """Build the project's two wheels and install them with Windows' own pip, so that the console
    programs are those of Windows. Raises WineError."""
    dist = wine.folder / "parts" / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for place in DISTRIBUTIONS.values():
        subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", str(dist), str(copy / place)], check=True)
    wheels = sorted(dist.glob("*.whl"))
    wine.give()
    how = ("--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall")
    done = wine.call("-m", "pip", *how, *map(wine.path, wheels))
    if done.code:
        names = " and ".join(wheel.name for wheel in wheels)
        raise WineError(f"pip on Windows cannot install {names}:\n{done.output[-2000:]}")


def _kernels(wine: Wine, copy: Path, quick: bool) -> bool:
    """Compile the kernels with triton-windows and its ptxas.exe; no compiler is on the path."""
    chosen = QUICK_KERNELS if quick else ("--arch", *ARCHITECTURES, "--jobs", "2")
    done = wine.call("tools/kernels/compile_kernels.py", "--quick", *chosen, cwd=copy, timeout=1500)
    return _told("kernels", done, lines=8)


def _doctor(wine: Wine, copy: Path) -> bool:
    """Run the doctor to its last line, which is about the CPU, since there is no GPU here."""
    done = wine.program("medmambase-doctor", cwd=copy)
    return _told("medmambase-doctor", done, lines=40) and "\nREADY (cpu" in done.output


def _training(wine: Wine, copy: Path) -> bool:
    """Train for one epoch, from the weights in the wheel, and predict the test images, with the
    console programs."""
    words = (PICTURES, "--model", "nano", "--image-size", "48", "--epochs", "1", "--runs", "läufe")
    done = wine.program("medmambase-train", *words, cwd=copy, timeout=1500, OMP_NUM_THREADS="2", KMP_BLOCKTIME="0")
    reports = list((copy / "läufe").glob("*/report.html"))
    if not _told("medmambase-train", done, lines=12) or len(reports) != 1:
        return False
    table = copy / "prédictions.csv"
    run = f"läufe/{reports[0].parent.name}"
    done = wine.program("medmambase-predict", run, f"{PICTURES}/test", "-o", table.name, cwd=copy)
    fine = _told("medmambase-predict", done)
    return fine and len(table.read_text(encoding="utf-8-sig").splitlines()) == 1 + TEST_IMAGES


def _told(name: str, done: Done, lines: int = 5) -> bool:
    say(f"{name}: exit code {done.code}")
    print(*done.output.strip().splitlines()[-lines:], sep="\n", flush=True)
    return done.code == 0


if __name__ == "__main__":
    sys.exit(environment.run(main))
