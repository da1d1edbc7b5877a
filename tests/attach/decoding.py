"""Beam search and sampling by the long way: the reference anew for every token, and no token is a placeholder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from families import FAMILIES, IMAGE, VIDEO
from packaging.version import Version
from reference import KeptPrompt, text_logits
from torch import Tensor

PLACEHOLDERS = [0, IMAGE, VIDEO]
"""Tokens that a model is kept from speaking: padding, which `generate()` reads a mask off, and those of images."""


def since(version: str) -> bool:
    """Whether the installed transformers is that version or a later one."""
    return Version(transformers.__version__) >= Version(version)


CACHE = "cache" if since("5.24") else "past_key_values"
"""What transformers calls the KV cache, as an argument and in outputs."""


def with_cache(cache: Any) -> dict[str, Any]:
    """The argument that hands over a KV cache."""
    return {CACHE: cache}


def cache_of(output: Any) -> Any:
    """The KV cache that came out."""
    return output[CACHE]


def present(*names: str) -> list[str]:
    """Those of these families that the installed transformers has."""
    return [name for name in names if name in FAMILIES]


MAIN = present("llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "internvl")
"""One family of each way to lay out an image, where a mode is too dear to cross with all."""


def next_scores(model: Any, prompts: Sequence[KeptPrompt]) -> Tensor:
    """[n, vocabulary]: log-probabilities of the next token of each prompt, -inf for placeholders."""
    scores = torch.stack([text_logits(model, prompt)[-1] for prompt in prompts]).log_softmax(-1)
    scores[:, PLACEHOLDERS] = -torch.inf
    return scores


def beam_search(model: Any, prompt: KeptPrompt, beams: int, steps: int) -> Tensor:
    """int64 [beams, steps]: the most probable continuations found, best first; with one beam, greedy decoding."""
    prompts, totals, tokens = [prompt], torch.zeros(1), torch.zeros(1, 0, dtype=torch.long)
    for _ in range(steps):
        scores = totals[:, None] + next_scores(model, prompts)
        totals, best = scores.flatten().topk(beams)
        parents, chosen = best // scores.shape[1], best % scores.shape[1]
        prompts = [prompts[parent].followed_by(model, token) for parent, token in zip(parents, chosen, strict=True)]
        tokens = torch.cat([tokens[parents], chosen[:, None]], dim=1)
    return tokens


def sample(model: Any, prompts: Sequence[KeptPrompt], steps: int) -> Tensor:
    """int64 [n, steps]: one continuation of each prompt, from torch's global generator."""
    tokens = []
    for _ in range(steps):
        tokens.append(next_scores(model, prompts).exp().multinomial(1)[:, 0])
        prompts = [prompt.followed_by(model, token) for prompt, token in zip(prompts, tokens[-1], strict=True)]
    return torch.stack(tokens, dim=1)


def joined(first: KeptPrompt, second: KeptPrompt) -> KeptPrompt:
    """Two prompts as one, the second numbered on from the first."""
    levels = zip(first.deepstack, second.deepstack, strict=True)
    return replace(
        first,
        ids=torch.cat([first.ids, second.ids]),
        embeddings=torch.cat([first.embeddings, second.embeddings], dim=1),
        positions=torch.cat([first.positions, second.positions + first.next_position], dim=-1),
        blocks=torch.cat([first.blocks, torch.where(second.blocks < 0, -1, second.blocks + len(first.ids))]),
        experts=torch.cat([first.experts, second.experts]),
        visual=torch.cat([first.visual, second.visual]),
        deepstack=[torch.cat(level) for level in levels],
    )
