"""Make the virtual environment that quickstart.py and check.py share, with a torch that fits the
machine and both distributions of this repository; later runs reuse it.

Standard library only: this runs before anything is installed. Which torch fits is decided in
medmambase/doctor/torch_build.py.
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
DISTRIBUTIONS = {"medmambase-kernels": "./kernels", "medmambase": "."}  # name -> folder, as pip is given it
NO_WINE = 2  # the exit code of windows_check.py where there is no Wine
sys.path.insert(0, str(ROOT))  # the project is not installed yet

from medmambase.doctor.torch_build import SetupError, choose_torch, choose_triton, new_enough, output, this_machine  # noqa: E402  # found by the line above

# Each interpreter runs this about itself. It looks torch up without importing it, which would take
# seconds.
PROBE = """
import json, sys
from importlib import metadata, util
sys.path[:] = filter(None, sys.path)  # a folder called torch in the current one is not torch
have = {name: util.find_spec(name) is not None for name in ("pip", "torch", "triton")}
torch = metadata.version("torch") if have["torch"] else None
ours = {name for name in ("medmambase", "medmambase-kernels") if list(metadata.distributions(name=name))}
print(json.dumps([
    sys.version_info[:2], sys.prefix != sys.base_prefix, have["pip"], torch, have["triton"], ours == {"medmambase"}
]))
"""


@dataclass(frozen=True)
class Interpreter:
    """What a Python says about itself: its version, whether it belongs to a virtual environment,
    and what it can import. ``undivided``: it has medmambase 0.1, whose wheel holds the kernels
    too."""

    python: tuple[int, int]
    nested: bool
    pip: bool
    torch: str | None
    triton: bool
    undivided: bool = False


def ask(python: Path) -> Interpreter | None:
    """Ask an interpreter about itself; None if it is missing or does not run."""
    answer = output([str(python), "-c", PROBE])
    if answer is None:
        return None
    (major, minor), nested, pip, torch, triton, undivided = json.loads(answer)
    return Interpreter((major, minor), nested, pip, torch, triton, undivided)


def program(folder: Path, name: str) -> Path:
    """Return where the environment in ``folder`` keeps the program ``name``."""
    return folder / "Scripts" / f"{name}.exe" if os.name == "nt" else folder / "bin" / name


def prepare(folder: Path, test: bool = False) -> Path:
    """Install torch and both distributions into the environment in ``folder``, which is made first
    if need be; return its Python. ``test``: install what the checks need too. Raises SetupError."""
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
        _pip(python, "install", *choice.arguments)
        here = ask(python)
        if here is None or here.torch is None:
            raise SetupError(
                f"pip reported no error, yet torch is not in {folder}. Delete that folder and run this again."
            )
    torch = str(here.torch)
    triton = None if here.triton else choose_triton(machine, torch, test)
    if triton:
        _pip(python, "install", triton)
    if here.undivided:
        # pip installs the kernels first and then removes the files of the old medmambase, the
        # kernels' among them.
        _pip(python, "uninstall", "--yes", "medmambase")
    editable = _can_be_editable(here.python)
    folders = [f"{place}[test]" if test and name == "medmambase" else place for name, place in DISTRIBUTIONS.items()]
    # Naming the torch that is there keeps pip from changing it.
    _pip(python, "install", *(word for place in folders for word in (["-e"] * editable + [place])), f"torch=={torch}")
    _must_import_torch(python)
    if editable:  # a copy is made again each time, since the source may have changed
        _stamp(folder).write_text(json.dumps(_state(test)), encoding="utf-8", newline="\n")
    return python


def _can_be_editable(python: tuple[int, int]) -> bool:
    """Whether this Python finds an editable install here: the .pth file that leads to it is UTF-8,
    and Pythons before 3.13 read it in the system's encoding."""
    return str(ROOT).isascii() or python >= (3, 13) or locale.getencoding().lower() in ("utf-8", "utf8")


def _usable(folder: Path, here: Interpreter | None) -> Interpreter:
    """Make the environment in ``folder`` unless it is there and works; return what it says about
    itself."""
    if here and here.pip:
        if here.python < (3, 11):
            raise SetupError(
                f"{folder} holds Python {here.python[0]}.{here.python[1]}; 3.11 or newer is needed. Delete it, or "
                f"choose another folder with --venv."
            )
        return here
    if Path(sys.prefix).resolve() == folder.resolve():
        raise SetupError(
            f"the Python that runs this belongs to {folder}, which has no pip. Run this with another Python, or choose "
            f"another folder with --venv."
        )
    if (folder / "pyvenv.cfg").is_file():
        say(f"{folder} is broken or incomplete: making it again")
    elif folder.exists() and (not folder.is_dir() or any(path.is_file() for path in folder.rglob("*"))):
        raise SetupError(
            f"{folder} exists but is not a virtual environment. Delete it, or choose another folder with --venv."
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
    say(f"making {folder}" + (f", which shares torch {own.torch} with {sys.executable}" if own and share else ""))
    command = [sys.executable, "-m", "venv", "--clear", *(["--system-site-packages"] if share else []), str(folder)]
    made = ask(program(folder, "python")) if call(command) == 0 else None
    if made is None or not made.pip:
        raise SetupError(
            f"the virtual environment could not be made. The command was:\n  {as_text(command)}\nCheck that "
            f"{folder.parent} is writable and that its disk is not full."
        )
    return made


def _must_import_torch(python: Path) -> None:
    line = 'import torch; print("torch", torch.__version__, "sees", "a GPU" if torch.cuda.is_available() else "no GPU")'
    if call([str(python), "-c", line]) != 0:
        runtime = (
            "Install the Microsoft Visual C++ Redistributable (https://aka.ms/vs/17/release/vc_redist.x64.exe) "
            "and run this again. "
        )
        advice = f"{runtime if os.name == 'nt' else ''}To start over, delete {python.parent.parent}."
        raise SetupError(f"torch is installed but cannot be imported; its error is above.\n{advice}")


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    if call(command) != 0:
        raise SetupError(
            f"pip failed; its error is above. The command was:\n  {as_text(command)}\n"
            "Without a network or behind a proxy, tell pip where to find packages (pip config set global.proxy, "
            "global.index-url or global.find-links).\n"
            "Then run this again: finished steps are kept."
        )


def _stamp(folder: Path) -> Path:
    return folder / "medmambase.json"


def _state(test: bool) -> dict[str, object]:
    """What an installation depends on: where the project lies, and what both distributions ask
    for."""
    asked = b"".join((ROOT / place / "pyproject.toml").read_bytes() for place in DISTRIBUTIONS.values())
    return {"project": str(ROOT), "pyproject": hashlib.sha256(asked).hexdigest(), "test": test}


def _is_done(folder: Path, test: bool) -> bool:
    try:
        done = json.loads(_stamp(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return done in ([_state(True)] if test else [_state(True), _state(False)])


def call(command: Sequence[str]) -> int:
    """Run a command in the project's folder with its output on ours, and return its exit code.
    Ctrl-C reaches both; the command may finish what it is saving."""
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
    """Return the command as it would be typed here."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def say(text: str) -> None:
    """Print one line about what happens next, before any line of the program that it starts."""
    print(f"== {text}", flush=True)


def parser(description: str, passed_to: str) -> argparse.ArgumentParser:
    """Build the parser of the arguments that all tools take. Arguments after ``--`` are passed to
    ``passed_to``."""
    made = argparse.ArgumentParser(
        description=description,
        epilog=f"Arguments after -- are passed to {passed_to}. A second run reuses the environment and takes seconds.",
    )
    made.add_argument(
        "--venv",
        type=Path,
        default=ROOT / ".venv",
        help="folder of the virtual environment (default: .venv beside the project)",
    )
    return made


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at ``--``: ours, and those after it."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def run(main: Callable[[Sequence[str]], int]) -> int:
    """Run ``main`` on the command line's arguments and return the exit code. 1: the environment
    could not be made; 130: stopped by Ctrl-C."""
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
