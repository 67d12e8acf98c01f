"""What other people's Mamba code asks of the modules that it imports, written down without any of
that code: every name, how forks call it, and how many results they unpack.

``broken`` is a list of what is not kept; test_drop_in.py wants it empty, and plants omissions.
"""

import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

SCANS = ("selective_scan_fn", "selective_scan_ref", "SelectiveScanFn")
INNER = (
    "mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn", "bimamba_inner_ref",
    "MambaInnerFn", "MambaInnerFnNoOutProj", "BiMambaInnerFn",
)  # fmt: skip  # a list of names
NORMS = ("RMSNorm", "layer_norm_fn", "rms_norm_fn")
LAYER_NORM = (*NORMS, "layer_norm_linear_fn", "_layer_norm_fwd", "_layer_norm_bwd")
CONVOLUTION = ("causal_conv1d_fn", "causal_conv1d_update")
HUB = ("load_config_hf", "load_state_dict_hf")
RAW_SCANS = ("", "_core", "_nrow", "_oflex", "_ndstate")
NAMES: dict[str, tuple[str, ...]] = {
    **{f"selective_scan_cuda{end}": ("fwd", "bwd") for end in RAW_SCANS},
    "causal_conv1d_cuda": ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"),
    "causal_conv1d": ("causal_conv1d_fn", "causal_conv1d_update", "__version__"),
    "causal_conv1d.causal_conv1d_interface": (
        *CONVOLUTION, "causal_conv1d_ref", "causal_conv1d_update_ref", "CausalConv1dFn",
    ),
    "causal_conv1d.causal_conv1d_varlen": ("causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"),
    "causal_conv1d.cpp_functions": (
        "causal_conv1d_fwd_function", "causal_conv1d_bwd_function", "causal_conv1d_update_function",
    ),
    "selective_scan": SCANS,
    "mamba_ssm": (
        "__version__", "Mamba", "selective_scan_fn", "mamba_inner_fn", "Mamba2", "Mamba3", "MambaLMHeadModel",
    ),
    "mamba_ssm.ops.selective_scan_interface": SCANS + INNER,
    "mamba_ssm.ops.triton.layer_norm": LAYER_NORM,
    "mamba_ssm.ops.triton.layernorm": LAYER_NORM,
    "mamba_ssm.ops.triton.layernorm_gated": ("RMSNorm", "LayerNorm", "rmsnorm_fn", "layernorm_fn"),
    "mamba_ssm.ops.triton.selective_state_update": ("selective_state_update", "selective_state_update_ref"),
    "mamba_ssm.modules.mamba_simple": (
        "Mamba", "Block", "selective_scan_fn", "mamba_inner_fn", "selective_state_update", *CONVOLUTION, *NORMS,
    ),
    "mamba_ssm.modules.block": ("Block", "RMSNorm", "layer_norm_fn"),
    "mamba_ssm.modules.mlp": ("GatedMLP",),
    "mamba_ssm.modules.mha": ("MHA",),
    "mamba_ssm.modules.mamba2": ("Mamba2",),
    "mamba_ssm.models.mixer_seq_simple": (
        "MambaLMHeadModel", "MixerModel", "create_block", "_init_weights", "MambaConfig", "Mamba", "Mamba2", "Mamba3",
        "MHA", "GatedMLP", "Block", "GenerationMixin", *HUB, *NORMS,
    ),
    "mamba_ssm.models.config_mamba": ("MambaConfig",),
    "mamba_ssm.distributed.tensor_parallel": ("ColumnParallelLinear", "RowParallelLinear"),
    "mamba_ssm.distributed.distributed_utils": ("all_reduce", "reduce_scatter"),
    "mamba_ssm.utils.generation": (
        "GenerationMixin", "InferenceParams", "decode", "sample", "update_graph_cache",
        "modify_logits_for_min_p_filtering", "modify_logits_for_top_k_filtering", "modify_logits_for_top_p_filtering",
        "modify_logit_for_repetition_penalty",
    ),
    "mamba_ssm.utils.hf": HUB,
    "mamba_ssm.utils.torch": ("custom_fwd", "custom_bwd"),
}  # fmt: skip  # a table
MISSING = {  # what may be imported, and says in one sentence that it is not provided
    "mamba_ssm": ("Mamba2", "Mamba3"),
    "mamba_ssm.modules.mamba2": ("Mamba2",),
    "mamba_ssm.modules.mha": ("MHA",),
    "mamba_ssm.models.mixer_seq_simple": ("Mamba2", "Mamba3", "MHA"),
    "mamba_ssm.ops.triton.layer_norm": ("_layer_norm_fwd", "_layer_norm_bwd"),
    "mamba_ssm.utils.generation": ("update_graph_cache",),
    "mamba_ssm.distributed.tensor_parallel": ("ColumnParallelLinear", "RowParallelLinear"),
    "mamba_ssm.distributed.distributed_utils": ("all_reduce", "reduce_scatter"),
}
SCAN = "u delta A B C D z delta_bias delta_softplus return_last_state"
INTERFACE = "mamba_ssm.ops.selective_scan_interface"
WEIGHTS = "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight"
PROJECTED = "B C D delta_bias B_proj_bias C_proj_bias delta_softplus"
RMS = "checkpoint_lvl b_rms_weight c_rms_weight dt_rms_weight b_c_dt_rms_eps"
SUM = "x weight bias residual x1 weight1 bias1 eps dropout_p rowscale prenorm residual_in_fp32"
OF_BLOCK = "norm_epsilon rms_norm residual_in_fp32 fused_add_norm layer_idx device dtype"
SAMPLING = "top_k top_p min_p temperature"
MAMBA = (
    "d_model d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias bias use_fast_path "
    "layer_idx device dtype bimamba_type nslices if_divide_out init_layer_scale"
)
# The parameters that a function must take by these names; those before "/" in this order, too.
PARAMETERS = {
    "mamba_ssm.selective_scan_fn": f"{SCAN} /",
    "selective_scan.selective_scan_fn": f"{SCAN} / nrows",
    f"{INTERFACE}.selective_scan_ref": f"{SCAN} /",
    f"{INTERFACE}.mamba_inner_fn": f"{WEIGHTS} out_proj_weight out_proj_bias A {PROJECTED} {RMS} /",
    f"{INTERFACE}.mamba_inner_fn_no_out_proj": f"{WEIGHTS} A {PROJECTED} checkpoint_lvl /",
    f"{INTERFACE}.MambaInnerFn.apply": f"{WEIGHTS} out_proj_weight out_proj_bias A {PROJECTED} {RMS} /",
    f"{INTERFACE}.MambaInnerFnNoOutProj.apply": f"{WEIGHTS} A {PROJECTED} checkpoint_lvl /",
    f"{INTERFACE}.BiMambaInnerFn.apply": f"{WEIGHTS} out_proj_weight out_proj_bias A A_b {PROJECTED} /",
    f"{INTERFACE}.bimamba_inner_fn": f"{WEIGHTS} out_proj_weight out_proj_bias A A_b {PROJECTED} /",
    "mamba_ssm.Mamba": f"{MAMBA} /",
    "mamba_ssm.modules.mamba_simple.Block": "dim mixer_cls norm_cls fused_add_norm residual_in_fp32 /",
    "mamba_ssm.modules.block.Block": "dim mixer_cls mlp_cls norm_cls fused_add_norm residual_in_fp32 /",
    "mamba_ssm.ops.triton.layernorm.layer_norm_fn": f"{SUM} is_rms_norm return_dropout_mask /",
    "mamba_ssm.ops.triton.layernorm.rms_norm_fn": f"{SUM} return_dropout_mask /",
    "mamba_ssm.ops.triton.layernorm.RMSNorm": "hidden_size eps dropout_p device dtype /",
    "mamba_ssm.ops.triton.layer_norm.layer_norm_linear_fn": (
        "x norm_weight norm_bias linear_weight linear_bias residual eps prenorm residual_in_fp32 is_rms_norm /"
    ),
    "mamba_ssm.ops.triton.layernorm_gated.rmsnorm_fn": "x weight bias z eps group_size norm_before_gate /",
    "mamba_ssm.ops.triton.layernorm_gated.RMSNorm": "hidden_size eps group_size norm_before_gate device dtype /",
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update_ref": (
        "state x dt A B C D z dt_bias dt_softplus /"
    ),
    "mamba_ssm.models.config_mamba.MambaConfig": (
        "d_model d_intermediate n_layer vocab_size ssm_cfg attn_layer_idx attn_cfg rms_norm residual_in_fp32 "
        "fused_add_norm pad_vocab_size_multiple tie_embeddings /"
    ),
    "mamba_ssm.models.mixer_seq_simple.create_block": (
        f"d_model d_intermediate ssm_cfg attn_layer_idx attn_cfg {OF_BLOCK} /"
    ),
    "mamba_ssm.models.mixer_seq_simple._init_weights": (
        "module n_layer initializer_range rescale_prenorm_residual n_residuals_per_layer /"
    ),
    "mamba_ssm.models.mixer_seq_simple.MixerModel": (
        "d_model n_layer d_intermediate vocab_size ssm_cfg attn_layer_idx attn_cfg norm_epsilon rms_norm "
        "initializer_cfg fused_add_norm residual_in_fp32 device dtype /"
    ),
    "mamba_ssm.MambaLMHeadModel": "config initializer_cfg device dtype /",
    "mamba_ssm.MambaLMHeadModel.forward": "self input_ids position_ids inference_params num_last_tokens /",
    "mamba_ssm.MambaLMHeadModel.from_pretrained": "pretrained_model_name device dtype /",
    "mamba_ssm.MambaLMHeadModel.save_pretrained": "self save_directory /",
    "mamba_ssm.MambaLMHeadModel.generate": (
        f"self input_ids max_length {SAMPLING} return_dict_in_generate output_scores / repetition_penalty "
        "eos_token_id teacher_outputs vocab_size cg enable_timing streamer"
    ),
    "mamba_ssm.modules.mlp.GatedMLP": (
        "in_features hidden_features out_features activation bias multiple_of device dtype /"
    ),
    "mamba_ssm.utils.generation.decode": (
        f"input_ids model max_length {SAMPLING} repetition_penalty eos_token_id teacher_outputs vocab_size cg "
        "enable_timing output_scores streamer /"
    ),
    "mamba_ssm.utils.generation.sample": f"logits {SAMPLING} /",
    "mamba_ssm.utils.generation.InferenceParams": (
        "max_seqlen max_batch_size seqlen_offset batch_size_offset key_value_memory_dict lengths_per_sample /"
    ),
    "mamba_ssm.utils.hf.load_state_dict_hf": "model_name device dtype /",
    "causal_conv1d.causal_conv1d_varlen.causal_conv1d_varlen_states": "x cu_seqlens state_len /",
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update": (
        "state x dt A B C D z dt_bias dt_softplus state_batch_indices /"
    ),
    "causal_conv1d.causal_conv1d_fn": (
        "x weight bias seq_idx initial_states return_final_states final_states_out activation /"
    ),
    "causal_conv1d.causal_conv1d_update": (
        "x conv_state weight bias activation cache_seqlens conv_state_indices /"
    ),
}  # fmt: skip  # a table


def broken() -> list[str]:
    """What the modules do not keep, each in a line."""
    return [*absent(), *_signatures(), *_tuples(), *_norms(), *_models()]


def found(place: str) -> Any:
    """``module.name``, or a method of such a class."""
    module, _, name = place.rpartition(".")
    owner = found(module) if module.rpartition(".")[2][:1].isupper() else importlib.import_module(module)
    return getattr(owner, name)


def absent() -> Iterator[str]:
    for module, names in NAMES.items():
        try:
            members = vars(importlib.import_module(module))
        except ImportError as error:
            yield f"{module}: {error}"
            continue
        yield from (f"{module} has no {name}" for name in names if name not in members)
    for module, names in MISSING.items():
        for name in names:
            try:
                found(f"{module}.{name}")(1)
                yield f"{module}.{name} does not say that it is missing"
            except NotImplementedError as refusal:
                if name not in str(refusal) or ": " not in str(refusal):
                    yield f"{module}.{name} says only: {refusal}"
            except (ImportError, AttributeError):
                pass  # reported above


def _signatures() -> Iterator[str]:
    for place, words in PARAMETERS.items():
        ordered, _, others = words.partition("/")
        try:
            given = list(inspect.signature(found(place)).parameters)
        except (ImportError, AttributeError, ValueError):
            continue  # reported above
        if given[: len(ordered.split())] != ordered.split():
            yield f"{place} takes {given}, not first {ordered.split()}"
        yield from (f"{place} takes no {name}" for name in others.split() if name not in given)


def tensors(dtype: torch.dtype = torch.float32, l: int = 5) -> dict[str, Tensor]:
    """Of a scan of 4 channels in 2 groups, with 2 states."""
    b, d, n = 2, 4, 2
    made = {"u": torch.randn(b, d, l).to(dtype), "delta": torch.rand(b, d, l).to(dtype), "A": -torch.rand(d, n)}
    made |= {name: torch.randn(b, 2, n, l).to(dtype) for name in "BC"}
    return made | {"D": torch.randn(d), "z": torch.randn(b, d, l).to(dtype), "delta_bias": torch.rand(d)}


def scan_calls(end: str, t: dict[str, Tensor], z: bool = False, recompute: bool = False) -> tuple[list, list]:
    """Both passes of a compiled scan as its callers make them."""
    module = importlib.import_module(f"selective_scan_cuda{end}")
    u, delta, A, B, C, D, gate, bias = t.values()
    if end == "":
        out = module.fwd(u, delta, A, B, C, D, gate if z else None, bias, True)
        dz = torch.empty(u.shape[0], 2 * u.shape[1], u.shape[2]).to(u).chunk(2, 1)[1] if recompute else None
        back = module.bwd(
            u, delta, A, B, C, D, gate if z else None, bias, _dout(out[0]), out[1], out[0] if z else None, dz, True,
            recompute,
        )  # fmt: skip  # as forks call it
        return out, back
    if end == "_ndstate":
        A, B, C = A[:, 0], B[:, :, 0], C[:, :, 0]
    last = (1, True) if end == "_oflex" else (1,)
    out = module.fwd(u, delta, A, B, C, D, bias, True, *last)
    return out, module.bwd(u, delta, A, B, C, D, bias, _dout(out[0]), out[1], True, 1)


def _dout(out: Tensor) -> Tensor:
    """A gradient whose steps do not lie side by side."""
    return torch.ones(out.shape[2], *out.shape[:2], dtype=out.dtype).permute(1, 2, 0)


CONVOLUTIONS: dict[str, tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]], int]] = {
    # Of x, weight, bias, dout and dx: the arguments in the ways of the releases, and how many
    # results of backward are unpacked, no more and no fewer.
    "4 and 6": (lambda x, w, b, dy, dx: (x, w, b, True), lambda x, w, b, dy, dx: (x, w, b, dy, dx, True), 3),
    "5 and 7": (
        lambda x, w, b, dy, dx: (x, w, b, None, True), lambda x, w, b, dy, dx: (x, w, b, dy, None, dx, True), 3,
    ),
    "7 and 10": (
        lambda x, w, b, dy, dx: (x, w, b, None, None, None, True),
        lambda x, w, b, dy, dx: (x, w, b, dy, None, None, None, dx, False, True),
        4,
    ),
    "7 and 5": (
        lambda x, w, b, dy, dx: (x, w, b, None, None, None, True),
        lambda x, w, b, dy, dx: (x, w, b, dy, True),
        3,
    ),
}  # fmt: skip  # a table


def _tuples() -> Iterator[str]:
    wanted = {  # results of forward and backward
        ("", False, False): (2, 7), ("", True, False): (3, 8), ("", True, True): (3, 9),
        **{(end, False, False): (2, 7) for end in RAW_SCANS[1:]},
    }  # fmt: skip  # a table
    for (end, z, recompute), counts in wanted.items():
        try:
            found_counts = tuple(map(len, scan_calls(end, tensors(), z, recompute)))
        except (ImportError, AttributeError, TypeError, IndexError) as error:
            yield f"selective_scan_cuda{end}: {error}"
            continue
        if found_counts != counts:
            yield f"selective_scan_cuda{end} with z {z}, out_z {recompute} returns {found_counts}, not {counts}"
    x, weight, bias = torch.randn(2, 4, 5), torch.randn(4, 3), torch.randn(4)
    for way, (forward, backward, results) in CONVOLUTIONS.items():
        given = (x, weight, bias, torch.ones_like(x), torch.empty_like(x))
        try:
            module = importlib.import_module("causal_conv1d_cuda")
            shape = module.causal_conv1d_fwd(*forward(*given)).shape
            count = len(module.causal_conv1d_bwd(*backward(*given)))
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            yield f"causal_conv1d_cuda with {way} arguments: {error}"
            continue
        if shape != x.shape or count != results:
            yield f"causal_conv1d_cuda with {way} arguments returns {tuple(shape)} and {count} results, not {results}"


def _norms() -> Iterator[str]:
    """How many results a norm has, by what was asked for."""
    x, weight = torch.randn(2, 3), torch.ones(3)
    for prenorm, second, masks in itertools.product((False, True), repeat=3):
        wanted = 1 + prenorm + second + 2 * masks
        try:
            fn = found("mamba_ssm.ops.triton.layer_norm.layer_norm_fn")
            y = fn(x, weight, None, weight1=weight if second else None, prenorm=prenorm, return_dropout_mask=masks)
        except (ImportError, AttributeError, TypeError) as error:
            yield f"layer_norm_fn: {error}"
            return
        count = len(y) if isinstance(y, tuple) else 1
        if count != wanted:
            yield f"layer_norm_fn with prenorm {prenorm}, weight1 {second}, masks {masks} returns {count}, not {wanted}"


def _models() -> Iterator[str]:
    """What a block, a language model and what it generates are read by."""
    ids = torch.zeros(2, 3, dtype=torch.long)
    try:
        config = found("mamba_ssm.models.config_mamba.MambaConfig")(4, n_layer=1, vocab_size=5, ssm_cfg={"d_state": 2})
        model = found("mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel")(config)
        (layer,) = model.backbone.layers
        if len(layer(torch.randn(1, 3, 4))) != 2:
            yield "a block does not return what it mixed and the residual"
        if tuple(model(ids).logits.shape) != (2, 3, 8):
            yield f"a model of 5 tokens returns {tuple(model(ids).logits.shape)}, not logits of 8 for each step"
        made = model.generate(ids, 5, return_dict_in_generate=True, output_scores=True)
        if tuple(made.sequences.shape) != (2, 5) or len(made.scores) != 2:
            yield f"generate returns {tuple(made.sequences.shape)} tokens and {len(made.scores)} scores, not 5 and 2"
        if tuple(model.generate(input_ids=ids, max_length=5, cg=True).shape) != (2, 5):
            yield "generate does not return the tokens alone"
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        yield f"a language model: {error}"
