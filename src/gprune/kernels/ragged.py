"""Sets of different sizes laid one after the other: where each element lies, and the best of every set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import BadValue


def owners_and_places(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Owner and position of every element of runs laid one after the other: [2, 3] gives 00111 and 01012.

    Args:
        lengths: int64 [V], each >= 0.
        total: their sum, which a caller knows without asking the device.

    Returns:
        int64 [total] twice: the run that an element belongs to, and its place there, from 0.
    """
    owner = torch.repeat_interleave(lengths, output_size=total)
    return owner, torch.arange(total, device=lengths.device) - (lengths.cumsum(0) - lengths)[owner]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def top_per_view(scores: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The counts[v] highest scores of every view; ties go to the lower index. Does not wait for the device.

    Args:
        scores: real [T], T = sum(sizes): the tokens of view 0, then those of view 1, and so on. NaN counts as highest.
        sizes: tokens of each view, >= 0.
        counts: how many of them to keep, 0 <= counts[v] <= sizes[v].

    Returns:
        int64 [sum(counts)], ascending indices into `scores`.

    Raises:
        BadValue: `sizes` does not add up to T, or `counts` does not fit `sizes`.
    """
    if sum(sizes) != len(scores):
        raise BadValue(
            f"sizes={list(sizes)} adds up to {sum(sizes)} but there are {len(scores)} scores; give every view's size"
        )
    if len(counts) != len(sizes) or not all(0 <= count <= size for count, size in zip(counts, sizes, strict=True)):
        raise BadValue(
            f"counts={list(counts)} does not fit sizes={list(sizes)}; accepted is 0 to size tokens for each view"
        )
    length = torch.tensor(sizes, dtype=torch.int64)
    view, _ = owners_and_places(length, len(scores))
    chosen_view, rank = owners_and_places(torch.tensor(counts, dtype=torch.int64), sum(counts))
    # Sorted by view and, within a view, from the highest score down, every view begins where it began before:
    # which places of that order are kept is known before any score is.
    places = (length.cumsum(0) - length)[chosen_view] + rank
    host = upload(torch.cat([view, places]), scores.device)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[host[: len(scores)][by_score].argsort(stable=True)]
    return order[host[len(scores) :]].sort().values
