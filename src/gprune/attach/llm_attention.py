"""A look at what one layer of the LLM attends to, without giving up its attention kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import host

_ATTRIBUTE = "_gprune_look"

Look = Callable[[Tensor, Tensor, "Tensor | None", "float | None"], None]
"""Is shown the query [B, h, q, d], the key [B, g, k, d], the mask [B, 1, q, k] or None, and the scaling of a layer."""


def _looked_at(backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(module: Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        look: Look | None = getattr(module, _ATTRIBUTE, None)
        if look is not None:  # another thread may have taken it off at this moment
            look(query, key, mask, kwargs.get("scaling"))
        return host.attend(backend, module, query, key, value, mask, **kwargs)

    return attention


for _backend in host.BACKENDS:
    host.register_backend(f"gprune_{_backend}", _looked_at(_backend))


def with_look(attention: Module, look: Look) -> dict[str, Any]:
    """The attributes that an attention module needs to show what it computes; its config is a copy of its own."""
    config = host.with_backend(attention.config, f"gprune_{host.backend_of(attention)}")
    return {"config": config, _ATTRIBUTE: look}


@torch.no_grad()
def last_row(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, last: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of one token of each prompt, and the norms of all keys.

    Args:
        query: [B, h, q, d]; key: [B, g, k, d], of which the last q belong to the queries.
        mask: bool, or floating to be added, [B or 1, 1, q, k]; None is causal.
        scaling: of the logits; None is 1 / sqrt(d).
        last: int64 [B], which of the queries.

    Returns:
        float32 [B, k]: softmax in float32, mean over the heads; float32 [B, k]: L2 over all heads.
    """
    batch, heads, length, width = query.shape
    groups, columns = key.shape[1], key.shape[2]
    last = last.to(query.device)[:, None, None, None]
    row = torch.take_along_dim(query, last, dim=2).view(batch, groups, heads // groups, width).float()
    logits = row @ key.float().transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    if mask is None:
        seen = torch.arange(columns, device=query.device) <= columns - length + last
        logits = logits.masked_fill(~seen, -torch.inf)
    else:
        own = torch.take_along_dim(mask[..., :columns], last.to(mask.device), dim=2)
        logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own.float()
    return logits.softmax(-1).mean((1, 2)), key.float().norm(dim=(1, 3))
