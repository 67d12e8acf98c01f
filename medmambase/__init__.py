"""MedMambaSE for medical ultrasound images, on kernels that need no compiler.

``train`` trains a run, ``crossval`` one for each fold of the images, ``Predictor`` predicts with
them, and ``export_run`` writes them as files for other programs; ``pretrain`` learns weights to
start from; the network and its presets are here, too. The kernels are also importable alone, from
``medmambase_kernels``. A name is brought from its module when it is first asked for: what says why
PyTorch does not load must not load it.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmambase.config import PRESETS, RECIPES, ModelConfig, Preprocessing, TrainConfig
    from medmambase.inference.predictor import Prediction, Predictor
    from medmambase.model.network import MedMambaSE
    from medmambase.portable.python_api import Exported, export_run
    from medmambase.pretraining.python_api import PretrainRun, pretrain
    from medmambase.training.python_api import CrossvalRun, Run, crossval, train
    from medmambase_kernels import (
        SelectiveScan,
        SqueezeExcite,
        describe_backend,
        export_onnx,
        selective_scan,
        selective_scan_2d,
        squeeze_excite,
        use_backend,
    )

    __version__: str  # as it was installed; "0+unknown" in a clone that was not

__all__ = [
    "PRESETS",
    "RECIPES",
    "CrossvalRun",
    "Exported",
    "MedMambaSE",
    "ModelConfig",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "PretrainRun",
    "Run",
    "SelectiveScan",
    "SqueezeExcite",
    "TrainConfig",
    "crossval",
    "describe_backend",
    "export_onnx",
    "export_run",
    "pretrain",
    "selective_scan",
    "selective_scan_2d",
    "squeeze_excite",
    "train",
    "use_backend",
]
_HOMES = {
    name: module
    for module, names in {
        "medmambase.config": ("PRESETS", "RECIPES", "ModelConfig", "Preprocessing", "TrainConfig"),
        "medmambase.inference.predictor": ("Prediction", "Predictor"),
        "medmambase.model.network": ("MedMambaSE",),
        "medmambase.portable.python_api": ("Exported", "export_run"),
        "medmambase.pretraining.python_api": ("PretrainRun", "pretrain"),
        "medmambase.training.python_api": ("CrossvalRun", "Run", "crossval", "train"),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("medmambase")
        except metadata.PackageNotFoundError:
            return "0+unknown"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "medmambase_kernels")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
