"""The network that ours is measured beside: the same results, and gradients, by the original's
operators."""

from functools import partial

import torch
from conftest import relative_error

from medmambase import MedMambaSE, ModelConfig
from medmambase.model.original import with_original_operators
from medmambase_kernels.bench import original as originals


def test_a_network_with_the_originals_operators_is_the_same_network() -> None:
    network = MedMambaSE(ModelConfig(depths=(1, 1), dims=(8, 16), state=4, in_chans=1, drop_path=0.0)).eval()
    with torch.no_grad():  # gates that do something
        for name, parameter in network.named_parameters():
            if name.endswith("excite"):
                parameter.normal_()
    original = with_original_operators(
        network, partial(originals.original_scan_2d, originals.loop_scan), originals.original_gate
    )
    assert not any(
        isinstance(module, type(network.stages[0].blocks[0].se))
        for block in original.stages
        for module in block.children()
    )
    image = torch.randn(2, 1, 24, 20)
    results = []
    for one in (network, original):
        logits = one(image)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in one.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(theirs, ours) <= 1e-4
