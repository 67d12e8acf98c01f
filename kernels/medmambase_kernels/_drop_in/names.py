"""The names that other people's Mamba code imports: which module has which, what stands behind
each, and what is not provided."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from medmambase_kernels._drop_in.missing import GRAPHS, MAMBA_2, MHA, PASSES

VERSION = "2.2.4"  # of mamba_ssm and causal_conv1d, as far as code asks for it


@dataclass(frozen=True)
class Answer:
    """A module: its names, each with ``file.name`` of ours; the names that can be imported and
    raise one sentence when they are used; and plain values."""

    names: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)


def _same(file: str, *names: str) -> dict[str, str]:
    return {name: f"{file}.{name}" for name in names}


_FUNCTIONS = ("MambaInnerFn", "MambaInnerFnNoOutProj", "BiMambaInnerFn")
_INNER = ("mamba_inner_fn", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn", "mamba_inner_ref", "bimamba_inner_ref")
_SCAN = _same("interface", "selective_scan_fn", "selective_scan_ref", "SelectiveScanFn")
_NORM_NAMES = _same("norms", "RMSNorm", "layer_norm_fn", "rms_norm_fn")
_NORMS = Answer(
    _NORM_NAMES | _same("norms", "layer_norm_linear_fn"), dict.fromkeys(("_layer_norm_fwd", "_layer_norm_bwd"), PASSES)
)
_STEP = _same("blocks", "selective_state_update")
_MODEL = _same("language_model", "MambaLMHeadModel", "MixerModel", "create_block")
_LOGITS = (
    *(f"modify_logits_for_{kind}_filtering" for kind in ("min_p", "top_k", "top_p")),
    "modify_logit_for_repetition_penalty",
)
_HUB = _same("language_model", "load_config_hf", "load_state_dict_hf")
_CONVOLUTION = _same("convolutions", "causal_conv1d_fn", "causal_conv1d_update")
_CORE = Answer({"fwd": "scan_extensions.core_fwd", "bwd": "scan_extensions.core_bwd"})

ANSWERS: Mapping[str, Answer] = {
    # Compiled extensions, on which a fork's own Python runs.
    "selective_scan_cuda": Answer({"fwd": "scan_extensions.fwd", "bwd": "scan_extensions.bwd"}),
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_nrow": _CORE,
    "selective_scan_cuda_oflex": Answer({"fwd": "scan_extensions.oflex_fwd", "bwd": "scan_extensions.core_bwd"}),
    "selective_scan_cuda_ndstate": _CORE,
    "causal_conv1d_cuda": Answer(
        _same("convolutions", "causal_conv1d_fwd", "causal_conv1d_bwd")
        | {"causal_conv1d_update": "convolutions.raw_update"}
    ),
    # Packages, for code that brings no copy of them.
    "selective_scan": Answer(_SCAN),
    "causal_conv1d": Answer(_CONVOLUTION, values={"__version__": VERSION}),
    "causal_conv1d.causal_conv1d_interface": Answer(
        _CONVOLUTION | _same("convolutions", "CausalConv1dFn", "causal_conv1d_ref", "causal_conv1d_update_ref")
    ),
    "causal_conv1d.causal_conv1d_varlen": Answer(
        _same("packed_sequences", "causal_conv1d_varlen_states")
        | {"causal_conv1d_varlen_states_ref": "packed_sequences.causal_conv1d_varlen_states"}
    ),
    "causal_conv1d.cpp_functions": Answer(
        {
            "causal_conv1d_fwd_function": "convolutions.cpp_fwd",
            "causal_conv1d_bwd_function": "convolutions.cpp_bwd",
            "causal_conv1d_update_function": "convolutions.cpp_update",
        }
    ),
    "mamba_ssm": Answer(
        _same("interface", "selective_scan_fn", "mamba_inner_fn")
        | _same("blocks", "Mamba")
        | _same("language_model", "MambaLMHeadModel"),
        dict.fromkeys(("Mamba2", "Mamba3"), MAMBA_2),
        {"__version__": VERSION},
    ),
    "mamba_ssm.ops": Answer(),
    "mamba_ssm.ops.selective_scan_interface": Answer(_SCAN | _same("interface", *_INNER, *_FUNCTIONS)),
    "mamba_ssm.ops.triton": Answer(),
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS,
    "mamba_ssm.ops.triton.layernorm_gated": Answer(
        _same("gated_norms", "RMSNorm", "LayerNorm", "rmsnorm_fn", "layernorm_fn")
    ),
    "mamba_ssm.ops.triton.selective_state_update": Answer(_STEP | _same("blocks", "selective_state_update_ref")),
    "mamba_ssm.ops.triton.ssd_combined": Answer(
        missing=dict.fromkeys(("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"), MAMBA_2)
    ),
    "mamba_ssm.modules": Answer(),
    "mamba_ssm.modules.mamba_simple": Answer(
        {"Mamba": "blocks.Mamba", "Block": "blocks.BlockOfOnce"}
        | _same("interface", "selective_scan_fn", "mamba_inner_fn")
        | _CONVOLUTION
        | _STEP
        | _NORM_NAMES
    ),
    "mamba_ssm.modules.block": Answer(_same("blocks", "Block") | _NORM_NAMES),
    "mamba_ssm.modules.mlp": Answer(_same("language_model", "GatedMLP")),
    "mamba_ssm.modules.mha": Answer(missing={"MHA": MHA}),
    "mamba_ssm.modules.mamba2": Answer(missing={"Mamba2": MAMBA_2}),
    "mamba_ssm.modules.mamba2_simple": Answer(missing={"Mamba2Simple": MAMBA_2}),
    "mamba_ssm.modules.mamba3": Answer(missing={"Mamba3": MAMBA_2}),
    "mamba_ssm.models": Answer(),
    "mamba_ssm.models.mixer_seq_simple": Answer(
        _MODEL
        | {"_init_weights": "language_model.init_weights"}
        | _same("language_model", "MambaConfig", "GatedMLP")
        | _same("blocks", "Mamba", "Block")
        | _same("generation", "GenerationMixin")
        | _HUB
        | _NORM_NAMES,
        {"Mamba2": MAMBA_2, "Mamba3": MAMBA_2, "MHA": MHA},
    ),
    "mamba_ssm.models.config_mamba": Answer(_same("language_model", "MambaConfig")),
    "mamba_ssm.distributed": Answer(),
    "mamba_ssm.distributed.tensor_parallel": Answer(
        missing=dict.fromkeys(("ColumnParallelLinear", "RowParallelLinear"), MAMBA_2)
    ),
    "mamba_ssm.distributed.distributed_utils": Answer(missing=dict.fromkeys(("all_reduce", "reduce_scatter"), MAMBA_2)),
    "mamba_ssm.utils": Answer(),
    "mamba_ssm.utils.generation": Answer(
        _same("generation", "InferenceParams", "GenerationMixin", "decode", "sample", *_LOGITS),
        {"update_graph_cache": GRAPHS},
    ),
    "mamba_ssm.utils.hf": Answer(_HUB),
    "mamba_ssm.utils.torch": Answer(_same("blocks", "custom_fwd", "custom_bwd")),
}
ROOTS = tuple(dict.fromkeys(name.partition(".")[0] for name in ANSWERS))
