"""A finished file to its place: written beside it, then moved there, so that a kill at any byte never spoils what is there."""

import os
import time
from pathlib import Path


def move(beside: Path, path: Path) -> None:
    """``os.replace`` with patience: on Windows a virus scanner or an indexer may have the old file open for a moment. Raises OSError."""
    for pause in (0.05, 0.2, 1.0):
        try:
            return os.replace(beside, path)
        except PermissionError:
            time.sleep(pause)
    os.replace(beside, path)
