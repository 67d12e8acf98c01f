"""Every check that a change must pass, in one command: python tools/check.py

Makes .venv as quickstart.py does, adds what the checks need, runs them all, and ends with one line
for each.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # old Pythons must parse this file and hear why, so the import stands below
    sys.exit(
        f"medmambase needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        f"Get one from https://www.python.org"
    )

import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import environment

# Named one by one, because an environment under another name may lie in the project's folder too.
SOURCES = ("medmambase", "kernels", "tools", "tests")
STEPS = {
    "lint": ("-m", "ruff", "check", *SOURCES),
    "format": ("-m", "ruff", "format", "--check", *SOURCES),
    "types": ("-m", "mypy"),
    "types-windows": (
        "-m",
        "mypy",
        "--platform",
        "win32",
        "--cache-dir",
        ".mypy_cache/win32",
    ),  # finds what exists on Unix only
    "tests": ("-X", "warn_default_encoding", "-m", "pytest"),
}
# Only where they are asked for: they need a network, and the second one root's rights the first
# time.
MORE = {"wheels": ("windows/check_wheels.py",), "windows": ("windows/windows_check.py", "--quick", "--jobs", "1")}


def main(arguments: Sequence[str]) -> int:
    """Set up, run the steps, print a line for each. Returns 0 if all passed, else 1."""
    ours, theirs = environment.split(arguments)
    parser = environment.parser(
        "Set up medmambase and run its linter, formatter, type checker and tests.", "pytest, for example: -- -k scan"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        metavar="STEP",
        help=f"run these only: {', '.join(STEPS)}",
    )
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="leave these out")
    parser.add_argument(
        "--also",
        nargs="+",
        choices=MORE,
        default=[],
        metavar="STEP",
        help="run these too, beside the others: wheels, windows (Wine, on Linux)",
    )
    chosen = parser.parse_args(ours)
    steps = [name for name in STEPS if name in chosen.only and name not in chosen.skip]
    if not steps:
        parser.error("--only and --skip leave nothing to run")
    folder = chosen.venv.absolute()
    python = str(environment.prepare(folder, test=True))
    results = {}
    with ThreadPoolExecutor(1) as pool:
        others = {
            name: pool.submit(_beside, [python, f"tools/{MORE[name][0]}", *MORE[name][1:], "--venv", str(folder)])
            for name in chosen.also
        }
        for name in steps:
            environment.say(name)
            start = time.monotonic()
            code = environment.call([python, *STEPS[name], *(theirs if name == "tests" else [])])
            results[name] = (code, time.monotonic() - start)
        for name, other in others.items():
            code, seconds, printed = other.result()
            environment.say(name)
            print(printed, flush=True)
            results[name] = (code, seconds)
    print()
    skipped = ("windows", environment.NO_WINE)
    for name, (code, seconds) in results.items():
        told = (
            "passed"
            if code == 0
            else "NOT RUN, the reason stands above"
            if (name, code) == skipped
            else f"FAILED (exit code {code})"
        )
        environment.say(f"{name:14} {told}, {seconds:.0f} s")
    return int(any(code and (name, code) != skipped for name, (code, _) in results.items()))


def _beside(command: Sequence[str]) -> tuple[int, float, str]:
    """Exit code, seconds and all that was printed, by a program that runs while others do."""
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=environment.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, time.monotonic() - start, done.stdout


if __name__ == "__main__":
    sys.exit(environment.run(main))
