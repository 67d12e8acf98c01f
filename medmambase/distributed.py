"""Train on several processes started by torchrun: each takes a share of every batch, and all take
the same step.

Gradients are averaged by PyTorch's DistributedDataParallel; BatchNorm sees
the whole batch, on any device. So two processes do what one would do with twice the batch, up to
rounding.
"""

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medmambase.run_folder import RunFolderError


class RankError(Exception):
    """Another process of the same training has ended."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among ``count``, and its rank ``local`` on its own machine. Rank 0
    is the ``first``: only it writes files and prints."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's share of a batch's rows (b,)."""
        return rows.tensor_split(self.count)[self.rank]

    def sum(self, t: Tensor) -> Tensor:
        """Sum ``t`` over all processes; each gets the same bits."""
        if self.count == 1:
            return t
        # NCCL knows GPUs alone.
        total = t.to("cuda" if distributed.get_backend() == "nccl" else "cpu", copy=True)
        distributed.all_reduce(total)
        return total.to(t.device)

    def agree(self, text: str) -> str:
        """Return the first process's text on every process."""
        if self.count == 1:
            return text
        content = text.encode("utf-8", "surrogatepass")
        length = int(self.sum(torch.tensor([len(content) if self.first else 0]))[0])
        letters = torch.tensor(list(content)) if self.first else torch.zeros(length, dtype=torch.int64)
        return bytes(self.sum(letters).tolist()).decode("utf-8", "surrogatepass")

    def write(self, action: Callable[[], object]) -> None:
        """Let the first process write. If it cannot, every process stops: the first raises its own
        error, the others RunFolderError."""
        failed: Exception | None = None
        if self.first:
            try:
                action()
            except (OSError, RunFolderError) as error:
                failed = error
        failures = self.sum(torch.tensor([float(failed is not None)])).item()
        if failed is not None:
            raise failed
        if failures:
            raise RunFolderError("the first process cannot write the run folder; its message says why")

    def learner(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that gradients are averaged over all processes after each backward
        pass."""
        if self.count == 1:
            return network
        synchronise_batch_norms(network)
        device = next(network.parameters()).device
        # Buffers are BatchNorm's alone, and those are the same everywhere.
        return DistributedDataParallel(
            network, device_ids=None if device.type == "cpu" else [device], broadcast_buffers=False
        )


ALONE = Ranks()


def local_gradients(learner: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Keep the gradients of ``learner`` local if ``wanted``: they are averaged once per step, with
    its last batch."""
    return learner.no_sync() if wanted and isinstance(learner, DistributedDataParallel) else nullcontext()


@contextmanager
def joined(device_type: str) -> Iterator[Ranks]:
    """Join the processes of this training, described by torchrun's environment variables; a process
    started otherwise is ALONE.

    They meet through NCCL for "cuda" on Linux, otherwise through Gloo. Raises RankError where one
    of the others ends in between.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    distributed.init_process_group("nccl" if device_type == "cuda" and sys.platform == "linux" else "gloo")
    try:
        with warnings.catch_warnings():
            # Of axes with one element, whose stride says nothing; and of an argument that older
            # versions of PyTorch need.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            yield Ranks(distributed.get_rank(), distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
            # the others wait for the first one's report: who leaves early may be aborted by the
            # threads of the group
            distributed.barrier()
    except RuntimeError as error:
        if not any(
            word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out")
        ):
            raise
        raise RankError(
            f"process {distributed.get_rank()} lost contact with the others; their own messages say why "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        # what still holds the group would end it while the interpreter ends, when its threads can
        # no longer be stopped
        gc.collect()
        distributed.destroy_process_group()


def _sum_over_ranks(t: Tensor) -> Tensor:
    """Sum over all processes, with gradients."""
    total: Tensor = _SumOverRanks.apply(t)  # type: ignore[no-untyped-call]  # torch's own
    return total


class _SumOverRanks(torch.autograd.Function):
    """Sum the gradients over all processes, because every process's output contains each
    summand."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        total = t.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes, also on CPUs, where PyTorch's own does not work.
    It shares parameters and statistics with the one it replaces."""

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.weight, self.bias = plain.weight, plain.bias
        self.running_mean, self.running_var, self.num_batches_tracked = (
            plain.running_mean,
            plain.running_var,
            plain.num_batches_tracked,
        )
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> the same shape and dtype; b may differ between processes."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        own = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() // x.shape[1]])])
        sums, count = _sum_over_ranks(own).tensor_split([x.shape[1]])
        mean = sums / count
        centred = x - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
            and self.momentum is not None
        )
        if self.track_running_stats:  # not while a block is computed again in backward
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise_batch_norms(network: nn.Module) -> None:
    """Replace every BatchNorm in ``network`` with one over all processes; names and values stay."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SynchronisedBatchNorm):
                setattr(module, name, SynchronisedBatchNorm(child))
