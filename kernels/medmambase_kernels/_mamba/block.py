"""The Mamba block, with the names of mamba_ssm's weights and the keywords of its forks.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/modules/mamba_simple.py, and of
the forks hustvl/Vim (bimamba_type "v1" and "v2", if_divide_out, init_layer_scale) and
ge-xing/SegMamba ("v3", nslices).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmambase_kernels._mamba.causal_conv1d import causal_conv1d, final_states
from medmambase_kernels._mamba.inner import bimamba_inner_fn, mamba_inner_fn_no_out_proj
from medmambase_kernels._mamba.selective_state_update import selective_state_update
from medmambase_kernels.arguments import check_factory, check_flag, check_input, check_number, check_size, check_tensor
from medmambase_kernels.selective_scan import selective_scan

# The sets of weights that a kind of block has, by the ends of their names. "v1" has but another A.
_SETS = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}


class Mamba(nn.Module):
    """The block of Mamba (Gu and Dao, 2023): (b, l, d_model) -> (b, l, d_model).

    A projection to twice ``expand`` times the width, a causal convolution with SiLU, the selective
    scan with its gate, and a projection back. It loads the weights of mamba_ssm's ``Mamba`` and of
    its forks' key for key.

    Args:
        d_model, d_state, d_conv, expand: width, states of a channel, taps, and how much wider the
        inside is. dt_rank: of the projection of delta; "auto": a sixteenth of the width.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: of the steps that a new block starts from;
        dt_init is "random" or "constant".
        conv_bias, bias: whether the convolution and the projections have biases.
        layer_idx: which layer it is, where states are kept by ``inference_params``.
        bimamba_type: "none"; "v1", which also scans from the end with an A of its own; "v2", from
        the end with a set of weights of its own; "v3", as v2, and a third time over ``nslices``
        slices, step by step through all.
        if_divide_out: halve the sum of "v2". init_layer_scale: multiply the result by a learned
        ``gamma`` that starts there.
        use_fast_path: takes no other way here.
        device, dtype: of the weights; A_log and D are float32.

    Raises TypeError for an argument of another type; ValueError for a size or a number that cannot
    be, another bimamba_type or dt_init, hidden states of another shape or dtype, and a length that
    nslices does not divide.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str = "none",
        nslices: int = 5,
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if bimamba_type not in _SETS:
            raise ValueError(f"bimamba_type is {bimamba_type!r}; it must be {', '.join(map(repr, _SETS))}")
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init is {dt_init!r}; it must be 'random' or 'constant'")
        self.d_model, self.d_state = check_size("d_model", d_model), check_size("d_state", d_state)
        self.d_conv, self.expand = check_size("d_conv", d_conv), expand
        check_number("expand", expand, above=0)
        self.d_inner = int(expand * d_model)
        if self.d_inner < 1:
            raise ValueError(f"expand is {expand}; expand times d_model, {d_model}, must be at least 1")
        if isinstance(dt_rank, str) and dt_rank != "auto":
            raise ValueError(f"dt_rank is {dt_rank!r}; it must be 'auto' or a whole number, at least 1")
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else check_size("dt_rank", dt_rank)
        for name, value in (("dt_min", dt_min), ("dt_max", dt_max)):
            check_number(name, value, above=0)
        for name, value in (("dt_scale", dt_scale), ("dt_init_floor", dt_init_floor)):
            check_number(name, value, least=0)
        flags: list[tuple[str, object]] = [("conv_bias", conv_bias), ("bias", bias), ("use_fast_path", use_fast_path)]
        for name, flag in (*flags, ("if_divide_out", if_divide_out)):
            check_flag(name, False if flag is None else flag)  # code that this must run takes None for False
        if bimamba_type == "v3":
            check_size("nslices", nslices)
        if layer_idx is not None:
            check_size("layer_idx", layer_idx, 0)
        if init_layer_scale is not None:
            check_number("init_layer_scale", init_layer_scale)
        check_factory(device, dtype)
        self.use_fast_path, self.layer_idx, self.activation = use_fast_path, layer_idx, "silu"
        self.bimamba_type, self.nslices, self.if_divide_out = bimamba_type, nslices, if_divide_out
        self.init_layer_scale = init_layer_scale
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **made)
        self.act = nn.SiLU()
        for end in _SETS[bimamba_type]:
            self._add_weights(end, conv_bias, (dt_min, dt_max, dt_init_floor), dt_init, dt_scale, made)
        if bimamba_type == "v1":
            self.A_b_log = self._a_log(device)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def _add_weights(
        self,
        end: str,
        conv_bias: bool,
        steps: tuple[float, float, float],
        dt_init: str,
        dt_scale: float,
        made: dict[str, Any],
    ) -> None:
        """One set: convolution, projections, A and D, with names that end so."""
        d, w = self.d_inner, self.d_conv
        conv = nn.Conv1d(d, d, w, groups=d, padding=w - 1, bias=conv_bias, **made)
        x_proj = nn.Linear(d, self.dt_rank + 2 * self.d_state, bias=False, **made)
        dt_proj = nn.Linear(self.dt_rank, d, **made)
        limit = self.dt_rank**-0.5 * dt_scale
        low, high, floor = steps
        with torch.no_grad():
            if dt_init == "constant":
                dt_proj.weight.fill_(limit)
            else:
                dt_proj.weight.uniform_(-limit, limit)
            step = torch.rand(d, **made) * (math.log(high) - math.log(low)) + math.log(low)
            step = step.exp().clamp(min=floor)
            dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # which upstream's initialisation looks for
        D = nn.Parameter(torch.ones(d, device=made["device"]))
        D._no_weight_decay = True  # type: ignore[attr-defined]  # which trainings look for
        log = "A_log" if not end else f"A{end}_log"
        values = {"conv1d": conv, "x_proj": x_proj, "dt_proj": dt_proj, "D": D}
        for name, value in values.items():
            setattr(self, name + end, value)
        setattr(self, log, self._a_log(made["device"]))

    def _a_log(self, device: torch.device | str | None) -> nn.Parameter:
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        log = nn.Parameter(states.repeat(self.d_inner, 1).log())
        log._no_weight_decay = True  # type: ignore[attr-defined]  # which trainings look for
        return log

    def _weights(self, end: str) -> tuple[Any, ...]:
        """A set, in the order of ``mamba_inner_fn_no_out_proj`` up to A, then D and the bias."""
        conv, x_proj, dt_proj, D = (getattr(self, name + end) for name in ("conv1d", "x_proj", "dt_proj", "D"))
        A = -torch.exp(getattr(self, "A_log" if not end else f"A{end}_log").float())
        return conv.weight, conv.bias, x_proj.weight, dt_proj.weight, A, D.float(), dt_proj.bias.float()

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """hidden_states (b, l, d_model) -> (b, l, d_model).

        With ``inference_params`` the states after the last step are kept in its dictionary; once
        its ``seqlen_offset`` is above 0, hidden_states is one step that goes on from there.
        """
        self._check(hidden_states)
        states = None
        if inference_params is not None:
            states = self._states(inference_params, len(hidden_states))
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
        xz = (
            (self.in_proj.weight @ hidden_states.flatten(0, 1).t())
            .unflatten(1, hidden_states.shape[:2])
            .transpose(0, 1)
        )
        if self.in_proj.bias is not None:
            xz = xz + self.in_proj.bias.to(xz.dtype)[:, None]
        if self.bimamba_type == "v1":
            conv, conv_bias, x_proj, dt_proj, A, D, dt_bias = self._weights("")
            A_b = -torch.exp(self.A_b_log.float())
            out = bimamba_inner_fn(
                xz, conv, conv_bias, x_proj, dt_proj, self.out_proj.weight, self.out_proj.bias, A, A_b, None, None, D,
                dt_bias,
            )  # fmt: skip  # in the function's order
        else:
            inside = self._kept(xz, *states) if states is not None else self._inside(xz)
            out = F.linear(inside.transpose(1, 2), self.out_proj.weight, self.out_proj.bias)
        return out if self.init_layer_scale is None else out * self.gamma

    def _check(self, hidden_states: Tensor) -> None:
        if check_tensor("hidden_states", hidden_states).dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; it must be (batch, length, {self.d_model})"
            )
        check_input("hidden_states", hidden_states, self.in_proj.weight)

    def _one(self, xz: Tensor, end: str) -> Tensor:
        conv, conv_bias, x_proj, dt_proj, A, D, dt_bias = self._weights(end)
        return mamba_inner_fn_no_out_proj(xz, conv, conv_bias, x_proj, dt_proj, A, None, None, D, dt_bias)

    def _inside(self, xz: Tensor) -> Tensor:
        y = self._one(xz, "")
        if "_b" in _SETS[self.bimamba_type]:
            y = y + self._one(xz.flip(-1), "_b").flip(-1)
        if "_s" in _SETS[self.bimamba_type]:
            length = xz.shape[2]
            if length % self.nslices:
                raise ValueError(
                    f"hidden_states has {length} steps; nslices {self.nslices}, as given to Mamba, must divide them"
                )
            turned = xz.unflatten(2, (self.nslices, -1)).transpose(2, 3).flatten(2)
            y = y + self._one(turned, "_s").unflatten(2, (-1, self.nslices)).transpose(2, 3).flatten(2)
        return y / 2 if self.if_divide_out else y

    def _kept(self, xz: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """``_inside`` of a block with one set, whose states are written down."""
        self._only_forward()
        weight, bias, x_proj, dt_proj, A, D, dt_bias = self._weights("")
        x, z = xz.chunk(2, 1)
        conv_state.copy_(final_states(x, self.d_conv, None))
        convolved = causal_conv1d(x, weight.squeeze(1), bias, activation="silu")
        assert isinstance(convolved, Tensor)  # no final states were asked for
        b, _, l = x.shape
        low, B, C = F.linear(convolved.transpose(1, 2), x_proj).split([self.dt_rank, self.d_state, self.d_state], -1)
        delta = (dt_proj @ low.flatten(0, 1).t()).unflatten(1, (b, l)).transpose(0, 1)
        B, C = B.transpose(1, 2), C.transpose(1, 2)
        y, last = selective_scan(convolved, delta, A, B, C, D, z, dt_bias, True, True)
        ssm_state.copy_(last)
        return y

    def _only_forward(self) -> None:
        if self.bimamba_type != "none":
            raise NotImplementedError(
                f"bimamba_type {self.bimamba_type!r} reads a sequence from both ends, so it has no step; give 'none'"
            )

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One more step (b, 1, d_model) -> (b, 1, d_model), without gradients; both states, as
        ``allocate_inference_cache`` makes them, are updated in place and returned."""
        self._only_forward()
        self._check(hidden_states)
        if hidden_states.shape[1] != 1:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; step takes one step, (b, 1, d_model)"
            )
        for name, state, size in (("conv_state", conv_state, self.d_conv), ("ssm_state", ssm_state, self.d_state)):
            wanted = (len(hidden_states), self.d_inner, size)
            if check_tensor(name, state).shape != wanted:
                raise ValueError(f"{name} has shape {tuple(state.shape)}; it must be {wanted}")
        weight, bias, x_proj, dt_proj, A, D, dt_bias = self._weights("")
        with torch.no_grad():
            x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, -1)
            before = conv_state[..., 1:].clone() if self.d_conv > 1 else conv_state[..., :0]
            conv_state.copy_(torch.cat([before, x.unsqueeze(2).to(before.dtype)], 2))
            x = (conv_state.to(x.dtype) * weight.squeeze(1)).sum(2)
            x = F.silu(x if bias is None else x + bias)
            low, B, C = F.linear(x, x_proj).split([self.dt_rank, self.d_state, self.d_state], -1)
            y = selective_state_update(ssm_state, x, F.linear(low, dt_proj), A, B, C, D, z, dt_bias, True)
            out = self.out_proj(y)
            out = out if self.init_layer_scale is None else out * self.gamma
        return out.unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zeros for ``step``: the inputs of the convolution (b, d, d_conv), and the states of the
        scan (b, d, n). ``max_seqlen`` is not needed."""
        check_size("batch_size", batch_size, 0)
        weight = self.in_proj.weight
        made: dict[str, Any] = {"device": weight.device, "dtype": dtype or weight.dtype}
        conv, scan = (torch.zeros(batch_size, self.d_inner, size, **made) for size in (self.d_conv, self.d_state))
        return conv, scan

    def _states(self, inference_params: Any, batch: int) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise ValueError("layer_idx is None; give Mamba(layer_idx=...) to keep states by inference_params")
        kept = inference_params.key_value_memory_dict
        if self.layer_idx not in kept:
            kept[self.layer_idx] = self.allocate_inference_cache(batch, 0)
        states: tuple[Tensor, Tensor] = kept[self.layer_idx]
        return states
