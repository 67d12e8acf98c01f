"""``mamba_ssm.utils.generation``: tokens one by one, from a model that keeps its states.

Facts from https://github.com/state-spaces/mamba/blob/main/mamba_ssm/utils/generation.py.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class InferenceParams:
    """Where a text that is being generated stands: the states of each layer, and the steps so
    far."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew, with the same states' memory."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class Generated:
    """sequences: tokens (b, l), the given ones first. scores: of each new token (b, vocabulary), or
    None where they were not asked for. seconds: how long it took."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None
    seconds: float


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Set logits to -inf, in place, whose tokens are less probable than ``min_p`` times the most
    probable; an ``min_p`` outside of 0 to 1 leaves all."""
    if 0 < min_p < 1:
        probabilities = logits.softmax(-1)
        logits.masked_fill_(probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf"))


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Set all but the ``top_k`` largest logits to -inf, in place."""
    logits.masked_fill_(logits < logits.topk(top_k).values[..., -1:], float("-inf"))


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Set logits to -inf, in place, but for the most probable tokens that together have at least
    ``top_p``; a ``top_p`` outside of 0 to 1 leaves all."""
    if 0 < top_p < 1:
        ascending, tokens = logits.sort(-1)
        rest = ascending.softmax(-1).cumsum(-1) <= 1 - top_p  # with all that is less probable
        logits.masked_fill_(torch.zeros_like(rest).scatter_(-1, tokens, rest), float("-inf"))


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Make tokens that came before less probable, in place (Keskar et al., "CTRL", 2019): logits
    (b, vocabulary) above 0 are divided by the penalty, others multiplied."""
    if repetition_penalty != 1:
        before = logits.gather(1, prev_output_tokens)
        penalised = torch.where(before < 0, before * repetition_penalty, before / repetition_penalty)
        logits.scatter_(1, prev_output_tokens, penalised)
    return logits


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Tokens (b,) from logits (b, vocabulary): the most probable one, or one drawn.

    Args:
        top_k: 1: the most probable; 0: from all; else from the ``top_k`` most probable.
        top_p, min_p: of these, draw only from the most probable that together have ``top_p``, and
        from those at least ``min_p`` times as probable as the most probable; 0: from all.
        temperature: what logits are divided by before they are drawn from.
    """
    if top_k == 1:
        return logits.argmax(-1)
    count = logits.shape[-1]
    candidates, tokens = logits.topk(min(top_k or count, count))
    candidates = candidates / temperature
    modify_logits_for_min_p_filtering(candidates, min_p)
    modify_logits_for_top_p_filtering(candidates, top_p)
    return tokens.gather(-1, candidates.softmax(-1).multinomial(1)).squeeze(-1)


@torch.no_grad()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Generated:
    """Continue input_ids (b, l) token by token up to ``max_length`` tokens, the given ones counted,
    or until all rows have ``eos_token_id``; at least by one.

    Args:
        model: called as ``MambaLMHeadModel`` is. top_k, top_p, min_p, temperature: as in
        ``sample``. repetition_penalty: as in ``modify_logit_for_repetition_penalty``.
        teacher_outputs: tokens (b, at most max_length) that are taken instead of drawn ones.
        vocab_size: how many of the logits are tokens. cg: CUDA graphs, which change no result, and
        are not used here. enable_timing: changes nothing, since ``seconds`` is always there.
        output_scores: keep the logits of each step. streamer: its ``put`` gets every token, its
        ``end`` is called last.
    """
    began = time.perf_counter()
    batch, given = len(input_ids), 0 if teacher_outputs is None else teacher_outputs.shape[1]
    params = InferenceParams(max_seqlen=max_length, max_batch_size=batch)
    sequences, tokens, scores = input_ids, input_ids, []
    while True:
        if streamer is not None:
            streamer.put(tokens.cpu())
        done = params.seqlen_offset
        if done and ((eos_token_id is not None and bool((tokens == eos_token_id).all())) or done >= max_length - 1):
            break
        positions = torch.full((batch, 1), done, dtype=torch.long, device=input_ids.device) if done else None
        logits = model(tokens, position_ids=positions, inference_params=params, num_last_tokens=1).logits
        logits = logits.squeeze(1)[..., :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        params.seqlen_offset = done = done + tokens.shape[1]
        logits = modify_logit_for_repetition_penalty(logits, sequences, repetition_penalty)
        if teacher_outputs is not None and done < given:
            tokens = teacher_outputs[:, done : done + 1]
        else:
            tokens = sample(logits, top_k, top_p, min_p, temperature).unsqueeze(1)
        sequences = torch.cat([sequences, tokens], 1)
    if streamer is not None:
        streamer.end()
    sequences.sum().item()  # waits for a GPU
    return Generated(sequences, tuple(scores) if output_scores else None, time.perf_counter() - began)


class GenerationMixin:
    """What ``MambaLMHeadModel`` has to generate text."""

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        repetition_penalty: float = 1.0,
        eos_token_id: int | None = None,
        teacher_outputs: Tensor | None = None,
        vocab_size: int | None = None,
        cg: bool = False,
        enable_timing: bool = False,
        streamer: Any = None,
    ) -> Tensor | Generated:
        """``decode``; the tokens alone unless ``return_dict_in_generate``."""
        found = decode(
            input_ids, self, max_length, top_k, top_p, min_p, temperature, repetition_penalty, eos_token_id,
            teacher_outputs, vocab_size, cg, enable_timing, output_scores, streamer,
        )  # fmt: skip  # in the function's order
        return found if return_dict_in_generate else found.sequences

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[int, Any]:
        """The states of every layer; a model has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no allocate_inference_cache; a model defines it")
