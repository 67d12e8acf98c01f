"""The selective scan of an image in four directions, the core of SS2D.

Checks, then the custom operator, then the backend that ``backend`` chose; the definition is
``reference.selective_scan_2d``.
"""

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels import reference
from medmambase_kernels.arguments import MAP, check_dtype, check_flag, check_shapes, check_tensors
from medmambase_kernels.custom_op import register


def selective_scan_2d(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    log_A: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Four selective scans over an image, by rows, by columns and both reversed, added in place
    (VMamba's SS2D, Liu et al. 2024).

    The projections commute with the four orders, so they are made once, in row-major order; no
    direction's copy of x exists.

    Args:
        x: (b, h, w, d), channels last, at most 2^31 - 1 positions.
        x_dbl: (b, h, w, k, r + 2n), k = 4 directions; the columns are [rank of delta (r) | B (n) |
        C (n)].
        dt_weight: (k, d, r) and dt_bias: (k, d); delta = softplus(dt_weight . rank + dt_bias).
        A: (k, d, n), real, n at least 1, and at most 64 on backend "triton"; negative, as a rule:
        the state then decays, where A is positive it grows and can overflow. D: (k, d).
        log_A: take A for log(-A), as SS2D learns it: the matrix is -exp(A), and the gradient that
            of the logarithm.
        out_dtype: dtype of the result, one of those below; x's if None.
        backend: "triton", "cpu", "torch" or "reference"; chosen automatically if None.

    Tensors are float32, bfloat16, float16 or float64, each its own: x alone decides the dtype of
    the arithmetic, float64 for a float64 x, else float32. A gradient has the dtype of its argument.

    Returns:
        y (b, h, w, d), accumulated in float32 (float64 for float64) and rounded once.

    Raises:
        TypeError: an argument that is no tensor, or a log_A that is neither True nor False.
        ValueError: a shape, dtype or device that does not fit. BackendError: the backend asked for
        cannot run.
    """
    _check(x, x_dbl, dt_weight, dt_bias, A, D)
    log_A = check_flag("log_A", log_A)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    check_dtype("out_dtype", out_dtype)
    choice = engines.choose("selective_scan_2d", x.device, x.dtype, backend)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    dt_weight, dt_bias, A, D = (t.to(work) for t in (dt_weight, dt_bias, A, D))
    if choice.name == "reference":
        return reference.selective_scan_2d(x, x_dbl, dt_weight, dt_bias, A, D, log_A).to(out_dtype)
    (y,) = _scan(x, x_dbl, dt_weight, dt_bias, A, D, out_dtype, log_A, choice.name)
    return y


def _check(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
    check_tensors({"x": x, "x_dbl": x_dbl, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D})
    sizes = check_shapes(
        ("x", x, MAP),
        ("x_dbl", x_dbl, ("batch", "height", "width", 4, "rank + 2 state")),
        ("A", A, (4, "channels", "state")),
        ("dt_weight", dt_weight, (4, "channels", "rank")),
        ("dt_bias", dt_bias, (4, "channels")),
        ("D", D, (4, "channels")),
    )
    if sizes["state"] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; the state must be at least 1")
    if sizes["rank"] == 0:
        raise ValueError(f"dt_weight has shape {tuple(dt_weight.shape)}; the rank must be at least 1")
    columns = sizes["rank"] + 2 * sizes["state"]
    if x_dbl.shape[4] != columns:
        raise ValueError(
            f"x_dbl has shape {tuple(x_dbl.shape)}; it must have rank + 2 state = {columns} columns, with dt_weight "
            f"{tuple(dt_weight.shape)} and A {tuple(A.shape)}"
        )


def _outputs(x, x_dbl, dt_weight, dt_bias, A, D, out_dtype, log_A):  # type: ignore[no-untyped-def]  # the schema types it
    return ((x.shape, out_dtype),)


_scan = register(
    "selective_scan_2d",
    "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor D",
    "ScalarType out_dtype, bool log_A",
    _outputs,
    kept_like="A",
)
