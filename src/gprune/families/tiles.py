"""Which items of an encoder's output make up one image, where a family cuts images into tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Span = tuple[int, int, int]
"""Row, first and last column of the placeholders of an item in input_ids."""

Joins = Callable[[Tensor, Sequence[Span]], list[bool]]
"""(input_ids [B, q], spans of n items) -> of each of the n - 1 neighbouring pairs, whether one image has both."""


def adjacent(ids: Tensor, spans: Sequence[Span], gap: int = 0) -> list[bool]:
    """Tiles of one image have at most `gap` tokens between them; between images there are more."""
    return [one[0] == other[0] and other[1] - one[2] - 1 <= gap for one, other in pairwise(spans)]


def overview_last(ids: Tensor, spans: Sequence[Span]) -> list[bool]:
    """An image ends with its overview, which the same token introduces as the last overview of the prompt."""
    introductions = _introductions(ids, spans)
    overview = {row: token for (row, _, _), token in zip(spans, introductions, strict=True)}
    return [
        one[0] == other[0] and token != overview[one[0]]
        for (one, other), token in zip(pairwise(spans), introductions, strict=False)
    ]


def overview_first(ids: Tensor, spans: Sequence[Span]) -> list[bool]:
    """An image begins with its overview, which the same token introduces as the first overview of the prompt."""
    introductions = _introductions(ids, spans)
    overview: dict[int, int] = {}
    for (row, _, _), token in zip(spans, introductions, strict=True):
        overview.setdefault(row, token)
    return [
        one[0] == other[0] and token != overview[other[0]]
        for (one, other), token in zip(pairwise(spans), introductions[1:], strict=True)
    ]


def _introductions(ids: Tensor, spans: Sequence[Span]) -> list[int]:
    """The token before each item; -1 where there is none."""
    return [int(ids[row, first - 1]) if first else -1 for row, first, _ in spans]


def run_length(placeholders: Tensor) -> int:
    """How many placeholders follow one another without a token between them in the first prompt that has any.

    Args:
        placeholders: bool [B, q], at least one of them True.
    """
    prompt = placeholders[placeholders.any(dim=1)][0].long()
    return int(prompt[prompt.argmax() :].cumprod(0).sum())


def spans_of(placeholders: Tensor, sizes: Sequence[int]) -> list[Span]:
    """Where the placeholders of every item stand: bool [B, q], tokens per item in order -> a span per item."""
    places = placeholders.nonzero()
    ends = torch.tensor(sizes, device=places.device).cumsum(0)
    first = places[ends - torch.tensor(sizes, device=places.device)]
    return [(row, start, end) for (row, start), end in zip(first.tolist(), places[ends - 1, 1].tolist(), strict=True)]


def grouped(count: int, joins: Sequence[bool]) -> list[list[int]]:
    """Indices 0 .. count - 1 as groups of neighbours that are joined."""
    groups: list[list[int]] = []
    for index in range(count):
        if index and joins[index - 1]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
