"""What other people's code may import and we do not have: it can be imported, and says so where it
is used."""

from typing import Any, NoReturn

MAMBA_2 = "Mamba-2 and Mamba-3 have another scan; install mamba-ssm itself, on Linux with an NVIDIA GPU"
MHA = "layers of attention are not Mamba's; leave attn_layer_idx empty, or install mamba-ssm itself"
GRAPHS = "CUDA graphs of decoding are not made here; generate without, the tokens are the same"
PASSES = "the passes of a norm are not apart here; layer_norm_fn and rms_norm_fn carry gradients"


class _Missing:
    """Stands for something that is not provided."""

    _says = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise NotImplementedError(cls._says)


def missing(module: str, name: str, why: str) -> type:
    """A class by that name, which raises NotImplementedError with one sentence when called."""
    return type(name, (_Missing,), {"_says": f"{module}.{name} is not provided: {why}", "__module__": module})
