"""Answer imports of names.py's modules with modules made of our functions."""

import importlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from medmambase_kernels._drop_in.missing import missing
from medmambase_kernels._drop_in.names import ANSWERS, ROOTS

ORIGIN = "medmambase_kernels.drop_in"


class Finder(MetaPathFinder, Loader):
    """Finds the modules of names.py. A part of a package that somebody else answers is left to
    them, also where it is missing there: two halves of different origin do not fit.

    ``changed``: what was changed elsewhere meanwhile, and is put back when this is closed.
    """

    def __init__(self, changed: ExitStack) -> None:
        self.changed = changed

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib asks."""
        parent = fullname.rpartition(".")[0]
        if fullname not in ANSWERS or (parent and not ours(parent)):
            return None
        package = any(name.startswith(f"{fullname}.") for name in ANSWERS)
        return ModuleSpec(fullname, self, origin=ORIGIN, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with its names."""
        name = module.__name__
        answer = ANSWERS[name]
        for theirs, place in answer.names.items():
            file, _, attribute = place.partition(".")
            setattr(module, theirs, getattr(importlib.import_module(f"medmambase_kernels._drop_in.{file}"), attribute))
        for theirs, why in answer.missing.items():
            setattr(module, theirs, missing(name, theirs, why))
        for theirs, value in answer.values.items():
            setattr(module, theirs, value)
        module.__all__ = [theirs for theirs in (*answer.names, *answer.missing) if theirs[0] != "_"]  # type: ignore[attr-defined]  # as modules may have


def ours(name: str) -> bool:
    """Whether a module that was imported comes from a Finder."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and isinstance(spec.loader, Finder)


def elsewhere() -> list[str]:
    """The packages and extensions of names.py that are installed, lie on the path, or were imported
    from there."""
    return [root for root in ROOTS if (PathFinder.find_spec(root) if root not in sys.modules else not ours(root))]
