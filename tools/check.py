"""Every check that a change must pass, in one command: python tools/check.py

Makes .venv as quickstart.py does, adds what the checks need, runs them all, and ends with one line for each.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # old Pythons must parse this file and hear why, so the import stands below
    sys.exit(f"medmambase needs Python 3.11 or newer; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. Get one from https://www.python.org")

import time
from collections.abc import Sequence

import environment

# Named one by one, because an environment under another name may lie in the project's folder too.
SOURCES = ("medmambase", "kernels", "tools", "tests")
STEPS = {
    "lint": ("ruff", "check", *SOURCES),
    "format": ("ruff", "format", "--check", *SOURCES),
    "types": ("mypy",),
    "types-windows": ("mypy", "--platform", "win32", "--cache-dir", ".mypy_cache/win32"),  # finds what exists on Unix only
    "tests": ("pytest",),
}


def main(arguments: Sequence[str]) -> int:
    """Set up, run the steps, print a line for each. Returns 0 if all passed, else 1."""
    ours, theirs = environment.split(arguments)
    parser = environment.parser("Set up medmambase and run its linter, formatter, type checker and tests.", "pytest, for example: -- -k scan")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=f"run these only: {', '.join(STEPS)}")
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP", help="leave these out")
    chosen = parser.parse_args(ours)
    steps = [name for name in STEPS if name in chosen.only and name not in chosen.skip]
    if not steps:
        parser.error("--only and --skip leave nothing to run")
    python = environment.prepare(chosen.venv.absolute(), test=True)
    results = {}
    for name in steps:
        environment.say(name)
        start = time.monotonic()
        code = environment.call([str(python), "-m", *STEPS[name], *(theirs if name == "tests" else [])])
        results[name] = (code, time.monotonic() - start)
    print()
    for name, (code, seconds) in results.items():
        environment.say(f"{name:14} {'passed' if code == 0 else f'FAILED (exit code {code})'}, {seconds:.0f} s")
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(environment.run(main))
