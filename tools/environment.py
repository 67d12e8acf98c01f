"""The virtual environment that quickstart.py and check.py share: made once, given a torch that fits
the machine, reused afterwards.

Standard library only: this runs before anything is installed. Last stop before:
medmambase/doctor/torch_build.py, which chooses. Next stop: pip, then the two tools.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import locale
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_WINE = 2  # the exit code of windows_check.py where there is no Wine
sys.path.insert(0, str(ROOT))  # the project is not installed yet

from medmambase.doctor.torch_build import SetupError, choose_torch, choose_triton, new_enough, output, this_machine  # noqa: E402  # found by the line above

# Run by an interpreter about itself. It looks torch up without importing it, which would take
# seconds.
PROBE = """
import json, sys
from importlib import metadata, util
sys.path[:] = filter(None, sys.path)  # a folder called torch in the current one is no torch
have = {name: util.find_spec(name) is not None for name in ("pip", "torch", "triton")}
torch = metadata.version("torch") if have["torch"] else None
print(json.dumps([sys.version_info[:2], sys.prefix != sys.base_prefix, have["pip"], torch, have["triton"]]))
"""


@dataclass(frozen=True)
class Interpreter:
    """What a Python says about itself: version, whether it belongs to a virtual environment, what
    it can import."""

    python: tuple[int, int]
    nested: bool
    pip: bool
    torch: str | None
    triton: bool


def ask(python: Path) -> Interpreter | None:
    """What the interpreter says about itself; None where it is missing or does not run."""
    answer = output([str(python), "-c", PROBE])
    if answer is None:
        return None
    (major, minor), nested, pip, torch, triton = json.loads(answer)
    return Interpreter((major, minor), nested, pip, torch, triton)


def program(folder: Path, name: str) -> Path:
    """Where the environment in ``folder`` keeps the program ``name``."""
    return folder / "Scripts" / f"{name}.exe" if os.name == "nt" else folder / "bin" / name


def prepare(folder: Path, test: bool = False) -> Path:
    """The environment's Python, with torch and the project in it (``test``: and what the checks
    need). Raises SetupError."""
    python = program(folder, "python")
    here = ask(python)
    if here and here.pip and new_enough(here.torch) and _is_done(folder, test):
        say(f"{folder} is ready, torch {here.torch}")
        return python
    here = _usable(folder, here)
    machine = this_machine()
    choice = choose_torch(machine, here.torch)
    say(f"torch: {choice.reason}")
    if choice.arguments:
        _pip(python, *choice.arguments)
        here = ask(python)
        if here is None or here.torch is None:
            raise SetupError(
                f"pip reported no error, yet torch is not in {folder}. Delete that folder and run this again."
            )
    torch = str(here.torch)
    triton = None if here.triton else choose_triton(machine, torch, test)
    if triton:
        _pip(python, triton)
    project = ".[test]" if test else "."
    editable = _can_be_editable(here.python)
    # Naming the torch that is there forbids pip to change it.
    _pip(python, *(["-e"] if editable else []), project, f"torch=={torch}")
    _must_import_torch(python)
    if editable:  # a copy is made anew each time, since the source may have changed
        _stamp(folder).write_text(json.dumps(_state(test)), encoding="utf-8", newline="\n")
    return python


def _can_be_editable(python: tuple[int, int]) -> bool:
    """An editable install is found through a .pth file in UTF-8, which Pythons before 3.13 read in
    the system's encoding."""
    return str(ROOT).isascii() or python >= (3, 13) or locale.getencoding().lower() in ("utf-8", "utf8")


def _usable(folder: Path, here: Interpreter | None) -> Interpreter:
    """The environment in ``folder``, made or made again if it is missing or broken."""
    if here and here.pip:
        if here.python < (3, 11):
            raise SetupError(
                f"{folder} holds Python {here.python[0]}.{here.python[1]}; 3.11 or newer is wanted. Delete it, or "
                f"name another folder with --venv."
            )
        return here
    if Path(sys.prefix).resolve() == folder.resolve():
        raise SetupError(
            f"{folder}, which runs this, has no pip. Run this with another Python, or name another folder with --venv."
        )
    if (folder / "pyvenv.cfg").is_file():
        say(f"{folder} is broken or was left half made: making it again")
    elif folder.exists() and (not folder.is_dir() or any(path.is_file() for path in folder.rglob("*"))):
        raise SetupError(
            f"{folder} exists and is no virtual environment. Delete it, or name another folder with --venv."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"this Python ({sys.executable}) lacks {' and '.join(missing)}. On Debian and Ubuntu: sudo apt install "
            f"python3-venv. Then run this again."
        )
    own = ask(Path(sys.executable))
    # A new environment sees what the base Python has, not what another virtual environment has.
    share = own is not None and not own.nested and new_enough(own.torch)
    say(f"making {folder}" + (f", which sees torch {own.torch} of {sys.executable}" if own and share else ""))
    command = [sys.executable, "-m", "venv", "--clear", *(["--system-site-packages"] if share else []), str(folder)]
    made = ask(program(folder, "python")) if call(command) == 0 else None
    if made is None or not made.pip:
        raise SetupError(
            f"the virtual environment could not be made. The command was:\n  {as_text(command)}\nIs {folder.parent} "
            f"writable, and is there room?"
        )
    return made


def _must_import_torch(python: Path) -> None:
    line = 'import torch; print("torch", torch.__version__, "sees", "a GPU" if torch.cuda.is_available() else "no GPU")'
    if call([str(python), "-c", line]) != 0:
        runtime = (
            "Install the Microsoft Visual C++ Redistributable (https://aka.ms/vs/17/release/vc_redist.x64.exe) "
            "and run this again. "
        )
        advice = f"{runtime if os.name == 'nt' else ''}To start afresh, delete {python.parent.parent}."
        raise SetupError(f"torch is installed but cannot be imported; the reason stands above.\n{advice}")


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    if call(command) != 0:
        raise SetupError(
            f"pip failed; the reason stands above. The command was:\n  {as_text(command)}\n"
            "Without a network or behind a proxy, tell pip where packages are (pip config set global.proxy, "
            "global.index-url or global.find-links).\n"
            "Then run this again: what is done is kept."
        )


def _stamp(folder: Path) -> Path:
    return folder / "medmambase.json"


def _state(test: bool) -> dict[str, object]:
    """What an installation depends on: where the project lies, and what it asks for."""
    return {
        "project": str(ROOT),
        "pyproject": hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(),
        "test": test,
    }


def _is_done(folder: Path, test: bool) -> bool:
    try:
        done = json.loads(_stamp(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return done in ([_state(True)] if test else [_state(True), _state(False)])


def call(command: Sequence[str]) -> int:
    """Run a command in the project's folder, its output on ours, and return its exit code. Ctrl-C
    reaches both; the command may finish what it saves."""
    print(f"$ {as_text(command)}", flush=True)
    try:
        child = subprocess.Popen(command, cwd=ROOT)
    except OSError as error:
        raise SetupError(
            f"{command[0]} does not start: {error.strerror}. Delete the environment it belongs to and run this again."
        ) from error
    try:
        return child.wait()
    except KeyboardInterrupt:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
        finally:  # a second Ctrl-C, or a minute, ends it
            child.kill()
        raise


def as_text(command: Sequence[str]) -> str:
    """The command as it would be typed here."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def say(text: str) -> None:
    """One line about what happens next, before any line of the program it starts."""
    print(f"== {text}", flush=True)


def parser(description: str, passed_to: str) -> argparse.ArgumentParser:
    """The arguments both tools know. What stands after ``--`` goes to ``passed_to``."""
    made = argparse.ArgumentParser(
        description=description,
        epilog=f"What stands after -- goes to {passed_to}. A second run reuses the environment and takes seconds.",
    )
    made.add_argument(
        "--venv",
        type=Path,
        default=ROOT / ".venv",
        help="folder of the virtual environment (default: .venv beside the project)",
    )
    return made


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and those after ``--``."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def run(main: Callable[[Sequence[str]], int]) -> int:
    """``main`` on the command line's arguments; returns the exit code. 1: could not set up; 130:
    stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may have letters that the console lacks
    try:
        return main(sys.argv[1:])
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr, flush=True)
        return 130
