"""Whether every system has its wheels: python tools/windows/check_wheels.py

For 64-bit Windows, Linux and macOS and each Python, every dependency of the project and of its
extras must resolve to ready wheels, at its newest and at its lowest version: nobody needs a
compiler. That the check can fail is shown by a package that has none. Then the project's own: its
wheel is pure, holds the packages and nothing else, and is the same when it is built from the sdist.
Metadata only; nothing is installed.

Exit code: 0 all is well, 1 something is missing, 2 usage.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools/, where environment.py lies

import environment  # found by the line above
from environment import ROOT, say  # found by the line above
from medmambase.doctor.torch_build import SetupError, output  # found by the line above

SYSTEMS = {"Windows": "x86_64-pc-windows-msvc", "Linux": "x86_64-manylinux_2_28", "macOS": "aarch64-apple-darwin"}
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


def main(arguments: Sequence[str]) -> int:
    """Resolve for every system and Python, build, compare; a line for each. Returns the exit
    code."""
    parser = environment.parser("Check that medmambase and all it needs come as wheels on every system.", "nothing")
    parser.add_argument(
        "--project", type=Path, default=ROOT / "pyproject.toml", help="the pyproject.toml to look at (%(default)s)"
    )
    parser.add_argument(
        "--with", dest="more", action="append", default=[], metavar="PACKAGE", help="as if the project needed this too"
    )
    chosen = parser.parse_args(arguments)
    python = str(environment.prepare(chosen.venv.absolute(), test=True))
    uv = [python, "-m", "uv"]
    faults = []
    cases = list(product(SYSTEMS, PYTHONS, RESOLUTIONS))
    with tempfile.TemporaryDirectory() as folder:
        wishes = Path(folder) / "wishes.txt"
        wishes.write_text(
            "\n".join([*requirements(chosen.project), *chosen.more]) + "\n", encoding="utf-8", newline="\n"
        )
        with ThreadPoolExecutor(4) as pool:
            for case, (names, complaint) in zip(
                cases, pool.map(lambda case: resolve(uv, wishes, *case), cases), strict=True
            ):
                line = f"{case[0]:8} Python {case[1]:5} {case[2]:7}"
                wrong = [complaint] if complaint else list(misfits(case[0], names))
                print(f"{line} {'; '.join(wrong) if wrong else f'{len(names)} packages, all wheels'}", flush=True)
                faults += [f"{line} {sentence}" for sentence in wrong]
        wishes.write_text(f"{WITHOUT_WHEELS}\n", encoding="utf-8", newline="\n")
        if not resolve(uv, wishes, "Windows", PYTHONS[0], "newest")[1]:
            faults.append(f"{WITHOUT_WHEELS} was taken for a wheel: this check cannot fail")
        if chosen.project == ROOT / "pyproject.toml":
            faults += built(uv, Path(folder))
    print()
    for fault in faults:
        say(f"MISSING {fault}")
    say(f"{len(cases)} resolutions, {len(faults)} faults")
    return int(bool(faults))


def requirements(project: Path) -> list[str]:
    """All that the project and its extras ask for, with their markers; not what it asks of
    itself."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = [line for lines in declared.get("optional-dependencies", {}).values() for line in lines]
    return [
        line for line in [*declared["dependencies"], *extras] if not re.match(rf"{re.escape(declared['name'])}\b", line)
    ]


def resolve(uv: Sequence[str], wishes: Path, system: str, python: str, resolution: str) -> tuple[list[str], str]:
    """The names of the packages, and what is wrong, if anything. pip would evaluate markers for the
    system that it runs on, uv does not."""
    done = subprocess.run(
        [*uv, "pip", "compile", str(wishes), "--python-platform", SYSTEMS[system], "--python-version", python,
        "--only-binary", ":all:",
         "--resolution", RESOLUTIONS[resolution], "--no-header", "--no-annotate", "--quiet"], capture_output=True,
         encoding="utf-8", check=False,
    )  # fmt: skip  # a command line
    if done.returncode:
        return [], " ".join((done.stderr or done.stdout).split())[:400]
    return [line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line], ""


def misfits(system: str, names: Sequence[str]) -> Iterator[str]:
    """What a resolution lacks or should not have."""
    yield from (f"{name} is not among them" for name in MUST[system] if name not in names)
    yield from (f"{name} is, and is not for {system}" for name in names if re.fullmatch(NEVER[system], name))


def built(uv: Sequence[str], folder: Path) -> Iterator[str]:
    """Faults of the project's own wheel and sdist."""
    for kind, source in (("--sdist", str(ROOT)), ("--wheel", str(ROOT))):
        subprocess.run([*uv, "build", "--quiet", kind, "--out-dir", str(folder), source], check=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    again = folder / "again"
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", str(again), str(sdist)], check=True)
    (second,) = again.glob("*.whl")
    print(f"{wheel.name}, {wheel.stat().st_size / 1e3:.0f} KB")
    if not wheel.name.endswith("-py3-none-any.whl"):
        yield f"{wheel.name} is no pure wheel"
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(second) as other:
        contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (first, other)]
    differing = sorted(
        name for name in contents[0].keys() | contents[1].keys() if contents[0].get(name) != contents[1].get(name)
    )
    if differing:
        yield f"built from the sdist, these differ: {', '.join(differing)}"
    listed = output(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "medmambase", "kernels"]
    )
    if listed is None:
        raise SetupError("git does not list the project's files; run this in a clone")
    wanted = {name.removeprefix("kernels/") for name in listed.splitlines()}
    inside = {name for name in contents[0] if ".dist-info/" not in name}
    yield from (f"{name} is not in the wheel" for name in sorted(wanted - inside))
    yield from (f"{name} is in the wheel, and should not be" for name in sorted(inside - wanted))
    wanted_about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    about = {name.partition(".dist-info/")[2] for name in contents[0] if ".dist-info/" in name}
    yield from (f"{name} in the wheel's description is missing or too much" for name in sorted(about ^ wanted_about))


if __name__ == "__main__":
    sys.exit(environment.run(main))
