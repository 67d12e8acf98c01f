"""Kernels are exact on both sides of each of their block sizes, wherever in memory their tensors
lie, and for extreme numbers; and no block size is forgotten."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from boundaries import (
    BOUNDARIES,
    LAYERS,
    LAYOUTS,
    NO_BOUNDARIES,
    SCALARS,
    WALKED,
    Boundary,
    between,
    every_boundary,
    parts,
)
from conftest import ENGINES, HAS_TRITON, TOLERANCE, engine_device, relative_error
from operators import OPERATORS, Sample, every_operator, leaves_of, registered
from torch import Tensor

import medmambase_kernels
from medmambase_kernels import backend as engines

HOUSE = Path(medmambase_kernels.__file__).parent


def results(sample: Sample, tensors: list[Tensor], backend: str, layout=None) -> list[Tensor]:
    """The output and every gradient. ``layout`` also places the output's gradient."""
    leaves = leaves_of(tensors)
    y = sample.function(*leaves, backend=backend)
    if not y.requires_grad:
        return [y]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)
    dy = layout(dy, len(tensors)) if layout else dy
    found = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    return [y, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True))]


def assert_exact(sample: Sample, tensors: list[Tensor], engine: str, layout=None) -> None:
    """``tensors`` are placed by ``layout`` for the engine, and lie as they are for the
    definition."""
    placed = [t.to(engine_device(engine)) for t in tensors]
    found = results(sample, [layout(t, i) for i, t in enumerate(placed)] if layout else placed, engine, layout)
    expected = results(
        sample, [layout(t, i).contiguous() if layout else t for i, t in enumerate(tensors)], "reference", layout
    )
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = relative_error(one, other)
        assert error <= 4 * sample.factor * TOLERANCE[torch.float32], f"result {index}: relative error {error:.2e}"


@every_boundary
def test_kernels_are_exact_below_at_and_above_a_boundary_and_after_several(
    boundary: Boundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    if boundary.backend == "triton" and not HAS_TRITON:
        pytest.skip("Triton is not installed")
    for place, value in boundary.instead.items():
        owner, name, _ = parts(place)
        monkeypatch.setattr(owner, name, value)
    sizes = boundary.sizes()
    assert len(set(sizes)) >= 3
    for size in sizes:
        assert_exact((OPERATORS | LAYERS)[boundary.sample], boundary.tensors(size), boundary.backend)


@every_operator
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_and_their_gradients_may_lie_anywhere_in_memory(operator: str, engine: str, layout) -> None:
    sample = OPERATORS[operator]
    assert_exact(sample, sample.tensors(2, 3), engine, layout)


@every_operator
@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradient_of_a_sum_is_one_number_in_memory(operator: str, engine: str) -> None:
    sample = OPERATORS[operator]
    tensors, found = [t.to(engine_device(engine)) for t in sample.tensors(2, 3)], []
    for backend in (engine, "reference"):
        leaves = leaves_of(tensors)
        sample.function(*leaves, backend=backend).sum().backward()
        found.append([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves])
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) <= 4 * sample.factor * TOLERANCE[torch.float32]


def test_no_two_tensors_of_a_call_have_rows_of_one_width() -> None:
    placed = [between(torch.zeros(2, 3, 4, 16), i) for i in range(5)]
    assert len({t.stride(2) for t in placed}) == 5 and not any(t.isnan().any() for t in placed)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, scalar in SCALARS.items() for value in scalar.values]
)
def test_extreme_numbers_are_taken_as_they_are(name: str, value: float, engine: str) -> None:
    scalar = SCALARS[name]

    def with_value(*tensors: Tensor, backend: str) -> Tensor:
        return scalar.function(*tensors, value=value, backend=backend)

    assert_exact(Sample("", with_value, lambda b, l: [], 4.0), scalar.tensors(value), engine)


def test_every_number_that_an_operator_takes_is_in_the_table() -> None:
    taken = {
        f"{name} {argument.name}"
        for name in registered()
        for argument in getattr(torch.ops.medmambase, name).default._schema.arguments
        if str(argument.type) in ("float", "number")
    }
    assert taken == set(SCALARS)


def constants_of(house: Path) -> Iterator[str]:
    """Each number, or table of numbers, that stands at the top of a file of the kernels; an entry
    of a dict by its key."""
    for path in sorted(house.glob("_*/*.py")):
        place = f"{path.parent.name}/{path.name}"
        if not any(fnmatchcase(place, pattern) for pattern in WALKED):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            value = getattr(node, "value", None)
            keys = [None]
            if isinstance(value, ast.Dict) and all(
                isinstance(key, ast.Constant) and isinstance(key.value, str) for key in value.keys
            ):
                keys = [key.value for key, entry in zip(value.keys, value.values, strict=True) if _counts(entry)]
            elif not _counts(value):
                continue
            yield from (f"{place} {name}{f'[{key}]' if key else ''}" for name in names for key in keys)


def _counts(value: ast.AST | None) -> bool:
    return value is not None and any(
        isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool)
        for node in ast.walk(value)
    )


def test_every_constant_of_a_kernel_has_a_boundary_or_the_reason_why_not() -> None:
    found = set(constants_of(HOUSE))
    named = {boundary.place for boundary in BOUNDARIES}
    forgotten = [
        place for place in sorted(found - named) if not any(fnmatchcase(place, pattern) for pattern in NO_BOUNDARIES)
    ]
    assert not forgotten, f"name these in BOUNDARIES or NO_BOUNDARIES of tests/boundaries.py: {', '.join(forgotten)}"
    assert all(any(fnmatchcase(place, pattern) for place in found) for pattern in NO_BOUNDARIES)
    for place in named - found:  # functions that say how large a block is
        owner, name, _ = parts(place)
        assert callable(getattr(owner, name)), place


def test_a_new_constant_is_found(tmp_path: Path) -> None:
    (tmp_path / "_cpu").mkdir()
    (tmp_path / "_cpu" / "new.py").write_text(
        'A, B = 8, 1 << 4\nC: int = 3\nD = {"BL": 2, "fast": True}\nE = ((1, 2), (3, 4))\nF = 1.5\nG = "8"\n', "utf-8"
    )
    assert [place.partition(" ")[2] for place in constants_of(tmp_path)] == ["A", "B", "C", "D[BL]", "E"]


def test_every_operator_of_a_backend_has_a_boundary() -> None:
    walked = {(b.backend, OPERATORS[b.sample].name) for b in BOUNDARIES if b.sample in OPERATORS}
    for name in registered():
        for backend in ("cpu", "torch", "triton"):
            if name in engines.availability(backend).OPERATORS and not name.startswith("selective_scan"):
                assert backend == "torch" or (backend, name) in walked  # torch's own operations have no blocks
    assert {("cpu", name) for name in ("selective_scan", "selective_scan_2d")} < walked
