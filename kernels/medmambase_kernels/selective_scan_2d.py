"""The four-direction scan of an image (SS2D's core): checks, then the custom operator, then the
engine that ``backend`` chose.

Next stop: ``selective_scan_2d_triton`` or ``selective_scan_2d_cpu``; the definition is
``reference.selective_scan_2d``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.custom_op import check_tensors, register


def selective_scan_2d(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Four selective scans over an image, by rows, by columns and both reversed, added in place
    (VMamba's SS2D, Liu et al. 2024).

    The projections commute with the four orders, so they are made once, in row-major order; no
    direction's copy of x exists.

    Args:
        x: (b, h, w, d), channels last; float32, bfloat16, float16 or float64.
        x_dbl: (b, h, w, k, r + 2n), k = 4 directions; the columns are [rank of delta (r) | B (n) |
        C (n)].
        dt_weight: (k, d, r) and dt_bias: (k, d); delta = softplus(dt_weight . rank + dt_bias).
        A: (k, d, n), real. D: (k, d).
        out_dtype: dtype of the result; x's if None.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Returns:
        y (b, h, w, d), accumulated in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: a shape, dtype or device that does not fit. BackendError: the engine asked for
        cannot run.
    """
    _check(x, x_dbl, dt_weight, dt_bias, A, D)
    choice = engines.choose("selective_scan_2d", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    out_dtype = x.dtype if out_dtype is None else out_dtype
    dt_weight, dt_bias, A, D = (t.to(work) for t in (dt_weight, dt_bias, A, D))
    if choice.name == "reference":
        return reference.selective_scan_2d(x, x_dbl, dt_weight, dt_bias, A, D).to(out_dtype)
    (y,) = _scan(x, x_dbl, dt_weight, dt_bias, A, D, out_dtype, choice.name)
    return y


def _check(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, height, width, channels)")
    if A.dim() != 3 or A.shape[:2] != (4, x.shape[3]):
        raise ValueError(
            f"A has shape {tuple(A.shape)}; it must be (4, channels, state) with the {x.shape[3]} channels of x"
        )
    if A.shape[2] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; the state must be at least 1")
    if dt_weight.dim() != 3 or dt_weight.shape[:2] != A.shape[:2]:
        raise ValueError(f"dt_weight has shape {tuple(dt_weight.shape)}; it must be (4, {x.shape[3]}, rank)")
    if dt_weight.shape[2] == 0:
        raise ValueError(f"dt_weight has shape {tuple(dt_weight.shape)}; the rank must be at least 1")
    columns = dt_weight.shape[2] + 2 * A.shape[2]
    for name, t, shape in (
        ("x_dbl", x_dbl, (*x.shape[:3], 4, columns)),
        ("dt_bias", dt_bias, A.shape[:2]),
        ("D", D, A.shape[:2]),
    ):
        if t.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; with x {tuple(x.shape)} and A {tuple(A.shape)} it must be "
                f"{tuple(shape)}"
            )
    check_tensors(x, {"x_dbl": x_dbl, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D})


def _outputs(x, x_dbl, dt_weight, dt_bias, A, D, out_dtype):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, out_dtype),)


_scan = register(
    "selective_scan_2d",
    "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D",
    "ScalarType out_dtype",
    _outputs,
    kept_like="A",
)
