"""A look at what one layer of the LLM attends to, without giving up its attention kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .. import host
from .tower_reading import LOGITS_AT_ONCE

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
    return rows_paid(query, key, mask, scaling, last[:, None])[:, 0], key.float().norm(dim=(1, 3))


@torch.no_grad()
def rows_paid(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, which: Tensor) -> Tensor:
    """Attention of some tokens of each prompt: float32 [B, t, k]; softmax in float32, mean over the heads.

    Args:
        query, key, mask, scaling: see `last_row`.
        which: int64 [B, t], of the queries.
    """
    batch, heads, _, _ = query.shape
    at_once = max(1, LOGITS_AT_ONCE // (batch * heads * key.shape[2]))
    parts = which.to(query.device)[:, None, :, None].split(at_once, dim=2)
    return torch.cat([_some_rows(query, key, mask, scaling, part) for part in parts], dim=1)


def _some_rows(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, which: Tensor) -> Tensor:
    batch, heads, length, width = query.shape
    groups, columns, count = key.shape[1], key.shape[2], which.shape[2]
    own = torch.take_along_dim(query, which, dim=2).reshape(batch, groups, heads // groups * count, width).float()
    logits = own @ key.float().transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    logits = logits.view(batch, heads, count, columns)
    if mask is None:
        seen = torch.arange(columns, device=query.device) <= columns - length + which
        logits = logits.masked_fill(~seen, -torch.inf)
    else:
        seen = torch.take_along_dim(mask[..., :columns], which.to(mask.device), dim=2)
        logits = logits.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else logits + seen.float()
    return logits.softmax(-1).mean(1)
