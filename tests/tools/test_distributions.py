"""The two distributions of this repository: one version, one licence, and what each asks for."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import environment
import medmambase

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {name: ROOT / place for name, place in environment.DISTRIBUTIONS.items()}


def declared(name: str) -> dict[str, Any]:
    return tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text(encoding="utf-8"))


def the_version() -> str:
    """The one place: ``__version__`` in the kernels, read without importing them."""
    body = ast.parse((ROOT / "kernels/medmambase_kernels/__init__.py").read_text(encoding="utf-8")).body
    (value,) = (
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )
    return str(ast.literal_eval(value))


@pytest.mark.parametrize("name", PROJECTS)
def test_each_distribution_reads_its_version_from_the_kernels(name: str) -> None:
    whole = declared(name)
    assert whole["project"]["name"] == name
    assert whole["project"]["dynamic"] == ["version"]
    source = (PROJECTS[name] / whole["tool"]["hatch"]["version"]["path"]).resolve()
    assert source == ROOT / "kernels/medmambase_kernels/__init__.py"


def test_all_that_repeats_the_version_agrees_with_it() -> None:
    version = the_version()
    assert f"medmambase-kernels=={version}" in declared("medmambase")["project"]["dependencies"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^version: (.+)$", citation) == [version]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## \[(.+?)\]", changes)[0] == version, "the newest section of CHANGELOG.md"


def test_the_version_is_known_without_importing_torch() -> None:
    code = "import sys, medmambase; print(medmambase.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    assert done.stdout.split() == [medmambase.__version__, "False"]


def test_a_clone_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert medmambase.__version__ == "0+unknown"


@pytest.mark.parametrize("name", PROJECTS)
def test_each_package_says_that_it_carries_its_types(name: str) -> None:
    """check_wheels.py finds every file of git in the wheel."""
    package = PROJECTS[name] / name.replace("-", "_")
    assert (package / "py.typed").read_bytes() == b""
    assert declared(name)["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": [package.name]}
    assert "Typing :: Typed" in declared(name)["project"]["classifiers"]


def test_the_licence_is_the_same_in_both() -> None:
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "kernels/LICENSE").read_bytes()


def test_both_ask_for_the_same_pythons_and_the_same_torch() -> None:
    kernels, whole = (declared(name)["project"] for name in PROJECTS)
    assert kernels["requires-python"] == whole["requires-python"]
    torch = {line for line in kernels["dependencies"] if line.startswith("torch")}
    assert torch == {line for line in whole["dependencies"] if line.startswith("torch")} != set()


def test_what_the_kernels_import_is_what_they_ask_for() -> None:
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "kernels/medmambase_kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    others = imported - sys.stdlib_module_names - {"medmambase_kernels"}
    asked, extra = (
        {re.split(r"[^\w.-]", line)[0] for line in lines}
        for lines in (
            declared("medmambase-kernels")["project"]["dependencies"],
            declared("medmambase")["project"]["optional-dependencies"]["onnx"],  # for export_onnx, which names them
        )
    )
    brought = {"triton": "triton-windows", "onnx_ir": "onnxscript"}  # module -> the distribution that brings it
    found = {brought.get(name, name) for name in others}
    assert asked <= found <= asked | extra


def test_the_code_in_the_kernels_readme_runs() -> None:
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "kernels/README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 1
    exec(blocks[0], {"__name__": "readme"})  # noqa: S102  # our own text, which this test is about
