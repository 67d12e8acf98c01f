"""Choose the newest Windows wheels that fit both distributions and Wine, and write them to
windows_wheels.txt: python tools/windows/windows_check.py --lock
"""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from check_wheels import PROJECTS, requirements
from environment import say
from medmambase.doctor import torch_build
from wine import PYTHON, WHEELS


def lock(python: Path) -> int:
    """Write one line for each package: its version, and the hash of the wheel that this Windows
    takes. Returns the exit code, 0."""
    # Wine's C library lacks what NumPy from 2.1 on calls. The project's own ranges need not say so:
    # it is no fault of Windows.
    limits = f"numpy<2.1\ntorch=={torch_build.TORCH}\ntriton-windows=={torch_build.TRITON}.*\n"
    with tempfile.TemporaryDirectory() as folder:
        asked, limiting, pinned, wheels = (
            Path(folder) / name for name in ("asked.txt", "limits.txt", "pinned.txt", "wheels")
        )
        asked.write_text("\n".join([*requirements(*PROJECTS.values()), ""]), encoding="utf-8", newline="\n")
        limiting.write_text(limits, encoding="utf-8", newline="\n")
        only = ["--python-version", PYTHON, "--only-binary", ":all:"]
        resolve = [
            *("uv", "pip", "compile", str(asked), "-c", str(limiting)),
            *("--python-platform", "x86_64-pc-windows-msvc", *only),
            *("--no-header", "--no-annotate", "--quiet", "-o", str(pinned)),
        ]
        download = [
            *("pip", "--quiet", "download", "--no-deps", "--platform", "win_amd64", *only),
            *("-r", str(pinned), "-d", str(wheels)),
        ]
        for words in (resolve, download):
            _must(python, words)
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


def _must(python: Path, words: Sequence[str]) -> None:
    subprocess.run([str(python), "-m", *words], check=True)


def _plain(name: str) -> str:
    """Spell the name of a package in the one way that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()
