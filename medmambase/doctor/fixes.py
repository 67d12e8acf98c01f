"""The commands that fix what the doctor finds, and the versions they are made from."""

import re

from medmambase.doctor import torch_build
from medmambase.doctor.facts import Facts
from medmambase.doctor.torch_build import Machine, SetupError

CAPABILITY_LEAST = (8, 0)  # below, the Triton backend is not used
REDIST = "winget install Microsoft.VCRedist.2015+.x64"
PYTHON = "winget install Python.Python.3.12"
# The Triton that each torch is built and tested with.
PAIRS = {
    "2.7": "3.3",
    "2.8": "3.4",
    "2.9": "3.5",
    "2.10": "3.6",
    "2.11": "3.6",
    "2.12": "3.7",
    "2.13": "3.7",
    "2.14": "3.8",
    "2.15": "3.9",
}


def install_medmambase() -> str:
    """Name the command that installs both distributions, whatever is there of them."""
    return "in the folder that medmambase was cloned to: pip install --force-reinstall --no-deps ./kernels ."


def install_torch(f: Facts) -> str:
    """Name the command that installs the torch for this machine, or say why none fits."""
    try:
        arguments = torch_build.choose_torch(machine_of(f), None).arguments
    except SetupError as error:
        return str(error).splitlines()[0]
    return "pip install --force-reinstall " + " ".join(arguments)


def triton_requirement(f: Facts) -> str:
    """Name the Triton that the installed torch is tested with, as pip takes it."""
    version = PAIRS.get(minor(f.torch), torch_build.TRITON.rpartition(".")[0])
    return f'"triton-windows=={version}.*"' if f.system == "Windows" else f'"triton=={version}.*"'


def report_bug(f: Facts) -> str:
    """Say how to report what no command fixes, and what to use until then."""
    clear = f"delete {f.cache.path} and try again; if that does not help, " if f.trial.backend == "triton" else ""
    return (
        f"{clear}report it with doctor.json (medmambase-doctor --json doctor.json), and set "
        f"MEDMAMBASE_BACKEND=torch meanwhile"
    )


def wants_triton(f: Facts) -> bool:
    """Whether this machine has a card that the Triton backend could use."""
    return (
        f.card is not None
        and (f.card.capability is None or f.card.capability >= CAPABILITY_LEAST)
        and f.system in ("Windows", "Linux")
    )


def machine_of(f: Facts) -> Machine:
    """Return what the choice of torch depends on."""
    return Machine(f.system, f.architecture, f.python[:2], f.card)


def minor(version: str | None) -> str:
    """Shorten a version to its first two numbers; empty where it has none."""
    return ".".join(map(str, numbers(version)))


def numbers(version: str | None) -> tuple[int, ...]:
    """Read the first two numbers of a version; none where it does not begin with two."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else ()


def dotted(version: tuple[int, int] | None) -> str:
    """Write two numbers as a version."""
    return ".".join(map(str, version)) if version else "unknown"
