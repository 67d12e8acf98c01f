"""What check_wheels.py decides. Resolving is the other half: it needs a network."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

import check_wheels
import wine


def test_the_locked_wheels_are_those_that_the_project_asks_for() -> None:
    lines = [line for line in wine.WHEELS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    locked = {line.partition("==")[0] for line in lines}
    asked = {
        re.split(r"[^\w.-]", wish)[0].lower()
        for wish in check_wheels.requirements(*check_wheels.PROJECTS.values())
        if "linux" not in wish
    }
    assert asked <= locked, "python tools/windows/windows_check.py --lock"


def test_extras_are_asked_for_and_the_project_itself_is_not(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\nname = "a-b"\ndependencies = ["x>=1"]\n[project.optional-dependencies]\nt = ["a-b[u]", "y; '
        "sys_platform == 'win32'\"]\n",
        encoding="utf-8",
    )
    assert check_wheels.requirements(file) == ["x>=1", "y; sys_platform == 'win32'"]


def test_two_projects_ask_for_what_either_asks_for_but_not_for_each_other(tmp_path: Path) -> None:
    kernels, whole = tmp_path / "kernels.toml", tmp_path / "whole.toml"
    kernels.write_text('[project]\nname = "a-kernels"\ndependencies = ["x>=1"]\n', encoding="utf-8")
    whole.write_text('[project]\nname = "a"\ndependencies = ["a-kernels==2", "y"]\n', encoding="utf-8")
    assert check_wheels.requirements(kernels, whole) == ["x>=1", "y"]
    assert check_wheels.requirements(whole) == ["a-kernels==2", "y"]


def test_a_package_of_another_system_or_one_too_few_is_a_fault() -> None:
    def misfits(system: str, *names: str, of: str = "medmambase") -> list[str]:
        return list(check_wheels.misfits(of, system, names))

    assert misfits("Windows", "torch", "triton-windows", "scipy") == []
    assert misfits("Windows", "torch") == ["triton-windows is missing"]
    assert misfits("Windows", "torch", "triton-windows", "nvidia-cublas") == ["nvidia-cublas is not for Windows"]
    assert misfits("macOS", "torch", "triton") == ["triton is not for macOS"]
    assert misfits("Linux", "torch", "llvmlite", of="medmambase-kernels") == []
    assert misfits("Linux", "torch", "scipy", of="medmambase-kernels") == ["scipy is not for medmambase-kernels"]


@pytest.mark.parametrize(("refused", "control", "code"), [(None, True, 0), ("3.13", True, 1), (None, False, 1)])
def test_one_case_without_a_wheel_or_a_check_that_cannot_fail_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    refused: str | None,
    control: bool,
    code: int,
) -> None:
    def resolve(uv: object, wishes: Path, system: str, python: str, resolution: str) -> tuple[list[str], str]:
        wished = wishes.read_text(encoding="utf-8")
        if wished == f"{check_wheels.WITHOUT_WHEELS}\n":
            return [], "no wheels" if control else ""
        assert "extra-package" in wished
        return ["torch", "triton-windows"] if system == "Windows" else [
            "torch"
        ], "no solution" if python == refused else ""

    monkeypatch.setattr(check_wheels, "resolve", resolve)
    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "p"\ndependencies = ["torch"]\n', encoding="utf-8")
    assert check_wheels.main(["--project", str(project), "--with", "extra-package"]) == code
    printed = capsys.readouterr().out
    assert f"24 resolutions, {0 if code == 0 else 6 if refused else 1} faults" in printed


def test_both_distributions_are_resolved_and_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wished, built = {}, []

    def resolve(uv: object, wishes: Path, system: str, python: str, resolution: str) -> tuple[list[str], str]:
        wished[wishes.stem] = wishes.read_text(encoding="utf-8")
        return ["torch", "triton-windows"][: 1 + (system == "Windows")], "none" if wishes.stem == "control" else ""

    monkeypatch.setattr(check_wheels, "resolve", resolve)
    monkeypatch.setattr(check_wheels, "built", lambda uv, name, source, folder: built.append(source) or [])
    monkeypatch.setattr("environment.prepare", lambda folder, test: Path("python"))
    assert check_wheels.main([]) == 0
    assert "48 resolutions, 0 faults" in capsys.readouterr().out
    assert built == [check_wheels.ROOT / "kernels", check_wheels.ROOT]
    assert "llvmlite" in wished["medmambase-kernels"]
    assert "pillow" not in wished["medmambase-kernels"]
    assert "llvmlite" in wished["medmambase"], "medmambase needs what its kernels need"
    assert "medmambase-kernels" not in wished["medmambase"], "no index has it"


ABOUT = "a_b-1.dist-info/"
WHEEL = ("a_b/__init__.py", *(ABOUT + name for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")))


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        (WHEEL, WHEEL, None),
        (WHEEL[1:], WHEEL, "a_b/__init__.py is not in a_b-1-py3-none-any.whl"),
        ((*WHEEL, "a_b/x.pyc"), WHEEL, "a_b/x.pyc is in a_b-1-py3-none-any.whl and should not be"),
        (WHEEL, WHEEL[1:], "a_b/__init__.py of a_b-1-py3-none-any.whl differs when it is built from the sdist"),
        (WHEEL[:-1], WHEEL[:-1], "licenses/LICENSE is not in the description in a_b-1-py3-none-any.whl"),
    ],
)
def test_a_wheel_holds_its_package_and_nothing_else(
    tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], fault: str | None
) -> None:
    wheel, again = tmp_path / "a_b-1-py3-none-any.whl", tmp_path / "again.whl"
    for path, names in ((wheel, first), (again, second)):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")
    faults = list(check_wheels.wheel_faults("a-b", wheel, again, {"a_b/__init__.py", "README.md"}))
    assert faults == [] if fault is None else fault in faults


def test_a_wheel_for_one_system_is_a_fault(tmp_path: Path) -> None:
    wheel = tmp_path / "a_b-1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in WHEEL:
            archive.writestr(name, "x")
    assert list(check_wheels.wheel_faults("a-b", wheel, wheel, {"a_b/__init__.py"})) == [
        "a_b-1-cp311-cp311-linux_x86_64.whl is not a pure wheel"
    ]


def test_an_sdist_holds_what_git_has_and_nothing_else(tmp_path: Path) -> None:
    sdist = tmp_path / "a_b-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("PKG-INFO", "README.md", "secret.env"):
            archive.addfile(tarfile.TarInfo(f"a_b-1/{name}"), io.BytesIO())
    assert list(check_wheels.sdist_faults(sdist, {"README.md", "LICENSE", ".github/x.yml", ".gitignore"})) == [
        "LICENSE is not in a_b-1.tar.gz",
        "secret.env is in a_b-1.tar.gz and should not be",
    ]
