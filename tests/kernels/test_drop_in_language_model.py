"""Mamba's language model by upstream's names: formulas, folders, and text token by token."""

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import TOLERANCE, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels import drop_in
from medmambase_kernels._drop_in.generation import sample
from medmambase_kernels._drop_in.language_model import GatedMLP, MambaConfig, MambaLMHeadModel, MixerModel, create_block

SIZES = {"d_model": 8, "n_layer": 2, "vocab_size": 13, "ssm_cfg": {"d_state": 3}}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    drop_in.install(quiet=True)
    yield
    drop_in.uninstall()


def model(**options: object) -> MambaLMHeadModel:
    """A small one, whose embedding is large enough to tell tokens apart."""
    made = MambaLMHeadModel(MambaConfig(**SIZES | options))
    nn.init.normal_(made.backbone.embedding.weight)
    return made


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    centred = x if norm.bias is None else x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    return y if norm.bias is None else y + norm.bias


def by_formula(exact: MambaLMHeadModel, ids: Tensor) -> Tensor:
    """Every sum and norm in the open, in float64; the mixers have tests of their own."""
    total = exact.backbone.embedding.weight[ids]
    for layer in exact.backbone.layers:
        total = total + layer.mixer(normed(layer.norm, total))
        if layer.mlp is not None:
            y, gate = F.linear(normed(layer.norm2, total), layer.mlp.fc1.weight).chunk(2, -1)
            total = total + F.linear(y * gate * torch.sigmoid(gate), layer.mlp.fc2.weight)
    return normed(exact.backbone.norm_f, total) @ exact.backbone.embedding.weight.t()


@pytest.mark.parametrize(("fused", "rms", "mlp"), [*itertools.product((False, True), (False, True), (0, 5))])
def test_a_model_is_its_formulas_with_every_gradient(fused: bool, rms: bool, mlp: int) -> None:
    one = model(fused_add_norm=fused, rms_norm=rms, d_intermediate=mlp)
    exact = MambaLMHeadModel(one.config).double()
    exact.load_state_dict(one.state_dict())
    ids = torch.randint(13, (2, 5))
    logits, expected = one(ids).logits, by_formula(exact, ids)
    assert logits.shape == (2, 5, 16)  # rounded up to a multiple of 8
    assert relative_error(logits, expected) <= TOLERANCE[torch.float32]
    assert torch.equal(one(ids, num_last_tokens=2).logits, logits[:, -2:])
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (name, weight), other in zip(one.named_parameters(), exact.parameters(), strict=True):
        assert relative_error(weight.grad, other.grad) <= 4 * TOLERANCE[torch.float32], name


def test_the_sum_stays_in_float32_where_the_rest_is_in_16_bits() -> None:
    for fused in (False, True):
        block = create_block(8, rms_norm=True, residual_in_fp32=True, fused_add_norm=fused, dtype=torch.bfloat16)
        y, residual = block(torch.randn(1, 3, 8, dtype=torch.bfloat16))
        assert (y.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
        assert block(y, residual)[1].dtype == torch.float32


def test_a_new_model_starts_as_upstreams_do() -> None:
    made = MambaLMHeadModel(MambaConfig(16, n_layer=4, vocab_size=1000, d_intermediate=8, ssm_cfg={"bias": True}))
    names = {name.removeprefix("backbone.layers.0.") for name in made.state_dict() if ".layers.0." in name}
    assert {"mixer.A_log", "mixer.in_proj.bias", "norm.weight", "norm2.weight", "mlp.fc1.weight"} <= names
    assert made.lm_head.weight is made.backbone.embedding.weight
    assert 0.015 < made.backbone.embedding.weight.std() < 0.025
    for layer in made.backbone.layers:
        assert not layer.mixer.in_proj.bias.any() and layer.mixer.dt_proj.bias.all()  # which is marked _no_reinit
        limit = 1 / (32 * 2 * 4) ** 0.5  # of 32 channels, two sums a layer
        assert 0.9 * limit < layer.mixer.out_proj.weight.abs().max() <= limit
    untied = MambaLMHeadModel(MambaConfig(**SIZES, tie_embeddings=False))
    assert untied.lm_head.weight is not untied.backbone.embedding.weight
    assert MixerModel(8, 1, 13).embedding.num_embeddings == 13  # as it once was called
    assert GatedMLP(12, 130).fc1.weight.shape == (512, 12)  # twice 130, rounded up to a multiple of 128


def test_tokens_one_by_one_are_those_of_the_whole_text() -> None:
    one, ids = model(), torch.randint(13, (3, 4))
    made = one.generate(ids, 12, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(made.sequences[:, :4], ids) and made.sequences.shape == (3, 12)
    logits = one(made.sequences).logits
    assert torch.equal(made.sequences[:, 4:], logits[:, 3:-1].argmax(-1))
    assert relative_error(torch.stack(made.scores, 1), logits[:, 3:-1]) <= TOLERANCE[torch.float32]
    assert made.sequences.unique().numel() > 3  # no text of one token
    assert torch.equal(one.generate(input_ids=ids, max_length=12, cg=True), made.sequences)
    assert made.seconds > 0


def test_a_model_may_begin_with_states_that_were_made_before() -> None:
    one, ids = model(), torch.randint(13, (2, 6))
    names = importlib.import_module("mamba_ssm.utils.generation")
    params = names.InferenceParams(6, 2, key_value_memory_dict=one.allocate_inference_cache(2, 6))
    with torch.no_grad():
        parts = [one(ids[:, :3], inference_params=params).logits]
        for i in range(3, 6):
            params.seqlen_offset = i
            parts.append(one(ids[:, i : i + 1], inference_params=params).logits)
        assert relative_error(torch.cat(parts, 1), one(ids).logits) <= TOLERANCE[torch.float32]
    params.reset(6, 2)
    assert params.seqlen_offset == 0


def test_text_ends_and_goes_on_as_it_is_told() -> None:
    one, ids = model(), torch.randint(13, (1, 3))
    plain = one.generate(ids, 10)
    stop = int(plain[0, 5])
    ended = one.generate(ids, 10, eos_token_id=stop)
    first = 3 + int((plain[0, 3:] == stop).nonzero()[0])
    assert torch.equal(ended, plain[:, : first + 1])
    teacher = torch.randint(13, (1, 8))
    told = one.generate(ids, 10, teacher_outputs=teacher)
    assert torch.equal(told[:, 3:8], teacher[:, 3:])
    assert torch.equal(told[:, 8:], one(told).logits[:, 7:-1].argmax(-1))
    assert one.generate(ids, 40, vocab_size=2).max() <= max(1, int(ids.max()))
    assert one.generate(ids, 2).shape == (1, 4)  # one at least
    unlike = one.generate(ids, 10, repetition_penalty=1e6, vocab_size=13)[0]
    assert unlike.unique().numel() == 7 + ids.unique().numel()
    heard: list[Tensor] = []
    one.generate(ids, 6, streamer=SimpleNamespace(put=heard.append, end=lambda: heard.append(torch.empty(1, 0).long())))
    assert torch.equal(torch.cat(heard, 1), one.generate(ids, 6))


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 0}, {0, 1, 2, 3}),
        ({"top_k": 0, "top_p": 0.75}, {0, 1}),
        ({"top_k": 3, "top_p": 1.0}, {0, 1, 2}),
        ({"top_k": 0, "min_p": 0.3}, {0, 1}),
        ({"top_k": 0, "temperature": 0.01}, {0}),
    ],
)
def test_tokens_are_drawn_from_those_that_are_allowed(options: dict[str, float], possible: set[int]) -> None:
    logits = torch.tensor([0.6, 0.25, 0.1, 0.05]).log().expand(300, 4)
    kept = logits.clone()
    assert set(sample(logits, **options).tolist()) == possible
    assert torch.equal(logits, kept)


def test_filters_set_logits_apart_in_place() -> None:
    names = importlib.import_module("mamba_ssm.utils.generation")
    probabilities = torch.tensor([[0.1, 0.6, 0.05, 0.25]])
    for filtered, value, left in (("top_k", 3, [0, 1, 3]), ("top_p", 0.8, [1, 3]), ("min_p", 0.4, [1, 3])):
        for given, kept in ((value, left), (1.5 if filtered != "top_k" else 4, [0, 1, 2, 3])):
            logits = probabilities.log()
            getattr(names, f"modify_logits_for_{filtered}_filtering")(logits, given)
            assert logits.isfinite().nonzero()[:, 1].tolist() == kept
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    names.modify_logit_for_repetition_penalty(logits, torch.tensor([[0, 1, 1]]), 2.0)
    assert logits.tolist() == [[1.0, -4.0, 1.0]]


def test_a_model_comes_back_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, folder, ids = model(), tmp_path / "a model ü", torch.randint(13, (1, 4))
    one.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "pytorch_model.bin"]
    names = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
    again = names.MambaLMHeadModel.from_pretrained(str(folder))
    assert torch.equal(again(ids).logits, one(ids).logits)
    assert MambaLMHeadModel.from_pretrained(folder, dtype=torch.float64).lm_head.weight.dtype == torch.float64
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"some/model is no folder; give one with config.json and pytorch_model.bin"):
        names.load_config_hf("some/model")
    hub = ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda name, file: str(folder / file)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert torch.equal(MambaLMHeadModel.from_pretrained("some/model")(ids).logits, one(ids).logits)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: create_block(8, attn_layer_idx=[0], layer_idx=0), NotImplementedError, "MHA is not provided: layers"),
        (lambda: create_block(8, ssm_cfg={"layer": "Mamba2"}), NotImplementedError, "Mamba2 is not provided: Mamba-2"),
        (lambda: create_block(8, ssm_cfg={"layer": "S4"}), ValueError, "layer 'S4'; it must be 'Mamba1', 'Mamba2'"),
    ],
)
def test_what_a_model_cannot_have_is_said(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
