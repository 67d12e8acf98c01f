"""What a CUDA graph's capture refuses, and what it keeps as it was at the capture, without a GPU:
the code runs on tensors without numbers, in a mode that looks at each of its operations."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from kernel_launches import MODULES, kernels_of
from medmambase_kernels import backend as engines

# Each waits for the GPU to tell a number or a shape.
WAITS = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "unique", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "_assert_scalar",
)  # fmt: skip  # a list
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
# Functions that read or write the generator's state, which a capture has for itself.
STATES = ("get_rng_state", "set_rng_state", "manual_seed", "seed", "initial_seed", "fork_rng")


class CaptureError(Exception):
    """A capture would fail here, or what it keeps would be wrong."""


class Capturing(TorchDispatchMode):
    """Keeps each operation with everything in its arguments that is no tensor, and of tensors
    their shapes and dtypes. Raises CaptureError for what waits for the device, or is on another."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        if name in WAITS:
            raise CaptureError(f"{name} waits for the GPU")
        if name in INDEXED and any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
            raise CaptureError(f"{name} by booleans waits for the GPU")
        self.note(str(function), (args, kwargs))
        self.look(name, tree_flatten((args, kwargs))[0])
        if function.namespace == "medmambase":
            operator = name.removesuffix("_backward")
            with self:  # what the backend does inside of it
                if isinstance(args[-1], str):
                    engines.run(operator, args[-1], "forward" if operator == name else "backward", *args[:-1])
                else:  # of no backend but Triton
                    engines.engine(name, "triton").forward(*args)
        # The fused optimiser has no kernel for tensors without numbers; it returns nothing.
        result = None if name.startswith("_fused_adam") else function(*args, **kwargs)
        self.look(name, tree_flatten(result)[0])
        return result

    def note(self, name: str, arguments: Any) -> None:
        """Keep an operation or a kernel."""
        shown = tree_map(lambda t: (tuple(t.shape), str(t.dtype)) if isinstance(t, Tensor) else t, arguments)
        self.operations.append((name, repr(shown)))

    def look(self, name: str, values: list[Any]) -> None:
        """Refuse tensors that are not on the device: to be copied, or kept as they were."""
        if elsewhere := {str(t.device) for t in values if isinstance(t, Tensor)} - {"meta"}:
            raise CaptureError(f"{name} takes or makes a tensor on {elsewhere}")


class _Kernel:
    """A stand-in for a Triton kernel, which only notes how it is launched."""

    def __init__(self, name: str, mode: Capturing) -> None:
        self.name, self.mode = name, mode

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.mode.note(self.name, (grid, arguments, options))
            self.mode.look(self.name, list(arguments))

        return launch


def _refuse(name: str) -> Callable[..., None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise CaptureError(f"torch.random.{name} reads or writes the generator's state")

    return refuse


@contextmanager
def capturing(backend: str) -> Iterator[Capturing]:
    """Look at every operation of the tensors on "meta" in the block; those of ``backend`` too, its
    Triton kernels replaced."""
    mode = Capturing()
    replaced: list[Any] = [
        mock.patch.dict(
            vars(importlib.import_module(f"medmambase_kernels._triton.{module}")),
            {name: _Kernel(name, mode) for name in kernels_of(module)},
        )
        for module in (MODULES if backend == "triton" else ())
    ]
    replaced += [
        mock.patch.object(owner, name, _refuse(name))
        for owner in (torch.random, torch)
        for name in STATES
        if hasattr(owner, name)
    ]
    with ExitStack() as stack:
        for each in replaced:
            stack.enter_context(each)
        with engines.use_backend(backend), mode:
            yield mode
