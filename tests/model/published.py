"""Checkpoints as the published code writes them, and their networks in plain PyTorch and float64.

Both are written from the description of the networks, not from ours: names, shapes, and the hidden
width of a gate, channels // 16.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

STATE, CLASSES = 4, 5


def checkpoint(
    block: str, dims: Sequence[int], depths: Sequence[int], widths: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Random tensors; ``widths``: of each block's gate, where it is not channels // 16."""
    tensors = {
        "patch_embed.proj.weight": torch.randn(dims[0], 3, 4, 4) / 7,
        "head.weight": torch.randn(CLASSES, dims[-1]) * dims[-1] ** -0.5,
        "head.bias": torch.randn(CLASSES),
    } | _vectors("patch_embed.", {"proj.bias": dims[0], "norm.weight": dims[0], "norm.bias": dims[0]})
    of_block = iter(widths) if widths is not None else None
    for i, (c, depth) in enumerate(zip(dims, depths, strict=True)):
        if i:
            name = f"layers.{i - 1}.downsample."
            tensors |= _matrices(name, {"reduction.weight": (c, 2 * c)})
            tensors |= _vectors(name, {"norm.weight": 2 * c, "norm.bias": 2 * c})
        for j in range(depth):
            width = c // 16 if of_block is None else next(of_block)
            tensors |= _block(f"layers.{i}.blocks.{j}.", block, c, width)
    return tensors


def _vectors(name: str, lengths: dict[str, int]) -> dict[str, Tensor]:
    start = {"weight": 1.0, "running_var": 1.0}
    return {
        name + key: start.get(key.rsplit(".", 1)[-1], 0.0) + 0.3 * torch.rand(length) for key, length in lengths.items()
    }


def _matrices(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    fans = {key: prod(shape[1:] if len(shape) == 4 else shape[-1:]) for key, shape in shapes.items()}
    return {name + key: torch.randn(shape) * max(1, fans[key]) ** -0.5 for key, shape in shapes.items()}


def _block(name: str, block: str, c: int, width: int) -> dict[str, Tensor]:
    coded, half, rank = block in ("notebook", "medmamba_v0"), c // 2, -(-c // 32)
    norms, convolutions = ((1, 4), (0, 3, 6)) if coded else ((0, 2, 5), (1, 4, 7))
    vectors = {"ln_1.weight": half, "ln_1.bias": half}
    vectors |= {f"self_attention.{key}": c for key in ("conv2d.bias", "out_norm.weight", "out_norm.bias")}
    vectors["self_attention.Ds"] = 4 * c
    matrices: dict[str, tuple[int, ...]] = {
        "self_attention.in_proj.weight": (2 * c, half),
        "self_attention.out_proj.weight": (half, c),
        "self_attention.conv2d.weight": (c, 1, 3, 3),
        "self_attention.x_proj_weight": (4, rank + 2 * STATE, c),
        "self_attention.dt_projs_weight": (4, c, rank),
        "self_attention.dt_projs_bias": (4, c),
        "self_attention.A_logs": (4 * c, STATE),
    }
    for i in norms:
        vectors |= {f"conv33conv33conv11.{i}.{key}": half for key in ("weight", "bias", "running_mean", "running_var")}
    for i, side in zip(convolutions, (3, 3, 1), strict=True):
        matrices[f"conv33conv33conv11.{i}.weight"] = (half, half, side, side)
        vectors[f"conv33conv33conv11.{i}.bias"] = half
    if block in ("medmambase", "notebook"):
        matrices |= {"se.fc.0.weight": (width, c), "se.fc.2.weight": (c, width)}
    if coded:
        matrices["finalconv11.weight"], vectors["finalconv11.bias"] = (c, c, 1, 1), c
    counts = {f"{name}conv33conv33conv11.{i}.num_batches_tracked": torch.tensor(7) for i in norms}
    return _vectors(name, vectors) | _matrices(name, matrices) | counts


def logits(tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """What the network of a checkpoint answers to an image (b, 3, h, w): (b, CLASSES), in float64,
    gates without the factor of ours."""
    w = {key: t.double() for key, t in tensors.items()}
    x = F.conv2d(image.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4)
    x = _layer_norm(w, "patch_embed.norm", x.permute(0, 2, 3, 1))
    stage = 0
    while f"layers.{stage}.blocks.0.ln_1.weight" in w:
        if stage:
            name, h, width = f"layers.{stage - 1}.downsample.", x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * h, : 2 * width]
            corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = _layer_norm(w, f"{name}norm", torch.cat(corners, -1)) @ w[f"{name}reduction.weight"].T
        block = 0
        while f"layers.{stage}.blocks.{block}.ln_1.weight" in w:
            x = _answer(w, f"layers.{stage}.blocks.{block}.", x)
            block += 1
        stage += 1
    return x.mean((1, 2)) @ w["head.weight"].T + w["head.bias"]


def _layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def _answer(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    coded, branch = f"{name}finalconv11.weight" in w, f"{name}conv33conv33conv11."
    conv = left.permute(0, 3, 1, 2)
    for i in range(7 if coded else 9):  # the layers of the branch, by the shapes of their weights
        weight = w.get(f"{branch}{i}.weight")
        if weight is None:
            conv = conv.relu()
        elif weight.dim() == 4:
            conv = F.conv2d(conv, weight, w[f"{branch}{i}.bias"], padding=weight.shape[-1] // 2)
        else:
            mean, variance = w[f"{branch}{i}.running_mean"], w[f"{branch}{i}.running_var"]
            conv = F.batch_norm(conv, mean, variance, weight, w[f"{branch}{i}.bias"], eps=1e-5)
    ssm = _ss2d(w, f"{name}self_attention.", _layer_norm(w, f"{name}ln_1", right))
    y = torch.cat([conv.permute(0, 2, 3, 1), ssm + right if coded else ssm], -1)
    if f"{name}se.fc.0.weight" in w:
        hidden = (y.mean((1, 2)) @ w[f"{name}se.fc.0.weight"].T).relu()
        y = y * torch.sigmoid(hidden @ w[f"{name}se.fc.2.weight"].T)[:, None, None]
    if coded:
        return x + y @ w[f"{name}finalconv11.weight"][:, :, 0, 0].T + w[f"{name}finalconv11.bias"]
    half = y.shape[-1] // 2
    return x + y[..., [half * (i % 2) + i // 2 for i in range(2 * half)]]


def _ss2d(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    b, h, width = x.shape[:3]
    x, z = (x @ w[f"{name}in_proj.weight"].T).chunk(2, -1)
    d = x.shape[-1]
    x = F.conv2d(x.permute(0, 3, 1, 2), w[f"{name}conv2d.weight"], w[f"{name}conv2d.bias"], padding=1, groups=d)
    x = F.silu(x).permute(0, 2, 3, 1)
    rows = torch.arange(h * width)
    columns = rows.view(h, width).T.flatten()
    total = torch.zeros(b, h * width, d, dtype=torch.float64)
    for k, order in enumerate((rows, columns, rows.flip(0), columns.flip(0))):
        u = x.flatten(1, 2)[:, order]
        rank = w[f"{name}dt_projs_weight"].shape[2]
        dt, B, C = (u @ w[f"{name}x_proj_weight"][k].T).split([rank, STATE, STATE], -1)
        delta = F.softplus(dt @ w[f"{name}dt_projs_weight"][k].T + w[f"{name}dt_projs_bias"][k])
        A, D = -w[f"{name}A_logs"][k * d : (k + 1) * d].exp(), w[f"{name}Ds"][k * d : (k + 1) * d]
        state = torch.zeros(b, d, STATE, dtype=torch.float64)
        for step, place in enumerate(order.tolist()):
            state = (delta[:, step, :, None] * A).exp() * state
            state = state + (delta[:, step] * u[:, step])[..., None] * B[:, step, None]
            total[:, place] += (state * C[:, step, None]).sum(-1) + D * u[:, step]
    y = _layer_norm(w, f"{name}out_norm", total.view(b, h, width, d))
    return (y * F.silu(z)) @ w[f"{name}out_proj.weight"].T
