"""Every check that a change must pass, in one command: python tools/check.py

Makes .venv as quickstart.py does, adds what the checks need, runs them all, and ends with one line
for each. With --fast, for the time of writing, the tests marked slow are left out.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # old Pythons must parse this file and hear why, so the import stands below
    sys.exit(
        f"medmambase needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        f"Get one from https://www.python.org"
    )

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import environment

# Named one by one, because an environment under another name may lie in the project's folder too.
SOURCES = ("medmambase", "kernels", "tools", "tests", "examples")
STEPS = {
    "lint": ("-m", "ruff", "check", *SOURCES),
    "format": ("-m", "ruff", "format", "--check", *SOURCES),
    "types": ("-m", "mypy"),
    # Finds what exists on Unix only.
    "types-windows": ("-m", "mypy", "--platform", "win32", "--cache-dir", ".mypy_cache/win32"),
    "tests": ("-X", "warn_default_encoding", "-m", "pytest"),
}
# Only where they are asked for: they need a network, and the second one root's rights the first
# time.
MORE = {"wheels": ("windows/check_wheels.py",), "windows": ("windows/windows_check.py", "--quick")}
LEFT_OUT = (
    "without the tests marked slow: kills inside every write, kernels compiled for a GPU, large property runs "
    "in Triton's interpreter, training from the console and in two processes, how often intervals hold the truth"
)

Outcome = tuple[int, float, str]  # exit code, seconds, what was printed


def main(arguments: Sequence[str]) -> int:
    """Set up, run the steps, print a line for each. Returns 0 if all passed, else 1."""
    ours, theirs = environment.split(arguments)
    parser = environment.parser(
        "Set up medmambase and run its linter, formatter, type checker and tests.",
        "pytest, for example: -- -k scan, or -- -n 0 --pdb",
    )
    add = parser.add_argument
    add("--fast", action="store_true", help="leave out the slow tests")
    add("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"run these only: {', '.join(STEPS)}")
    add("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="leave these out")
    add(
        "--also",
        nargs="+",
        choices=MORE,
        default=[],
        metavar="STEP",
        help="run these too, after the others: wheels, windows (Wine, on Linux)",
    )
    add("--jobs", type=int, default=cores(), help="processes that run tests (default: one for each core, at most 8)")
    chosen = parser.parse_args(ours)
    steps = [name for name in STEPS if name in (chosen.only or STEPS) and name not in chosen.skip]
    if not steps:
        parser.error("--only and --skip leave nothing to run")
    folder = chosen.venv.absolute()
    python = str(environment.prepare(folder, test=True))
    results: dict[str, Outcome] = {}
    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        static = {name: pool.submit(_run, [python, *STEPS[name]]) for name in steps if name != "tests"}
        _tell(static, results)
    if "tests" in steps:
        environment.say("tests")
        start = time.monotonic()
        code = environment.call([python, *STEPS["tests"], *_how(chosen.jobs, chosen.fast), *theirs])
        results["tests"] = (code, time.monotonic() - start, "")
    # After the tests, which have every core: beside each other, all take several times as long.
    for name in chosen.also:
        results[name] = _run([python, f"tools/{MORE[name][0]}", *MORE[name][1:], "--venv", str(folder)])
        environment.say(name)
        print(results[name][2], flush=True)
    print()
    skipped = ("windows", environment.NO_WINE)
    for name, (code, seconds, _) in results.items():
        told = (
            "passed"
            if code == 0
            else "NOT RUN, the reason stands above"
            if (name, code) == skipped
            else f"FAILED (exit code {code})"
        )
        environment.say(
            f"{name:14} {told}, {seconds:.0f} s{f', {LEFT_OUT}' if chosen.fast and name == 'tests' else ''}"
        )
    return int(any(code and (name, code) != skipped for name, (code, *_) in results.items()))


def cores() -> int:
    """Count the cores that this process may use, eight at most: each process of tests wants half a
    gigabyte."""
    if sys.platform == "linux":
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


def _how(jobs: int, fast: bool) -> list[str]:
    """The words for pytest: as many processes, each with its share of the tests in their order,
    so that tests of one file mostly share what its fixtures made; the first to finish takes from
    the other's end."""
    parallel = ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
    return [*parallel, *(["-m", "not slow"] if fast else [])]


def _run(command: Sequence[str]) -> Outcome:
    """Run a program, perhaps while others run, and keep what it prints."""
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=environment.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, time.monotonic() - start, done.stdout


def _tell(running: dict[str, Future[Outcome]], results: dict[str, Outcome]) -> None:
    """Print what each printed, one after the other as they were started."""
    for name, one in running.items():
        results[name] = one.result()
        environment.say(name)
        print(results[name][2], flush=True)


if __name__ == "__main__":
    sys.exit(environment.run(main))
