"""Triton's compilers get folders whose names they can read; on Windows itself they are run in one
that they cannot."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medmambase_kernels import backend
from medmambase_kernels._triton import ascii_folders, availability
from medmambase_kernels._triton.ascii_folders import ascii_names

# A module of Python compiled and loaded, and a kernel assembled, as on the first launch.
FIRST_LAUNCH = """
import warnings
warnings.simplefilter("ignore")
from medmambase_kernels._triton.ascii_folders import use_ascii_folders
use_ascii_folders()
from triton.runtime.build import compile_module_from_src
source = '''#include <Python.h>
static PyObject *f(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"f", f, METH_NOARGS, ""}, {0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "answer", 0, -1, methods};
PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&definition); }
'''
print(compile_module_from_src(source, "answer").f())
from kernel_launches import record
from compile_kernels import compile_launch
launch = next(launch for launch in record("float32") if launch.name == "squeeze_excite.pool")
print(compile_launch(launch, 86).registers > 0)
"""


def never() -> str:
    raise AssertionError("no folder has to be made")


def test_names_in_ascii_are_left_alone(tmp_path: Path) -> None:
    assert ascii_names(tmp_path, tmp_path / "cache", {}, lambda folder: "", never).variables == {}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("account", ["用户", "Имя", "Zoë"])
def test_a_folder_gets_its_short_name(tmp_path: Path, account: str) -> None:
    temporary, cache = tmp_path / account / "Temp", tmp_path / account / "cache"
    names = ascii_names(temporary, cache, {"TMPDIR": "x"}, lambda folder: f"C:\\USERS\\1F~1\\{folder.name}", never)
    assert names.variables == {
        "TEMP": "C:\\USERS\\1F~1\\Temp", "TMP": "C:\\USERS\\1F~1\\Temp", "TMPDIR": "C:\\USERS\\1F~1\\Temp",
        "TRITON_CACHE_DIR": "C:\\USERS\\1F~1\\cache",
    }  # fmt: skip  # a table
    assert names.replaced == (str(temporary), str(cache))
    assert not names.spare
    assert cache.is_dir(), "a folder that does not exist has no short name"


@pytest.mark.parametrize("short", ["", "C:\\Zoë"])
def test_without_a_short_name_in_ascii_a_folder_is_made(tmp_path: Path, short: str) -> None:
    names = ascii_names(tmp_path / "肺", tmp_path, {}, lambda folder: short, lambda: "C:\\spare")
    assert names.variables == {"TEMP": "C:\\spare", "TMP": "C:\\spare"}
    assert names.spare


def test_it_is_said_once_and_only_what_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TMPDIR", "TEMP", "TMP", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path / "肺"))
    (tmp_path / "肺").mkdir()
    (tmp_path / "short").mkdir()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ascii_folders, "_short_name", lambda folder: str(tmp_path / "short"))
    use = ascii_folders.use_ascii_folders.__wrapped__
    with pytest.warns(RuntimeWarning, match=r"cannot read .*肺; in this process they get TEMP=.*short, TMP=.*short$"):
        use()
    assert os.environ["TEMP"] == os.environ["TMP"] == tempfile.gettempdir() == str(tmp_path / "short")
    use()  # a second warning would be an error


def test_the_backend_triton_asks_for_them_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(availability, "use_ascii_folders", lambda: called.append("folders"))
    load = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: load(name) if "availability" in name else called.append(name)
    )
    backend.engine.__wrapped__("selective_scan", "triton")
    backend.engine.__wrapped__("selective_scan", "cpu")
    assert called == ["folders", "medmambase_kernels._triton.selective_scan", "medmambase_kernels._cpu.selective_scan"]


@pytest.mark.skipif(sys.platform != "win32", reason="the compilers of triton-windows")
@pytest.mark.parametrize("account", ["Ann B", "Usuário", "用户肺"])
def test_the_first_launch_compiles_for_an_account_of_any_name(tmp_path: Path, account: str) -> None:
    home = tmp_path / account
    (home / "Temp").mkdir(parents=True)
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ, "TEMP": str(home / "Temp"), "TMP": str(home / "Temp"), "USERPROFILE": str(home),
        "PYTHONPATH": os.pathsep.join(str(root / name) for name in (".", "kernels", "tools/kernels")),
    }  # fmt: skip  # a table
    for name in ("TRITON_CACHE_DIR", "TMPDIR", "CC", "TRITON_INTERPRET"):
        environment.pop(name, None)
    environment["TRITON_DUMP_PTXAS_LOG"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LAUNCH],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.stdout.split()[-2:] == ["42", "True"], done.stdout + done.stderr
