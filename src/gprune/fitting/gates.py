"""Visual tokens that the LLM ignores, or not, by a number through which gradients reach their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad

from .. import host
from ..attach import family_of, uneven_attention
from ..errors import UnsupportedModel
from ..tokens import VisualTokens

CLOSED = 1e-8
"""Share of its attention that a dropped token keeps: too little to be seen, enough to have a gradient."""

SPREAD = 2.0
"""Standard deviation of the scores of a view; that of the noise is 1.3."""

_BIAS: ContextVar[Tensor | None] = ContextVar("gprune_bias", default=None)
"""What is added to the attention logits of this thread's calls: float32 [B, q], by column of the prompt."""


_PROBLEM = "a scorer cannot be trained on this model"


def check_gates(model: Any) -> None:
    """Raise UnsupportedModel unless gates on the tokens of a model's LLM are the same as dropping them."""
    family_of(model)
    decoder = host.decoder_of(model)
    if reason := uneven_attention(decoder.config):
        raise UnsupportedModel(f"{_PROBLEM}: {reason}; use an untrained method, such as GraphVote")
    if (backend := host.backend_of(decoder)) not in host.BACKENDS:
        raise UnsupportedModel(
            f"{_PROBLEM}: {backend} attention takes no gates; accepted are {' and '.join(host.BACKENDS)}; load it with "
            f"attn_implementation='sdpa'"
        )
    if model.dtype == torch.float16:
        raise UnsupportedModel(
            f"{_PROBLEM}: in float16 the gradients of dropped tokens vanish; load it in bfloat16 or float32"
        )
    host.check_layers(model)


def standardised(scores: Tensor, tokens: VisualTokens) -> Tensor:
    """Scores, float32 [N], brought to mean 0 and standard deviation `SPREAD` in every view.

    The order, which is all that a pruner goes by, stays. Left to themselves, scores grow until no noise changes the
    order and every sigmoid is flat, and nothing is learned any more.
    """
    result = scores
    for view in filter(len, tokens.views):
        own = scores[view.rows]
        centred = own - own.mean()
        size = (centred.square().mean() + 1e-12).sqrt()
        result = result.index_put((view.rows,), SPREAD * centred / size)
    return result


def straight_through(scores: Tensor, tokens: VisualTokens, counts: Sequence[int], noise: Tensor) -> Tensor:
    """1 for the tokens of each view with the highest noisy scores, 0 for the others; fixed rows are 1.

    Backward, a gate is the sigmoid of its score over the threshold, halfway between the last score that is kept and the
    first that is not (straight-through estimator). Noise of the Gumbel distribution draws the tokens without
    replacement in proportion to exp(score). Gradients of gates are bounded, see `bounded`.

    Args:
        scores: float32 [N].
        tokens: that are scored.
        counts: how many are kept of each view.
        noise: float32 [N], added to the scores; zeros for none.

    Returns:
        float32 [N].
    """
    noisy = scores + noise
    gates = torch.ones_like(scores)
    for view, k in zip(tokens.views, counts, strict=True):
        if k == len(view):
            continue
        own = noisy[view.rows]
        order = own.detach().sort(descending=True, stable=True)
        hard = torch.zeros_like(own).index_fill(0, order.indices[:k], 1.0)
        soft = (own - order.values[k - 1 : k + 1].mean()).sigmoid()
        gates = gates.index_put((view.rows,), hard + soft - soft.detach())
    if gates.requires_grad:
        gates.register_hook(bounded)
    return gates


def bounded(gradient: Tensor) -> Tensor:
    """Gradients of gates, g, as g / (1 + |g| / 2 m), m the mean of |g|: none counts more than twice the mean.

    What letting a token in would change is told at a gate of 0, where a token that would draw much attention seems to
    change many times what it would: its share is e / Z there, and e / (Z + e) when it is in. A few such tokens would
    else outweigh all others.
    """
    size = gradient.abs()
    return gradient / (1 + size / (2 * size.mean().clamp(min=torch.finfo(size.dtype).tiny)))


@contextmanager
def gated(model: Any, visual: Tensor, gates: Tensor) -> Iterator[None]:
    """While it lasts, all layers of the model's LLM attend to visual tokens as their gates say.

    The exponentials of attention are multiplied by the gate of the token that is looked at, as DynamicViT does (arXiv
    2106.02034): of a token whose gate is 0 nothing is seen, as if it had been dropped, and its gradient says what
    letting it in would change.

    Args:
        model: whose LLM has layers of full attention, with a backend of `host.BACKENDS`.
        visual: bool [B, q], the columns of the prompts that hold visual tokens.
        gates: floating [N] in [0, 1], of these in row-major order.
    """
    opened = gates.new_ones(visual.shape).masked_scatter(visual, gates)
    attentions = [host.attention_in(layer) for layer in host.layers_of(host.decoder_of(model))]
    configs = [attention.config for attention in attentions]
    token = _BIAS.set((CLOSED + (1 - CLOSED) * opened).log())
    try:
        for attention, config in zip(attentions, configs, strict=True):
            attention.config = host.with_backend(config, f"gprune_gated_{host.backend_of(config)}")
        yield
    finally:
        for attention, config in zip(attentions, configs, strict=True):
            attention.config = config
        _BIAS.reset(token)


def _gated(backend: str) -> Callable[..., Any]:
    def attention(module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        bias = _BIAS.get()
        if bias is not None:
            mask = _with_bias(mask, bias, query, key)
        return host.attend(backend, module, query, key, value, mask, **kwargs)

    return attention


for _backend in host.BACKENDS:
    host.register_backend(f"gprune_gated_{_backend}", _gated(_backend))


def _with_bias(mask: Tensor | None, bias: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """An additive mask [B, 1, q, k]: None is causal, and columns after the prompt have no bias."""
    length, columns = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(length, columns, dtype=torch.bool, device=query.device).tril(columns - length)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    own = pad(bias, (0, columns - bias.shape[1]))[:, None, None]
    return mask[..., :columns] + own.to(query.device, query.dtype)
