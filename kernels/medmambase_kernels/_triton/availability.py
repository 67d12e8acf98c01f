"""Say whether the Triton kernels can run: on an NVIDIA GPU of compute capability 8.0 or more, or in
Triton's interpreter."""

import importlib.util
import os

import torch

from medmambase_kernels._triton.ascii_folders import use_ascii_folders

DEVICES = ("cuda",)
OPERATORS = ("selective_scan", "selective_scan_2d", "squeeze_excite", "gated_norm", "depthwise_silu", "causal_conv1d")


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps Triton from running, as one clause; None: nothing."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels on any device
    # First, since no package helps where there is no GPU.
    if not interpreted and device.type != "cuda":
        return f"the tensors are on {device}, and Triton needs an NVIDIA GPU"
    if not interpreted and not torch.cuda.is_available():
        return f"this torch ({torch.__version__}) sees no NVIDIA GPU for {device}, and Triton needs one"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton, on Windows triton-windows)"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the Triton kernels take float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if interpreted:
        return None
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def prepare() -> None:
    """On Windows, give Triton's compilers folders with names in ASCII."""
    use_ascii_folders()
