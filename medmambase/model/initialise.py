"""Initialise a new network: as published, or with the measured faults of the published start
corrected."""

import torch
from torch import nn

from medmambase.config import Init
from medmambase.model.layers import SS2D
from medmambase_kernels import SqueezeExcite, initial_dt_bias


def initialise(network: nn.Module, init: Init) -> None:
    """Draw every weight of ``network`` from torch's global generator. ``init``: "corrected" or
    "upstream", as published."""
    network.apply(_upstream if init == "upstream" else _corrected)


def _corrected(module: nn.Module) -> None:
    """As published but for two measured faults: the depthwise convolution let under 1 % of the
    image through to the scan, and SE gates started at a constant 0.5."""
    _upstream(module)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, SqueezeExcite):
        nn.init.kaiming_uniform_(module.squeeze, nonlinearity="relu")
        if module.scale == 2.0:
            nn.init.zeros_(module.excite)  # every gate is then exactly 1


def _upstream(module: nn.Module) -> None:
    """As published: truncated normals of 0.02 for linear maps, fan_out for convolutions, Mamba's
    ranges for delta."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, SqueezeExcite):
        nn.init.trunc_normal_(module.squeeze, std=0.02)
        nn.init.trunc_normal_(module.excite, std=0.02)
    elif isinstance(module, SS2D):
        # Upstream draws each direction's projection as a linear layer of its own, outside the reach
        # of its 0.02 rule.
        nn.init.uniform_(module.x_proj, -(module.x_proj.shape[-1] ** -0.5), module.x_proj.shape[-1] ** -0.5)
        nn.init.uniform_(module.dt_weight, -(module.rank**-0.5), module.rank**-0.5)
        with torch.no_grad():
            module.dt_bias.copy_(initial_dt_bias(tuple(module.dt_bias.shape)))
