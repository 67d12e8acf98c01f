"""Arguments for the 1-D scan, and the comparison of an engine with the definition."""

import torch
from conftest import TOLERANCE, engine_device, relative_error
from hypothesis import strategies as st
from torch import Tensor

from medmambase_kernels import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
LAYOUTS = ("contiguous", "last_axis_first", "every_other")


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "last_axis_first":
        return t.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "every_other":
        return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]
    return t


@st.composite
def cases(draw, largest_length: int = 70, largest_state: int = 17):
    """Arguments of selective_scan, by name, and its delta_softplus."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    b, d, l, n = (
        draw(st.integers(0, 2)),
        groups * per_group,
        draw(st.integers(0, largest_length)),
        draw(st.integers(1, largest_state)),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(LAYOUTS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def weights(kind: str) -> Tensor:
        shape = {"constant": (d, n), "one group": (b, n, l), "groups": (b, groups, n, l)}[kind]
        return laid_out(normal(*shape).to(dtype), layout)

    kinds = draw(
        st.sampled_from(
            [
                ("groups", "groups"),
                ("one group", "one group"),
                ("constant", "groups"),
                ("one group", "constant"),
                ("constant", "constant"),
            ]
        )
    )
    softplus = draw(st.booleans())
    delta = normal(b, d, l) * 2 if softplus else torch.rand(b, d, l, generator=g)
    args = {
        "u": laid_out(normal(b, d, l).to(dtype), layout),
        "delta": laid_out(delta.to(dtype), layout),
        "A": -torch.rand(d, n, generator=g) * draw(st.sampled_from([1e-3, 1.0, 20.0])),
        "B": weights(kinds[0]),
        "C": weights(kinds[1]),
        "D": normal(d) if draw(st.booleans()) else None,
        "z": laid_out(normal(b, d, l).to(dtype), layout) if draw(st.booleans()) else None,
        "delta_bias": torch.rand(d, generator=g) if draw(st.booleans()) else None,
        "initial_state": normal(b, d, n) if draw(st.booleans()) else None,
    }
    return args, softplus


def outputs_and_gradients(args: dict[str, Tensor | None], softplus: bool, engine: str) -> dict[str, Tensor]:
    """y, the last state, and the gradient of every argument for fixed random weights on both
    outputs."""
    device = engine_device(engine)
    leaves = {name: None if t is None else t.detach().to(device).requires_grad_() for name, t in args.items()}
    y, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=engine)
    g = torch.Generator().manual_seed(7)
    weight, weight_last = (torch.randn(t.shape, generator=g).to(t) for t in (y, last))
    ((y * weight).float().sum() + (last * weight_last).sum()).backward()
    gradients = {
        name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items() if t is not None
    }  # none: an empty sequence
    return {"y": y, "last state": last} | {f"gradient of {name}": t for name, t in gradients.items()}


def assert_equal_to_the_definition(
    args: dict[str, Tensor | None], softplus: bool, engine: str, factor: float = 1.0
) -> None:
    expected = outputs_and_gradients(args, softplus, "reference")
    for name, actual in outputs_and_gradients(args, softplus, engine).items():
        assert actual.dtype == expected[name].dtype, name
        error = relative_error(actual, expected[name])
        assert error <= factor * TOLERANCE[args["u"].dtype], f"{name}: relative error {error:.2e}"


def stiff_case(d: int, l: int, n: int, delta: float, A: float) -> dict[str, Tensor | None]:
    return {
        "u": torch.randn(1, d, l), "delta": torch.full((1, d, l), delta), "A": torch.full((d, n), A),
        "B": torch.randn(1, n, l), "C": torch.randn(1, n, l), "D": torch.randn(d), "z": None, "delta_bias": None,
        "initial_state": torch.randn(1, d, n),
    }  # fmt: skip  # one argument list
