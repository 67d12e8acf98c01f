"""mamba-ssm's own test of its scan, through ours: its grid, its inputs, its tolerances, against a
float32 loop of the mathematics it documents.

Its active cases run whole. Of the wide grid that its test keeps in comments, 6,240 cases, a
selection runs that has every triple of settings.
"""

from collections.abc import Callable
from itertools import combinations, product
from typing import NamedTuple

import pytest
import torch
from conftest import TRITON, engine_device
from torch import Tensor
from torch.nn import functional as F

from medmambase_kernels import selective_scan

BATCH, CHANNELS, STATE = 2, 4, 8
Scan = Callable[..., tuple[Tensor, Tensor | None]]
# Relative and absolute tolerance by the dtype of the inputs, and that of the weights' gradients.
TOLERANCES = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}
WEIGHT_TOLERANCE = 1e-3


class Setting(NamedTuple):
    """One case. ``rows``: whether B and C vary along the sequence, and in how many groups."""

    length: int
    rows: tuple[bool, bool, int]
    dtype: torch.dtype
    last_state: bool
    delta_bias: bool
    softplus: bool
    z: bool
    D: bool

    def __str__(self) -> str:
        B, C = ("variable" if varies else "constant" for varies in self.rows[:2])
        rows = f"{B}B-{C}C-g{self.rows[2]}"
        flags = [name for name in ("last_state", "delta_bias", "softplus", "z", "D") if getattr(self, name)]
        return "-".join([f"L{self.length}", str(self.dtype).removeprefix("torch."), rows, *flags])


FLAG = (False, True)
WIDE: tuple[tuple[object, ...], ...] = (
    (8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096),
    (
        (False, False, 1),
        (False, True, 1),
        (True, False, 1),
        (True, True, 1),
        (True, True, 2),
    ),  # groups need both to vary
    (torch.float32, torch.float16, torch.bfloat16),
    *[FLAG] * 5,
)


def selection(values: tuple[tuple[object, ...], ...], strength: int) -> list[Setting]:
    """All combinations of the first ``strength`` settings, each with those flags that bring the
    most new combinations of so many settings."""
    seen: set[tuple[object, ...]] = set()
    chosen = []
    for start in product(*values[:strength]):
        candidates = (Setting(*start, *rest) for rest in product(*values[strength:]))
        best, new = max(
            ((case, combinations_of(case, strength) - seen) for case in candidates), key=lambda pair: len(pair[1])
        )
        seen |= new
        chosen.append(best)
    return chosen


def combinations_of(case: Setting, strength: int) -> set[tuple[object, ...]]:
    return set(combinations(enumerate(case), strength))


ACTIVE = [
    Setting(length, (True, True, groups), torch.float32, *[True] * 5)
    for length, groups in product((128, 256, 512, 1024, 2048, 4096), (1, 2))
]
SELECTED = selection(WIDE, strength=3)
# Triton's interpreter takes about a second a case; the kernels themselves do the whole selection.
SHORT = SELECTED if torch.cuda.is_available() else selection(((8, 16, 32), *WIDE[1:]), strength=2)


def documented(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l and y_l = C_l h_l + D u_l, gated by silu(z),
    one step after the other in float32."""

    def rows(t: Tensor) -> Tensor:  # (b or 1, d, n, l or 1)
        t = t.float()
        return (
            t[None, :, :, None]
            if t.dim() == 2
            else t[:, None]
            if t.dim() == 3
            else t.repeat_interleave(u.shape[1] // t.shape[1], 1)
        )

    x, step = u.float(), delta.float()
    if delta_bias is not None:
        step = step + delta_bias[:, None]
    if softplus:
        step = F.softplus(step)
    decay, drive = torch.exp(step[:, :, None] * A[None, :, :, None]), (step * x)[:, :, None] * rows(B)
    h, states = torch.zeros_like(decay[..., 0]), []
    for a, b in zip(decay.unbind(-1), drive.unbind(-1), strict=True):
        h = a * h + b
        states.append(h)
    y = (torch.stack(states, -1) * rows(C)).sum(2)
    if D is not None:
        y = y + D[:, None] * x
    return (y if z is None else y * F.silu(z.float())).to(u.dtype), h


def inputs(case: Setting, state: int) -> dict[str, Tensor | None]:
    """As mamba-ssm's test draws them."""

    def weights(varies: bool) -> Tensor:
        groups = () if case.rows[2] == 1 else (case.rows[2],)
        return (
            torch.randn(BATCH, *groups, state, case.length, dtype=case.dtype)
            if varies
            else torch.randn(CHANNELS, state)
        )

    def sequence() -> Tensor:
        return torch.randn(BATCH, CHANNELS, case.length, dtype=case.dtype)

    A, B, C = -0.5 * torch.rand(CHANNELS, state), weights(case.rows[0]), weights(case.rows[1])
    D, z = torch.randn(CHANNELS) if case.D else None, sequence() if case.z else None
    delta_bias, u = 0.5 * torch.rand(CHANNELS) if case.delta_bias else None, sequence()
    return {"u": u, "delta": 0.5 * torch.rand_like(u), "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}


def tolerances(case: Setting) -> dict[str, tuple[float, float]]:
    """Relative and absolute, by result; "dA" is A's gradient."""
    rtol, atol = TOLERANCES[case.dtype]
    rtol_w, atol_w = (max(WEIGHT_TOLERANCE, t) if case.z else WEIGHT_TOLERANCE for t in (rtol, atol))
    varying, weight = (rtol, atol), (rtol_w, atol_w)
    return {
        "out": varying, "last state": varying, "du": (2 * rtol, 2 * atol), "ddelta": (5 * rtol, 10 * atol),
        "dA": (rtol_w, 5 * atol_w), "dB": varying if case.rows[0] else weight,
        "dC": varying if case.rows[1] else weight, "dD": weight, "dz": weight, "ddelta_bias": weight,
    }  # fmt: skip  # the table of its test, line by line


def assert_within_tolerances(case: Setting, *engines: str, state: int = STATE) -> None:
    drawn, grads = inputs(case, state), []
    expected = results(case, drawn, grads, lambda *a: documented(*a, case.softplus))
    allowed = tolerances(case)
    for engine in engines:
        device = engine_device(engine)

        def ours(*tensors: Tensor | None, engine: str = engine) -> tuple[Tensor, Tensor | None]:
            out = selective_scan(*tensors, case.softplus, case.last_state, backend=engine)
            return out if isinstance(out, tuple) else (out, None)

        moved = {name: None if t is None else t.to(device) for name, t in drawn.items()}
        actual = results(case, moved, grads, ours)
        assert actual.keys() == expected.keys()
        for name, t in actual.items():
            assert t.dtype == expected[name].dtype, name
            rtol, atol = allowed[name]
            torch.testing.assert_close(
                t.cpu(), expected[name], rtol=rtol, atol=atol, msg=lambda text, where=(engine, name): f"{where}: {text}"
            )


def results(case: Setting, drawn: dict[str, Tensor | None], grads: list[Tensor], scan: Scan) -> dict[str, Tensor]:
    """The outputs by name, and the gradients for ``grads``, which the first call draws."""
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in drawn.items()}
    out, last = scan(*leaves.values())
    if not grads:
        grads.append(torch.randn_like(out))
    out.backward(grads[0].to(out.device))
    found = {"out": out, "last state": last} if case.last_state else {"out": out}
    return found | {f"d{name}": t.grad for name, t in leaves.items() if t is not None}


def test_the_selection_has_every_triple_of_settings_and_no_case_twice() -> None:
    triples = {triple for case in product(*WIDE) for triple in combinations(enumerate(case), 3)}
    assert set().union(*(combinations_of(case, 3) for case in SELECTED)) == triples
    assert len(set(SELECTED)) == len(SELECTED)
    assert set(SHORT) <= set(product(*WIDE))


@pytest.mark.parametrize("case", ACTIVE, ids=str)
def test_the_twelve_active_cases_pass(case: Setting) -> None:
    assert_within_tolerances(case, "cpu", "torch")


@pytest.mark.parametrize("case", SELECTED, ids=str)
def test_the_wide_grid_passes_on_the_vector_code_and_on_the_portable_backend(case: Setting) -> None:
    assert_within_tolerances(case, "cpu", "torch")


@pytest.mark.parametrize("engine", [TRITON])
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_the_wide_grid_passes_on_the_triton_kernels(case: Setting, engine: str) -> None:
    assert_within_tolerances(case, engine)


@pytest.mark.parametrize("length", [16, 49, 64, 196, 256, 784])
@pytest.mark.parametrize("state", [1, 4, 8, 16, 32, 64])
def test_the_lengths_of_images_and_other_state_sizes_pass(length: int, state: int) -> None:
    assert_within_tolerances(Setting(length, (True, True, 2), torch.float32, *[True] * 5), "cpu", "torch", state=state)


@pytest.mark.parametrize("rows", WIDE[1])
@pytest.mark.parametrize("dtype", WIDE[2])
def test_a_complex_state_matrix_is_refused_by_name(rows: tuple[bool, bool, int], dtype: torch.dtype) -> None:
    drawn = inputs(Setting(8, rows, dtype, *[True] * 5), STATE)
    drawn["A"] = torch.complex(drawn["A"], torch.rand_like(drawn["A"]))
    with pytest.raises(ValueError, match="A is complex; only a real A is supported"):
        selective_scan(*drawn.values(), True, True)
