"""Count the GPU launches of a computation without a GPU: it runs on tensors without storage, and
every operation that reaches a device is noted.

Views and allocations launch nothing. An operation over a list of tensors is counted as the kernels
that PyTorch cuts it into. An operator of ours runs its launchers, with a counter in the place of
each Triton kernel. Every other operation counts once, a convolution's bias and each of its
gradients apart: cuDNN and cuBLAS may make more of one. Copies from the host are no launches.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernel_launches import MODULES, kernels_of
from medmambase_kernels import backend, use_backend
from medmambase_kernels.custom_op import _contiguous

PROCESSORS = 132  # of an H100 or H200: the launch table asks for their number
_NOTHING = {"_unsafe_view", "_reshape_alias", "scalar_tensor", "lift_fresh"}  # besides views and allocations
# ATen/native/cuda/MultiTensorApply.cuh: how many tensors a launch takes, by the lists it walks
# together; and how many blocks of how many numbers.
_TENSORS, _BLOCKS, _NUMBERS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65536


class Launches(TorchDispatchMode):
    """Counts launches by name while it is active; ``total`` is their number."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        if name == "augment":
            with self:
                return backend.engine(name, "triton").forward(*args)
        if function.namespace == "medmambase":
            operator = name.removesuffix("_backward")
            step = "forward" if name == operator else "backward"
            with self:
                return _contiguous(getattr(backend.engine(operator, "triton"), step)(*args[:-1]))
        if function._can_decompose() and torch._C._dispatch_has_kernel_for_dispatch_key(
            function.name(), "CompositeImplicitAutograd"
        ):
            with self:
                return function.decompose(*args, **kwargs)
        # The fused optimiser has no kernel for tensors without storage; it returns nothing.
        result = None
        if name == "cudnn_convolution_relu":  # nor has this, which is a convolution's of one launch
            x, weight, _, stride, padding, dilation, groups = args
            result = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
        elif not name.startswith("_fused_adam"):
            result = function(*args, **kwargs)
        if name == "convolution" and args[1].is_contiguous(memory_format=torch.channels_last):
            # On a GPU it follows the layout of its weights, without storage it forgets that.
            result = torch.empty_like(result, memory_format=torch.channels_last)
        self.counts[name] += _launches_of(function, name, args, kwargs, result)
        return result


def _launches_of(function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> int:
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    if not any(t.is_meta for t in given or made):
        return 0  # on the host, or a copy from there
    if function.is_view or name in _NOTHING or name.startswith(("empty", "new_empty")):
        return 0
    if name.startswith(("_foreach", "_fused")):
        lists = [each for each in (*args, *kwargs.values()) if isinstance(each, list) and each and _is_tensor(each[0])]
        if name.startswith("_fused"):
            lists = lists[:4]  # the counters of steps, one number each, are walked with the others
        sums = name == "_foreach_norm"  # which adds up what the blocks found
        return _launches_of_lists(lists) + sums
    if name == "convolution":
        return 1 + (args[2] is not None)
    if name == "convolution_backward":
        return sum(args[-1])
    return 2 if name == "constant_pad_nd" else 1  # a fill and a copy


def _is_tensor(thing: object) -> bool:
    return isinstance(thing, Tensor)


def _launches_of_lists(lists: Sequence[Sequence[Tensor]]) -> int:
    launches = tensors = blocks = 0
    for t in lists[0]:
        tensors += 1
        for _ in range(-(-t.numel() // _NUMBERS)):
            blocks += 1
            if blocks == _BLOCKS:
                launches, tensors, blocks = launches + 1, 1, 0
        if tensors == _TENSORS[len(lists)]:
            launches, tensors, blocks = launches + (blocks > 0), 0, 0
    return launches + (blocks > 0)


class _Counter:
    """Stands in for a Triton kernel, and counts its launches."""

    def __init__(self, name: str, launches: Launches) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: object, **options: object) -> None:
            self.launches.counts[self.name] += 1

        return launch


def launches_of(compute: Callable[[], object]) -> Launches:
    """Count the launches of ``compute()`` on meta tensors, with our operators on backend
    "triton"."""
    launches = Launches()
    devices = torch.utils._foreach_utils._get_foreach_kernels_supported_devices()
    with ExitStack() as stack:
        for module in MODULES:
            counters = {name: _Counter(f"{module}.{name.lstrip('_')}", launches) for name in kernels_of(module)}
            place = importlib.import_module(f"medmambase_kernels._triton.{module}")
            stack.enter_context(mock.patch.dict(vars(place), counters))
        for supported in (
            "torch.utils._foreach_utils._get_foreach_kernels_supported_devices",
            "torch.optim.optimizer._get_fused_kernels_supported_devices",
        ):
            stack.enter_context(mock.patch(supported, lambda: [*devices, "meta"]))
        stack.enter_context(mock.patch("medmambase_kernels._triton.scan.processors", lambda t: PROCESSORS))
        stack.enter_context(mock.patch("medmambase_kernels.inference._cudnn", lambda x: True))
        # Autocast knows no meta tensors.
        stack.enter_context(mock.patch("torch.is_autocast_enabled", lambda *_: False))
        stack.enter_context(mock.patch("torch.autocast", lambda *_, **__: nullcontext()))
        stack.enter_context(use_backend("triton"))
        stack.enter_context(launches)
        compute()
    return launches
