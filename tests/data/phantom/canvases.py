"""An empty canvas of each kind of probe, to paint on in tests."""

import numpy as np

from medmambase.data.phantom.canvas import Canvas, Grid
from medmambase.data.phantom.chances import Chances
from medmambase.data.phantom.probes import choose


def chances(seed: int = 0) -> Chances:
    return Chances(np.random.default_rng(seed))


def canvas(kind: str = "linear", size: int = 64, seed: int = 0) -> Canvas:
    return Canvas(Grid(size), choose(kind, chances(seed)), np.random.default_rng(seed))
