"""Measuring a network: which operators it calls, and that only what computes the same is compared.
No time is asserted."""

import torch

from medmambase import MedMambaSE, ModelConfig
from medmambase.model import measure
from medmambase_kernels.bench import measure as bench
from medmambase_kernels.bench import original

CPU = torch.device("cpu")
NETWORK = ModelConfig(depths=(1, 1), dims=(8, 16), state=4)


def test_a_network_calls_the_operators_that_its_block_has() -> None:
    for block, gates in (("medmambase", 3), ("medmamba", 0)):
        config = ModelConfig(block=block, depths=(1, 2), dims=(8, 16), state=4, se_hidden_min=5)
        called = measure.operators_of(MedMambaSE(config), 32, torch.float32)
        of_gate = [case for case in called if case.operator == "squeeze_excite"]
        assert (len(called), len(of_gate), {case.hidden for case in of_gate} <= {5}) == (9 + gates, gates, True)
        assert {case.rank for case in called if case.operator == "selective_scan_2d"} == {1}


def test_a_network_is_not_compared_with_another_one() -> None:
    other = bench.Bench(CPU, repeat=3, mamba=lambda *arguments: original.loop_scan(*arguments).cumsum(-1))
    network = measure.new_network(NETWORK, CPU)
    rows = list(measure.network_rows("small", network, [16], [1], [torch.float32], other))
    for row in rows:
        assert (row.ms is not None, row.original_ms, row.failed) == (True, None, True)
        assert "the original's logits differ from ours" in row.note
