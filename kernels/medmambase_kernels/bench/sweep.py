"""Time the other launches of the Triton scans, beside those that the launch table picks."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from medmambase_kernels import backend as engines
from medmambase_kernels._triton import launch_table
from medmambase_kernels.bench.cases import DIRECTIONS, Case, operator
from medmambase_kernels.bench.measure import TOLERANCE, Bench, relative_error


def sweep(case: Case, bench: Bench) -> Iterator[tuple[str, str, float | None]]:
    """Time every launch that ``launch_table.candidates`` offers for a scan, the chosen one first:
    (pass, launch, median ms, or None if wrong or impossible)."""
    device = bench.device
    # Without a GPU as many as the interpreter supposes.
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 100
    length, inputs = case.height * case.width, tuple(t.detach() for t in operator(case, device).arguments)
    given: tuple[object, ...]
    chosen: launch_table.Forward
    back: launch_table.Backward
    if case.operator == "selective_scan":
        given = (*inputs, None, True, case.dtype)
        sequences = (case.batch, DIRECTIONS * case.channels, length, case.state, processors, DIRECTIONS)
        chosen, back = launch_table.sequence_forward(*sequences), launch_table.sequence_backward(*sequences)
    else:
        given = (*inputs, case.dtype, False)
        images = (case.batch, DIRECTIONS, case.channels, length, case.state)
        chosen, back = (
            launch_table.forward(*images, case.rank, processors),
            launch_table.backward(*images, processors),
        )
    engine = partial(engines.run, case.operator, "triton")
    y, *states, kept = engine("forward", *given, True, chosen)
    ones = [torch.ones_like(t) for t in (y, *states)]
    runs: tuple[tuple[str, tuple[object, ...], launch_table.Forward | launch_table.Backward], ...] = (
        ("forward", (*given, True), chosen),
        ("backward", (*ones, *given, kept), back),
    )
    for step, arguments, first in runs:
        expected = engine(step, *arguments, first)
        for config in dict.fromkeys([first, *launch_table.candidates(first)]):
            yield step, str(config), _candidate_ms(partial(engine, step, *arguments, config), expected, case, bench)


def _candidate_ms(
    run: Callable[[], tuple[Tensor | None, ...]], expected: tuple[Tensor | None, ...], case: Case, bench: Bench
) -> float | None:
    try:
        pairs = zip(run(), expected, strict=True)
        if any(
            not relative_error(one, other) <= TOLERANCE[case.dtype]
            for one, other in pairs
            if one is not None and other is not None
        ):
            return None
        return bench.measure(run).times.median
    except Exception:  # noqa: BLE001  # a launch that the compiler or the GPU refuses is no candidate; the exceptions are Triton's own, which it alone may import
        return None
