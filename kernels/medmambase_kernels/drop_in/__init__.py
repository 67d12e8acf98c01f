"""Run other people's Mamba code on our operators, unchanged: it imports ``mamba_ssm``,
``causal_conv1d``, ``selective_scan`` or their compiled extensions, and gets ours.

    python -m medmambase_kernels.drop_in train.py --their flags
    python -m medmambase_kernels.drop_in -m package.module
    from medmambase_kernels import drop_in; drop_in.install()

A package that is installed, or that lies beside the script, comes first unless ``instead`` is
asked for. No distribution of another name is made: what asks pip sees none.
"""

import sys

import torch
from torch import nn

from medmambase_kernels._drop_in.cuda_device import admitted
from medmambase_kernels._drop_in.finder import Finder, elsewhere, ours
from medmambase_kernels._drop_in.fusion import Fused
from medmambase_kernels._drop_in.fusion import fuse as fuse_modules
from medmambase_kernels._drop_in.names import ANSWERS, ROOTS
from medmambase_kernels.arguments import check_flag, check_size
from medmambase_kernels.backend import describe_backend

__all__ = ["Fused", "fuse", "install", "listing", "uninstall"]


def install(instead: bool = False, quiet: bool = False, cpu: bool = False) -> None:
    """Answer imports of the names that ``listing`` shows, from now on and in this process; print
    one line that says which, with which backend and why. ``torch.cuda.device`` then takes CPU
    devices too, and does nothing for them.

    Args:
        instead: answer also for packages that are installed. quiet: print nothing. cpu: until
        ``uninstall``, "cuda" means the CPU in this thread, so that code with ``.cuda()`` in it
        runs without a GPU; ``torch.cuda.is_available()`` says what it said.

    Raises:
        RuntimeError: with ``instead``, one of those packages has been imported already. TypeError:
        a flag that is neither True nor False.
    """
    instead, quiet, cpu = check_flag("instead", instead), check_flag("quiet", quiet), check_flag("cpu", cpu)
    late = [name for name in elsewhere() if name in sys.modules]
    if instead and late:
        raise RuntimeError(f"{', '.join(late)} was imported before; call drop_in.install(instead=True) first of all")
    uninstall()
    sys.meta_path.insert(0 if instead else len(sys.meta_path), Finder(admitted(cpu)))
    if not quiet:
        print(_said(instead, cpu))


def uninstall() -> None:
    """Answer no more imports, and forget the modules that were made; what was imported from them
    goes on working."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, Finder)]:
        sys.meta_path.remove(finder)
        finder.changed.close()
    for name in [name for name in ANSWERS if ours(name)]:
        del sys.modules[name]


def _said(instead: bool, cpu: bool) -> str:
    left = [] if instead else elsewhere()
    names = ", ".join(name for name in ROOTS if name not in left) or "nothing"
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    means = '; "cuda" means the CPU' if cpu else ""
    found = f"; found elsewhere and left as they are: {', '.join(left)} (--instead takes ours)" if left else ""
    return f"medmambase_kernels answers {names} on backend {describe_backend(device)}{means}{found}"


def listing() -> str:
    """Every module that is answered, a line each with its names; a name that is not provided, and
    raises one sentence when it is used, stands in brackets."""
    lines = []
    for name, answer in ANSWERS.items():
        names = [*answer.values, *answer.names, *(f"({theirs})" for theirs in answer.missing)]
        lines.append(f"{name}: {', '.join(names)}" if names else name)
    return "\n".join(lines)


def fuse(model: nn.Module, size: int = 14, quiet: bool = False) -> list[Fused]:
    """Replace the scans of every SS2D module of a model by ``selective_scan_2d``, in place; print a
    line for each with the difference and the times.

    Args:
        model: of VMamba's first kind, as VM-UNet and MedMamba have it: modules with the weights
        x_proj_weight (4, r + 2n, d), dt_projs_weight (4, d, r), dt_projs_bias (4, d), A_logs (4d,
        n) and Ds (4d,), and a ``forward_core`` that returns four results to add.
        size: side of the random image on which both ways are compared and timed. quiet: print
        nothing.

    Returns:
        What was found of each module. One whose difference is above 1e-5 is left as it is.

    Raises:
        TypeError, ValueError: a model that is no module, a size or a flag that is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r}; it must be a torch.nn.Module")
    size, quiet = check_size("size", size), check_flag("quiet", quiet)
    found = []
    for one in fuse_modules(model, size):
        found.append(one)
        if not quiet:
            print(one)
    return found
