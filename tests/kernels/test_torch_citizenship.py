"""The operators and modules are citizens of torch: checked, compiled, exported, checkpointed and
copied like any other."""

import copy
import io
import pickle
import shutil
import sys

import pytest
import torch
import torch._dynamo.testing
from conftest import ENGINES, TOLERANCE, engine_device, relative_error
from operators import (
    DTYPES,
    MODULES,
    OPERATORS,
    assert_same_bits,
    bare,
    every_module,
    every_operator,
    leaves_of,
    module_results,
    one_group,
    outputs_and_gradients,
    recorded_calls,
    strided,
)
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils.checkpoint import checkpoint


@every_operator
@pytest.mark.parametrize(
    "layout", [pytest.param(torch.clone, marks=pytest.mark.slow), strided], ids=["contiguous", "strided"]
)
def test_every_operator_passes_all_of_torchs_checks(operator: str, layout) -> None:
    for call, args in recorded_calls(operator, layout, torch.float32, "cpu"):
        torch.library.opcheck(call, args)


@every_operator
@pytest.mark.parametrize("engine", ENGINES)
def test_fakes_tell_the_shape_dtype_and_strides_of_every_result(operator: str, engine: str) -> None:
    for dtype in DTYPES if engine == "cpu" else (torch.bfloat16,):
        for call, args in recorded_calls(operator, strided, dtype, engine, length=18 if engine == "cpu" else 3):
            torch.library.opcheck(call, args, test_utils="test_faketensor")


@every_operator
def test_one_fullgraph_compilation_serves_every_batch_and_length(operator: str) -> None:
    torch._dynamo.reset()
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for b, l in ((5, 19), (9, 23), (10, 40)):
        tensors = [strided(t) for t in arguments(b, l)]

        def dynamic(*leaves: Tensor, sizes: tuple[int, int] = (b, l)) -> Tensor:
            for t in leaves:
                for dim in (dim for dim, size in enumerate(t.shape) if size in sizes):
                    torch._dynamo.mark_dynamic(t, dim)
            return compiled(*leaves)

        assert_same_bits(outputs_and_gradients(dynamic, tensors), outputs_and_gradients(function, tensors))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None,
    reason="inductor wants a C++ compiler even where it has nothing to compile",
)
@pytest.mark.skipif(" " in torch.__file__, reason="inductor cannot link where PyTorch lies in a path with blanks")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on inductor's first import
def test_inductor_reads_the_results_where_they_lie() -> None:
    torch._dynamo.reset()
    tensors = [strided(t) for t in one_group(3, 19)]
    compiled = torch.compile(bare, backend="inductor", fullgraph=True)
    results = []
    for function in (compiled, bare):
        leaves = leaves_of(tensors)
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, strided(torch.ones_like(y)))])
    assert_same_bits(*results)


@every_module
def test_every_module_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    make, shape, _ = MODULES[name]
    module, x = make(), torch.randn(shape)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(module_results(compiled, module, x), module_results(module, module, x), strict=True):
        assert (
            relative_error(actual, expected) <= TOLERANCE[torch.float32]
        )  # the convolutions and norms around ours may be decomposed


@every_module
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_module_survives_a_file_takes_other_sizes_and_can_be_trained(name: str, strict: bool) -> None:
    make, shape, free = MODULES[name]
    module, file = make(), io.BytesIO()
    program = export(
        module,
        (torch.randn(shape),),
        dynamic_shapes=({dim: Dim(f"size_{dim}", min=1, max=512) for dim in free},),
        strict=strict,
    )
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn([size * 2 if dim in free else size for dim, size in enumerate(shape)])
    results = module_results(loaded, loaded, x)
    expected = dict(
        zip((name for name, _ in module.named_parameters()), module_results(module, module, x)[2:], strict=True)
    )
    assert relative_error(results[0], module(x)) <= 1e-6
    for (parameter, _), gradient in zip(loaded.named_parameters(), results[2:], strict=True):
        assert relative_error(gradient, expected[parameter]) <= TOLERANCE[torch.float32], parameter


@every_operator
def test_an_exported_operator_takes_other_sizes_and_keeps_no_states_for_a_backward_pass(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors

    class Wrapped(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(*tensors)

    b, l = 5, 20  # no other axis is so long
    tensors = tuple(leaves_of(arguments(b, l)))
    free = tuple({dim: Dim.DYNAMIC for dim, size in enumerate(t.shape) if size in (b, l)} for t in tensors)
    program = export(Wrapped(), tensors, dynamic_shapes=(free,))
    (call,) = [node for node in program.graph.nodes if str(node.target).startswith("medmambase.")]
    assert call.meta["val"][-1].shape == (0,)
    others = arguments(9, 50)
    assert torch.equal(program.module()(*others), function(*others))


@every_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit_of_an_operator(operator: str, dtype: torch.dtype) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(2, 20)
    expected = outputs_and_gradients(function, tensors)
    with torch.autocast("cpu", dtype):
        assert_same_bits(outputs_and_gradients(function, tensors), expected)


@every_module
def test_a_module_under_autocast_is_within_bfloat16_of_itself(name: str) -> None:
    make, shape, _ = MODULES[name]
    module, x = make(), torch.randn(shape)
    expected = module_results(module, module, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = module_results(module, module, x)
    assert relative_error(actual[0], expected[0]) <= 0.05
    assert all(
        one.isfinite().all() and one.dtype == other.dtype for one, other in zip(actual[1:], expected[1:], strict=True)
    )


@every_operator
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(operator: str, reentrant: bool) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(2, 20)
    recomputed = outputs_and_gradients(lambda *leaves: checkpoint(function, *leaves, use_reentrant=reentrant), tensors)
    assert_same_bits(recomputed, outputs_and_gradients(function, tensors))


@every_operator
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_for_one_argument_alone_is_the_same_gradient(operator: str, engine: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = [t.to(engine_device(engine)) for t in arguments(1, 18 if engine == "cpu" else 3)]
    _, *expected = outputs_and_gradients(lambda *leaves: function(*leaves, backend=engine), tensors)
    for index in range(len(tensors)) if engine == "cpu" else (0, len(tensors) - 1):
        mixed = [t.clone().requires_grad_(i == index) for i, t in enumerate(tensors)]
        y = function(*mixed, backend=engine)
        if y.requires_grad:  # the last state has nothing to do with z and D's product
            y.square().sum().backward()
        assert all(t.grad is None for i, t in enumerate(mixed) if i != index)
        assert torch.equal(
            torch.zeros_like(mixed[index]) if mixed[index].grad is None else mixed[index].grad, expected[index]
        ), index


@every_operator
def test_inference_mode_gives_the_same_bits(operator: str) -> None:
    function, arguments = OPERATORS[operator].function, OPERATORS[operator].tensors
    tensors = arguments(2, 20)
    with torch.inference_mode():
        y = function(*tensors)
    assert y.is_inference()
    assert torch.equal(y, function(*leaves_of(tensors)))


@every_module
def test_a_copied_and_a_pickled_module_is_the_same_module(name: str) -> None:
    make, shape, _ = MODULES[name]
    module, x = make(), torch.randn(shape)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301  # our own bytes
        assert torch.equal(other(x), module(x))
