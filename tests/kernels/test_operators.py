"""An operator is known everywhere: each test below asks one place about each registered operator.

A further operator that was written, described and exported, and no more, makes five tests red: here
those of its definition, of the table of the generic tests, of the portable backend and of its
signatures, and in test_house.py that of the map of all files. Once a backend says that it has the
operator, the tests of its file, of its signatures and of its ahead-of-time compilation follow.
"""

import inspect
from pathlib import Path

import pytest
import torch
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from operators import OPERATORS, every_operator, outputs_and_gradients, registered, strided

import kernel_launches
import medmambase_kernels
from medmambase_kernels import backend, reference

every_registered = pytest.mark.parametrize("name", registered())
HOUSE = Path(medmambase_kernels.__file__).parent


@every_operator
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("b", "l"), [(2, 7), (1, 1), (0, 3)])
def test_every_backend_equals_the_definition(operator: str, engine: str, b: int, l: int) -> None:
    sample = OPERATORS[operator]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [strided(t.to(engine_device(engine), dtype)) for t in sample.tensors(b, l)]
        found, expected = (
            outputs_and_gradients(lambda *t, name=name: sample.function(*t, backend=name), tensors)
            for name in (engine, "reference")
        )
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one.dtype == other.dtype, index
            assert relative_error(one, other) <= 4 * sample.factor * TOLERANCE[dtype], (dtype, index)


def test_every_operator_is_registered_and_every_backend_is_tested() -> None:
    assert len(registered()) >= 5
    engines = {getattr(engine, "values", (engine,))[0] for engine in ENGINES}
    assert engines | {"reference"} == set(backend.BACKENDS)


@every_registered
def test_an_operator_has_a_definition(name: str) -> None:
    assert callable(getattr(reference, name, None)), f"reference.py has no {name}"
    assert name in backend.availability("reference").OPERATORS


@every_registered
def test_an_operator_is_in_the_table_of_the_generic_tests(name: str) -> None:
    assert name in {sample.name for sample in OPERATORS.values()}, f"tests/operators.py has no {name}"


@every_registered
def test_the_portable_backend_has_every_operator(name: str) -> None:
    assert name in backend.availability("torch").OPERATORS
    assert backend.engine(name, "torch").forward


@every_registered
@pytest.mark.parametrize("engine", ENGINES)
def test_a_backend_has_an_operators_file_if_and_only_if_it_says_so(name: str, engine: str) -> None:
    assert (name in backend.availability(engine).OPERATORS) == (HOUSE / f"_{engine}" / f"{name}.py").is_file(), (
        f"_{engine}/availability.py and the files beside it differ"
    )


@every_registered
@pytest.mark.parametrize("engine", ENGINES)
def test_forward_backward_and_kept_shape_have_one_signature(name: str, engine: str) -> None:
    def parameters(of: str, step: str) -> list[str]:
        names = list(inspect.signature(getattr(backend.engine(name, of), step)).parameters)
        return [parameter for parameter in names if parameter != "config"]  # for the launches that a sweep tries

    if engine != "torch" and name not in backend.availability(engine).OPERATORS:
        return  # a backend may lack an operator, but for the portable one
    for step in ("forward", "backward", "kept_shape"):
        assert parameters(engine, step) == parameters("torch", step), step


@every_registered
def test_the_triton_kernels_of_an_operator_are_compiled_ahead_of_time(name: str) -> None:
    if name in backend.availability("triton").OPERATORS:
        assert name in kernel_launches.CALLS, f"tools/kernels/kernel_launches.py launches no {name}"


@every_registered
def test_an_operator_says_what_it_takes_and_returns(name: str) -> None:
    text = inspect.getdoc(getattr(medmambase_kernels, name)) or ""
    assert {"Args:", "Returns:", "Raises:"} <= set(text.split()), f"{name}'s docstring lacks a part"
