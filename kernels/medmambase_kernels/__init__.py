"""Selective scans, the operators around them, and squeeze-and-excitation: for any PyTorch model.

They run on an NVIDIA GPU and on any CPU, and need no compiler.

Axis legend, used everywhere: ``b`` batch, ``k`` scan direction, ``d`` channels, ``l`` length, ``n``
state, ``r`` rank of delta, ``g`` groups of channels that share B and C, ``h w`` rows and columns,
``c`` image channels. A, B, C and D are the state-space matrices, hence the lower-case axes.
"""

import medmambase_kernels.process  # noqa: F401  # before any thread starts: it notes the process
from medmambase_kernels._cpu.capture import Capture
from medmambase_kernels._mamba.block import Mamba
from medmambase_kernels._mamba.causal_conv1d import causal_conv1d
from medmambase_kernels._mamba.selective_state_update import selective_state_update
from medmambase_kernels.backend import BACKENDS, BackendError, describe_backend, triton_kernels, use_backend
from medmambase_kernels.depthwise_silu import depthwise_silu
from medmambase_kernels.export import ExportError, check_onnx, export_onnx, onnx_model, onnx_session, plain_program
from medmambase_kernels.gated_norm import gated_norm
from medmambase_kernels.inference import FrozenConv2d, FrozenLayerNorm, space_to_depth
from medmambase_kernels.selective_scan import SelectiveScan, initial_dt_bias, selective_scan
from medmambase_kernels.selective_scan_2d import selective_scan_2d
from medmambase_kernels.squeeze_excite import SqueezeExcite, squeeze_excite

__version__ = "0.2.0"  # of both distributions: the two pyproject.toml read it here

__all__ = [
    "BACKENDS",
    "BackendError",
    "Capture",
    "ExportError",
    "FrozenConv2d",
    "FrozenLayerNorm",
    "Mamba",
    "SelectiveScan",
    "SqueezeExcite",
    "causal_conv1d",
    "check_onnx",
    "depthwise_silu",
    "describe_backend",
    "export_onnx",
    "gated_norm",
    "initial_dt_bias",
    "onnx_model",
    "onnx_session",
    "plain_program",
    "selective_scan",
    "selective_scan_2d",
    "selective_state_update",
    "space_to_depth",
    "squeeze_excite",
    "triton_kernels",
    "use_backend",
]

# Former names.
Recording, FrozenConvolution, FrozenNorm, corners = Capture, FrozenConv2d, FrozenLayerNorm, space_to_depth
