"""Answers that a model is made to give: its own greedy ones, and what it says of every token of a given one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from .. import host


@torch.no_grad()
def greedy_answers(model: Any, inputs: Mapping[str, Any], max_new_tokens: int) -> list[Tensor]:
    """The likeliest token again and again, without what a checkpoint's generation config does to the scores.

    Args:
        model: any supported model, under whatever is attached to it.
        inputs: a batch of prompts, padded on the left, as `gprune.prompt.build_inputs` makes them.
        max_new_tokens: of an answer.

    Returns:
        int64 [n] per prompt, n >= 1, up to and including the token that ends an answer, if it came.
    """
    settings = model.generation_config
    plain = copy.copy(model)
    plain.generation_config = GenerationConfig(eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id)
    output = plain.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ends = output.new_tensor([token for token in ends if token is not None])
    answers = output[:, inputs["input_ids"].shape[1] :]
    lengths = [int(ended.int().argmax()) + 1 if ended.any() else len(ended) for ended in torch.isin(answers, ends)]
    return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]


@torch.no_grad()
def answer_logits(model: Any, inputs: Mapping[str, Any], answers: Sequence[Tensor]) -> list[Tensor]:
    """`trained_logits` without gradients."""
    return trained_logits(model, inputs, answers)


def trained_logits(model: Any, inputs: Mapping[str, Any], answers: Sequence[Tensor]) -> list[Tensor]:
    """Of every token of given answers the logits before it, as step-by-step decoding of the same tokens has them.

    One forward for the prompts alone, and one on their cache for the answers. So a method that drops visual tokens by
    what the prompt asks, or its last token looks at, does so without having seen the answer.

    Args:
        model: any supported model, under whatever is attached to it.
        inputs: a batch of prompts, padded on the left, as `gprune.prompt.build_inputs` makes them.
        answers: int64 [n] per prompt, n >= 1.

    Returns:
        Floating [n, vocabulary] per prompt, in the dtype of the model.
    """
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    logits, mask = output.logits[:, -1:], inputs["attention_mask"]  # some models return those of all columns
    # Nothing sees what follows it, so that padding on the right needs no mask.
    tokens = pad_sequence(list(answers), batch_first=True)[:, :-1]
    if tokens.shape[1]:
        mask = torch.cat([mask, mask.new_ones(tokens.shape)], dim=1)
        call = {"input_ids": tokens, "attention_mask": mask, **_positions(model, mask, tokens.shape[1])}
        call |= host.with_cache(model.forward, host.cache_in(output))
        logits = torch.cat([logits, model(**call, use_cache=True).logits], dim=1)
    return [row[: len(answer)] for row, answer in zip(logits, answers, strict=True)]


def _positions(model: Any, mask: Tensor, count: int) -> dict[str, Tensor]:
    """The position ids of the last `count` columns, where a model with a cache cannot number several by itself."""
    if not host.has_rope_3d(model):
        return {}
    tokens = (mask.long().cumsum(dim=1) - 1)[:, -count:]
    offset = host.rope_offset(model)  # None, and read by nothing, where a pruned prompt is gone on with
    rope = tokens if offset is None else tokens + offset.to(tokens.device)
    return {"position_ids": torch.cat([tokens[None], rope.expand(3, -1, -1)])}
