"""MedMambaSE for medical ultrasound images, on kernels that need no compiler.

The network and its presets are here; the kernels are also importable alone, from ``medmambase_kernels``.
"""

from medmambase.config import PRESETS, RECIPES, ModelConfig, Preprocessing, TrainConfig
from medmambase.model.network import MedMambaSE
from medmambase_kernels import SelectiveScan, SqueezeExcite, describe_backend, selective_scan, selective_scan_2d, squeeze_excite, use_backend

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "RECIPES",
    "MedMambaSE",
    "ModelConfig",
    "Preprocessing",
    "SelectiveScan",
    "SqueezeExcite",
    "TrainConfig",
    "describe_backend",
    "selective_scan",
    "selective_scan_2d",
    "squeeze_excite",
    "use_backend",
]
