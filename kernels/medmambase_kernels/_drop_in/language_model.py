"""``mamba_ssm.models``: the language model of Mamba-1, by its names and with its weights' names.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/models/mixer_seq_simple.py,
models/config_mamba.py, modules/mlp.py and utils/hf.py.
"""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels._drop_in.blocks import Block, Mamba
from medmambase_kernels._drop_in.generation import GenerationMixin
from medmambase_kernels._drop_in.missing import MAMBA_2, MHA, missing
from medmambase_kernels._drop_in.norms import RMSNorm, layer_norm_fn
from medmambase_kernels.arguments import check_factory, check_size

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"  # of a published model

_MIXERS: dict[str, Callable[..., nn.Module]] = {
    "Mamba1": Mamba,
    "Mamba2": missing("mamba_ssm", "Mamba2", MAMBA_2),
    "Mamba3": missing("mamba_ssm", "Mamba3", MAMBA_2),
}


@dataclass
class MambaConfig:
    """The sizes of a ``MambaLMHeadModel``.

    d_model, n_layer, vocab_size: width, blocks, tokens. d_intermediate: width of an MLP behind each
    mixer; 0: none. ssm_cfg: keywords of the mixers. attn_layer_idx, attn_cfg: layers of attention,
    which are not provided. pad_vocab_size_multiple: what the number of tokens is rounded up to.
    tie_embeddings: whether the head has the embedding's weights. The rest as in ``Block``.
    """

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


class GatedMLP(nn.Module):
    """fc2(y activation(gate)), y and gate the halves of fc1(x): (..., in_features) -> (...,
    out_features)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("in_features", in_features)
        check_size("multiple_of", multiple_of)
        for name, size in (("hidden_features", hidden_features), ("out_features", out_features)):
            if size is not None:
                check_size(name, size)
        check_factory(device, dtype)
        wished = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-wished // multiple_of) * multiple_of
        out_features = in_features if out_features is None else out_features
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features)."""
        y, gate = self.fc1(x).chunk(2, -1)
        out: Tensor = self.fc2(y * self.activation(gate))
        return out


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """A ``Block`` around a mixer and, if ``d_intermediate`` is above 0, an MLP.

    Raises NotImplementedError for a layer of attention, of Mamba-2 or Mamba-3; ValueError for
    another ``ssm_cfg["layer"]``.
    """
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    options = dict(ssm_cfg or {})
    kind = options.pop("layer", "Mamba1")
    if layer_idx is not None and layer_idx in (attn_layer_idx or ()):
        mixer: Callable[..., nn.Module] = partial(missing("mamba_ssm.modules.mha", "MHA", MHA))
    elif kind in _MIXERS:
        mixer = partial(_MIXERS[kind], layer_idx=layer_idx, **options, **made)
    else:
        raise ValueError(f"ssm_cfg has layer {kind!r}; it must be {', '.join(map(repr, _MIXERS))}")
    norm = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **made)
    mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **made)
    block = Block(d_model, mixer, mlp if d_intermediate else nn.Identity, norm, fused_add_norm, residual_in_fp32)
    block.layer_idx = layer_idx
    return block


def init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initialise one module, as ``Module.apply`` calls it: biases 0, embeddings normal, and what is
    added to the residual smaller by the square root of how often something is (GPT-2)."""
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.Linear) and bias is not None and not getattr(bias, "_no_reinit", False):
        nn.init.zeros_(bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        for name, weight in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
                with torch.no_grad():
                    weight.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """An embedding, ``n_layer`` blocks and a norm: tokens (b, l) -> (b, l, d_model).

    vocab_size: once came third, before there was an MLP; so three sizes are d_model, n_layer and
    vocab_size. initializer_cfg: keywords of the initialisation. The rest as in ``create_block``.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int = 0,
        vocab_size: int | None = None,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            d_intermediate, vocab_size = 0, d_intermediate
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        for name, size in (("d_model", d_model), ("n_layer", n_layer), ("vocab_size", vocab_size)):
            check_size(name, size)
        check_size("d_intermediate", d_intermediate, 0)
        check_factory(device, dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, d_model, **made)
        self.layers = nn.ModuleList(
            create_block(
                d_model, d_intermediate, ssm_cfg, attn_layer_idx, attn_cfg, norm_epsilon, rms_norm, residual_in_fp32,
                fused_add_norm, i, device, dtype,
            )
            for i in range(n_layer)
        )  # fmt: skip  # in the function's order
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **made)
        options = initializer_cfg or {}
        self.apply(partial(init_weights, n_layer=n_layer, n_residuals_per_layer=2 if d_intermediate else 1, **options))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[int, Any]:
        """The states of every layer, by its number."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype)  # type: ignore[operator]  # a Block
            for i, layer in enumerate(self.layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any) -> Tensor:
        """input_ids (b, l) -> (b, l, d_model). Other keywords go to the mixers."""
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=inference_params, **mixer_kwargs)
        norm = self.norm_f
        if not self.fused_add_norm:
            total = hidden if residual is None else hidden + residual
            out = norm(total.to(norm.weight.dtype))
        else:
            out = layer_norm_fn(
                hidden, norm.weight, norm.bias, residual, eps=norm.eps, residual_in_fp32=self.residual_in_fp32,
                is_rms_norm=isinstance(norm, RMSNorm),
            )  # fmt: skip  # tensors, options
        assert isinstance(out, Tensor)  # one norm alone
        return out


class CausalLMOutput(NamedTuple):
    """logits (b, l, vocabulary)."""

    logits: Tensor


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """``MixerModel`` and a head: tokens (b, l) -> logits (b, l, vocabulary)."""

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        step = check_size("config.pad_vocab_size_multiple", config.pad_vocab_size_multiple)
        check_size("config.vocab_size", config.vocab_size)
        vocab_size = -(-config.vocab_size // step) * step
        self.backbone = MixerModel(
            config.d_model, config.n_layer, config.d_intermediate, vocab_size, config.ssm_cfg, config.attn_layer_idx,
            config.attn_cfg, rms_norm=config.rms_norm, initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm, residual_in_fp32=config.residual_in_fp32, device=device, dtype=dtype,
        )  # fmt: skip  # sizes, options
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, device=device, dtype=dtype)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head have the embedding's weights, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[int, Any]:
        """The states of every layer, by its number."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """input_ids (b, l). num_last_tokens: of how many steps, from the end, the logits are made;
        0: of all. position_ids changes nothing."""
        hidden = self.backbone(input_ids, inference_params, **mixer_kwargs)
        return CausalLMOutput(self.lm_head(hidden[:, -num_last_tokens:]))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        initializer_cfg: dict[str, Any] | None = None,
    ) -> "MambaLMHeadModel":
        """A published model, by its folder or its name, as in ``load_config_hf``."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, initializer_cfg, device, dtype)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device, dtype))
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the configuration and the weights into a folder, for ``from_pretrained``."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / WEIGHTS)
        text = json.dumps(asdict(self.config), indent=4)
        (folder / CONFIG).write_text(text, encoding="utf-8", newline="\n")


def load_config_hf(model_name: str | Path) -> dict[str, Any]:
    """config.json of a model: of a folder with that file, or, for another name such as
    "state-spaces/mamba-130m", downloaded by ``huggingface_hub``, which must then be installed."""
    config: dict[str, Any] = json.loads(_file(model_name, CONFIG).read_text(encoding="utf-8"))
    return config


def load_state_dict_hf(
    model_name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights of a model, pytorch_model.bin, found as in ``load_config_hf``; tensors alone are
    read, no other objects."""
    loaded = torch.load(_file(model_name, WEIGHTS), map_location=device, weights_only=True)
    return {name: t if dtype is None else t.to(dtype) for name, t in loaded.items()}


def _file(model_name: str | Path, name: str) -> Path:
    if Path(model_name).is_dir():
        return Path(model_name) / name
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{model_name} is no folder; give one with {CONFIG} and {WEIGHTS}, or pip install huggingface_hub"
        ) from error
    return Path(hub.hf_hub_download(str(model_name), name))
