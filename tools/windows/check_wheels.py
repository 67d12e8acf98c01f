"""Check that every system has its wheels: python tools/windows/check_wheels.py

For each of the two distributions, on 64-bit Windows, Linux and macOS and for each Python, every
dependency and every extra must resolve to ready wheels, at its newest and at its lowest version:
nobody needs a compiler. A package that has no wheel shows that the check can fail. Then the
project's own: each wheel is pure, holds its package and nothing else, and is the same when it is
built from its sdist, which holds what git has and nothing else. Nothing is installed.

Exit code: 0 nothing is missing, 1 something is, 2 usage.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, where environment.py lies

import environment  # found by the line above
from environment import DISTRIBUTIONS, ROOT, say  # found by the line above
from medmambase.doctor.torch_build import SetupError, output  # found by the line above

PROJECTS = {name: ROOT / place / "pyproject.toml" for name, place in DISTRIBUTIONS.items()}
SYSTEMS = {"Windows": "x86_64-pc-windows-msvc", "Linux": "x86_64-manylinux_2_28", "macOS": "aarch64-apple-darwin"}
MACOS = "14.0"  # from which on onnxruntime has wheels
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = {"newest": "highest", "lowest": "lowest-direct"}
WITHOUT_WHEELS = "mamba-ssm"  # the package that this project spares Windows: an sdist of CUDA C++
# What the resolution for a system must bring, and what it must not.
MUST = {"Windows": ("torch", "triton-windows"), "Linux": ("torch",), "macOS": ("torch",)}
NEVER = {
    "Windows": r"triton|nvidia-.*|triton-rocm",
    "Linux": "triton-windows",
    "macOS": r"triton|triton-windows|nvidia-.*",
}
# Who builds models with the kernels gets none of what medmambase reads, judges and draws with.
TOO_MUCH = {"medmambase-kernels": r"numpy|pillow|scikit-learn|scipy|matplotlib|medmambase"}
# What is not part of an sdist, of all that git has.
NOT_IN_SDIST = r"\.ci/.*|\.github/.*|\.git-blame-ignore-revs|\.gitattributes"


def main(arguments: Sequence[str]) -> int:
    """Resolve for every distribution, system and Python, build, compare, and print a line for each.
    Returns the exit code."""
    parser = environment.parser("Check that medmambase and all it needs come as wheels on every system.", "nothing")
    parser.add_argument(
        "--project", type=Path, help="look at this pyproject.toml only (default: both of this repository)"
    )
    parser.add_argument(
        "--with", dest="more", action="append", default=[], metavar="PACKAGE", help="as if PACKAGE were needed too"
    )
    chosen = parser.parse_args(arguments)
    python = str(environment.prepare(chosen.venv.absolute(), test=True))
    uv = [python, "-m", "uv"]
    faults = []
    projects = PROJECTS if chosen.project is None else {"": chosen.project}
    cases = list(product(projects, SYSTEMS, PYTHONS, RESOLUTIONS))
    with tempfile.TemporaryDirectory() as folder:
        wishes = {name: Path(folder) / f"{name}.txt" for name in projects}
        for name, path in wishes.items():
            # medmambase needs what its kernels need.
            projects_of = PROJECTS.values() if name == "medmambase" else [projects[name]]
            lines = [*requirements(*projects_of), *chosen.more, ""]
            path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda case: resolve(uv, wishes[case[0]], *case[1:]), cases)
            for (name, system, version, resolution), (names, complaint) in zip(cases, answers, strict=True):
                line = f"{name:18} {system:8} Python {version:5} {resolution:7}".lstrip()
                wrong = [complaint] if complaint else list(misfits(name, system, names))
                print(f"{line} {'; '.join(wrong) if wrong else f'{len(names)} packages, all wheels'}", flush=True)
                faults += [f"{line} {sentence}" for sentence in wrong]
        control = Path(folder) / "control.txt"
        control.write_text(f"{WITHOUT_WHEELS}\n", encoding="utf-8", newline="\n")
        if not resolve(uv, control, "Windows", PYTHONS[0], "newest")[1]:
            faults.append(f"{WITHOUT_WHEELS} passed for a wheel: this check cannot fail")
        if chosen.project is None:
            for name, place in DISTRIBUTIONS.items():
                faults += built(uv, name, ROOT / place, Path(folder) / f"built-{name}")
    print()
    for fault in faults:
        say(f"MISSING {fault}")
    say(f"{len(cases)} resolutions, {len(faults)} faults")
    return int(bool(faults))


def requirements(*projects: Path) -> list[str]:
    """List what these projects and their extras need, with markers; not each other."""
    declared = [tomllib.loads(project.read_text(encoding="utf-8"))["project"] for project in projects]
    lines = [
        line
        for one in declared
        for group in (one.get("dependencies", []), *one.get("optional-dependencies", {}).values())
        for line in group
    ]
    ours = {one["name"] for one in declared}
    return [line for line in lines if re.split(r"[^\w.-]", line)[0] not in ours]


def resolve(uv: Sequence[str], wishes: Path, system: str, python: str, resolution: str) -> tuple[list[str], str]:
    """Resolve the requirements in a file; return the names of the packages, and what is wrong, if
    anything. pip would evaluate markers for the system that it runs on; uv does not."""
    command = [
        *(*uv, "pip", "compile", str(wishes), "--python-platform", SYSTEMS[system], "--python-version", python),
        *("--python", uv[0]),  # else uv looks for a Python of that version, which takes longer than to resolve
        *("--only-binary", ":all:", "--resolution", RESOLUTIONS[resolution]),
        *("--no-header", "--no-annotate", "--quiet"),
    ]
    environ = os.environ | {"MACOSX_DEPLOYMENT_TARGET": MACOS}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environ)
    if done.returncode:
        return [], " ".join((done.stderr or done.stdout).split())[:400]
    return [line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line], ""


def misfits(distribution: str, system: str, names: Sequence[str]) -> Iterator[str]:
    """Say what a resolution lacks, and what it should not have."""
    yield from (f"{name} is missing" for name in MUST[system] if name not in names)
    yield from (f"{name} is not for {system}" for name in names if re.fullmatch(NEVER[system], name))
    too_much = TOO_MUCH.get(distribution, "")
    yield from (f"{name} is not for {distribution}" for name in names if re.fullmatch(too_much, name))


def built(uv: Sequence[str], name: str, source: Path, folder: Path) -> Iterator[str]:
    """Build a distribution's sdist, its wheel, and the wheel from the sdist; yield their faults."""
    again = folder / "again"
    for kind in ("--sdist", "--wheel"):
        subprocess.run([*uv, "build", "--quiet", kind, "--out-dir", str(folder), str(source)], check=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", str(again), str(sdist)], check=True)
    (second,) = again.glob("*.whl")
    print(f"{wheel.name}, {wheel.stat().st_size / 1e3:.0f} KB")
    listed = output(["git", "-C", str(source), "ls-files", "--cached", "--others", "--exclude-standard", "."])
    if listed is None:
        raise SetupError("git does not list the project's files; run this in a clone")
    wanted = set(listed.splitlines())
    yield from wheel_faults(name, wheel, second, wanted)
    yield from sdist_faults(sdist, wanted)


def wheel_faults(name: str, wheel: Path, second: Path, wanted: set[str]) -> Iterator[str]:
    """Compare a wheel with the one built from the sdist, and with the package's files in git."""
    if not wheel.name.endswith("-py3-none-any.whl"):
        yield f"{wheel.name} is not a pure wheel"
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(second) as other:
        contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (first, other)]
    yield from (
        f"{file} of {wheel.name} differs when it is built from the sdist"
        for file in sorted(contents[0].keys() | contents[1].keys())
        if contents[0].get(file) != contents[1].get(file)
    )
    package = name.replace("-", "_")
    about = {file.partition(".dist-info/")[2] for file in contents[0] if ".dist-info/" in file}
    wanted_about = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    yield from _differences(
        wheel.name,
        {file for file in contents[0] if ".dist-info/" not in file},
        {file for file in wanted if file.startswith(f"{package}/")},
    )
    programs = {"entry_points.txt"} if name == "medmambase" else set()
    yield from _differences(f"the description in {wheel.name}", about, wanted_about | programs)


def sdist_faults(sdist: Path, wanted: set[str]) -> Iterator[str]:
    """Compare an sdist with the files in git."""
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    yield from _differences(
        sdist.name,
        inside - {"PKG-INFO", ".gitignore"},
        {name for name in wanted if not re.fullmatch(NOT_IN_SDIST, name)} - {".gitignore"},
    )


def _differences(place: str, inside: set[str], wanted: set[str]) -> Iterator[str]:
    yield from (f"{name} is not in {place}" for name in sorted(wanted - inside))
    yield from (f"{name} is in {place} and should not be" for name in sorted(inside - wanted))


if __name__ == "__main__":
    sys.exit(environment.run(main))
