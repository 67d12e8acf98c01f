"""Write the weights of a network under the names of the original's code."""

import re

from torch import Tensor

from medmambase import MedMambaSE

TO_UPSTREAM = [  # written out a second time, from the published key lists, so that a slip in the table is seen
    (r"^embedding\.", "patch_embed."),
    (r"^stages\.(\d+)\.merging\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (r"^stages\.", "layers."),
    (r"\.ssm_norm\.", ".ln_1."),
    (r"\.ssm_branch\.x_proj$", ".self_attention.x_proj_weight"),
    (r"\.ssm_branch\.dt_weight$", ".self_attention.dt_projs_weight"),
    (r"\.ssm_branch\.dt_bias$", ".self_attention.dt_projs_bias"),
    (r"\.ssm_branch\.A_log$", ".self_attention.A_logs"),
    (r"\.ssm_branch\.D$", ".self_attention.Ds"),
    (r"\.ssm_branch\.conv\.", ".self_attention.conv2d."),
    (r"\.ssm_branch\.norm\.", ".self_attention.out_norm."),
    (r"\.ssm_branch\.", ".self_attention."),
    (r"\.conv_branch\.", ".conv33conv33conv11."),
    (r"\.mix\.", ".finalconv11."),
    (r"\.se\.squeeze$", ".se.fc.0.weight"),
    (r"\.se\.excite$", ".se.fc.2.weight"),
]


def as_upstream(network: MedMambaSE) -> dict[str, Tensor]:
    """The checkpoint that the original's code would have written for these weights."""
    tensors = {}
    for key, t in network.state_dict().items():
        for pattern, replacement in TO_UPSTREAM:
            key = re.sub(pattern, replacement, key)
        if key.endswith(("A_logs", "Ds")):
            t = t.flatten(0, 1)
        if key.endswith("finalconv11.weight"):
            t = t[:, :, None, None]
        tensors[key] = t
    return tensors
