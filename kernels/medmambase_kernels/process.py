"""Know whether this process was forked: OpenMP's threads do not survive a fork.

The package imports this first, so that the process is noted before any thread is started.
"""

import os

_PROCESS = os.getpid()  # that imported the package


def forked() -> bool:
    """Whether this process was forked from the one that imported the package."""
    return os.getpid() != _PROCESS
