"""Start the console commands: read the flags first, which is quick, then import the rest.

Where something that they need does not load, one line says so instead of a traceback.
"""

import sys
from importlib import import_module

from medmambase.commands import guard


def train() -> int:
    """``medmambase-train``."""
    return _start("train")


def crossval() -> int:
    """``medmambase-crossval``."""
    return _start("crossval")


def pretrain() -> int:
    """``medmambase-pretrain``."""
    return _start("pretrain")


def table() -> int:
    """``medmambase-table``."""
    return _start("table")


def check() -> int:
    """``medmambase-check``."""
    return _start("check")


def bench() -> int:
    """``medmambase-bench``."""
    return _start("bench")


def evaluate() -> int:
    """``medmambase-evaluate``."""
    return _start("evaluate")


def predict() -> int:
    """``medmambase-predict``."""
    return _start("predict")


def compare() -> int:
    """``medmambase-compare``."""
    return _start("compare")


def explain() -> int:
    """``medmambase-explain``."""
    return _start("explain")


def serve() -> int:
    """``medmambase-serve``."""
    return _start("serve")


def export() -> int:
    """``medmambase-export``."""
    return _start("export")


def doctor() -> int:
    """``medmambase-doctor``, which needs nothing but Python."""
    return _start("doctor")


def _start(command: str) -> int:
    def read_flags() -> int:
        import_module(f"medmambase.commands.{command}_flags").parse(sys.argv[1:])
        return 0

    try:
        # A command reads its flags again; here --help and what is wrong end it before PyTorch is
        # imported, which takes seconds. A ValueError is a wrong value.
        code = guard.guarded(f"medmambase-{command}", read_flags, codes={ValueError: guard.USAGE})
        if code:
            return code
        main = import_module(f"medmambase.commands.{command}").main
    except (ImportError, OSError) as error:  # OSError: Windows does not find a DLL that PyTorch needs
        print(
            f"medmambase-{command}: an import failed ({' '.join(str(error).split())}); medmambase-doctor "
            f"says how to fix this",
            file=sys.stderr,
        )
        return guard.ENVIRONMENT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return guard.INTERRUPTED
    return int(main())
