"""Which rows of a batch a KV cache holds, after its user took, repeated or permuted some of them.

Caches have methods for that, which know nothing of what gprune has put on them. So each row is marked by what only it
holds: the last key of its prompt, in a layer that has read all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModel
from ..host import columns_of, last_layer

ATTRIBUTE = "_gprune_rows"


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that a cache held when it was last looked at.

    Args:
        keys: those it held them in; others in their place mean that something was done to the cache.
        column: of the keys, whose value marks a row.
        marks: [B, d], the value.
    """

    keys: Tensor
    column: int
    marks: Tensor


def mark_rows(cache: Any, prompt: int | None = None) -> None:
    """Remember the rows of a cache as it comes out of a call.

    Args:
        prompt: where the call carried images, how many of its last columns begin with the last token of the prompt.
    """
    layer, known = last_layer(cache), getattr(cache, ATTRIBUTE, None)
    if layer is None:
        return
    if prompt is not None:
        column = max(columns_of(layer) - prompt, 0)
        setattr(cache, ATTRIBUTE, Rows(layer.keys, column, layer.keys[:, 0, column]))
    elif known is not None:
        setattr(cache, ATTRIBUTE, replace(known, keys=layer.keys))


def moved_rows(cache: Any) -> Tensor | None:
    """Of each row of a cache, which one it was when it came out of the last call: int64 [B]; None if none moved.

    Raises:
        UnsupportedModel: some row is none of them.
    """
    known: Rows | None = getattr(cache, ATTRIBUTE, None)
    if known is None or (layer := last_layer(cache)) is None or layer.keys is known.keys:
        return None
    marks = layer.keys[:, 0, known.column : known.column + 1]
    if not marks.shape[1]:
        return None  # cropped, which those who need the columns look after
    same = (marks == known.marks.to(marks.device)).all(-1)
    if not same.any(dim=1).all():
        raise UnsupportedModel(
            "the rows of a cache whose prompt was pruned were replaced by others since gprune last saw it; accepted "
            "are the rows it was filled with, also some of them, repeated or permuted; prefill again"
        )
    setattr(cache, ATTRIBUTE, replace(known, keys=layer.keys, marks=marks[:, 0]))
    # A row that is where it was stays there, whatever other rows are like it.
    own = torch.arange(len(same), device=same.device)
    stays = same.diagonal() if len(same) <= same.shape[1] else torch.zeros_like(own, dtype=torch.bool)
    return torch.where(stays, own, same.int().argmax(dim=1))
