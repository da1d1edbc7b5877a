"""Where the kept tokens of an image lie: position ids of models that number text, time, height and width (M-RoPE).

vLLM numbers a prompt before it encodes the images, when nobody knows yet which of their tokens will be kept. But text
depends on the grids alone, and so does the time of an image. Its heights and widths come with the features, as columns
after the last one, and are filled in when the features reach the language model. All of it keeps its place in the
unpruned prompt. Neither needs vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256
"""Up to here bfloat16 and float16 count exactly, so a coordinate travels as two digits: 65535 at most."""
COLUMNS = 4
"""Two digits of the row in the grid, and two of the column."""


@dataclass(frozen=True)
class Placed:
    """The placeholders of an image in a prompt.

    Args:
        start: index of the first of them.
        count: how many there are.
        grid: (rows, columns) of the image before pruning.
    """

    start: int
    count: int
    grid: tuple[int, int]


def with_places(features: Tensor, kept: Tensor, columns: int) -> Tensor:
    """The features of the kept tokens, followed by their places.

    Args:
        features: floating [n, d], of the whole image in row-major order.
        kept: int64 [k].
        columns: of the image's grid.

    Returns:
        [k, d + COLUMNS], in the dtype of the features.
    """
    places = torch.stack([kept // columns, kept % columns], dim=1)
    digits = torch.stack([places // BASE, places % BASE], dim=2).flatten(1)
    return torch.cat([features[kept], digits.to(features.dtype)], dim=1)


def split_places(features: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `with_places` for any of its rows: features [k, d], and int64 [k, 2], row and column of each."""
    digits = features[:, -COLUMNS:].long().unflatten(1, (2, 2))
    return features[:, :-COLUMNS], digits[..., 0] * BASE + digits[..., 1]


def prompt_positions(length: int, images: Iterable[Placed]) -> tuple[Tensor, int]:
    """The position ids of a pruned prompt, as far as they are known before its images are encoded.

    Args:
        length: tokens of the prompt.
        images: those in it, in order.

    Returns:
        int64 [3, length], time, height and width, which for visual tokens is the time three times; and what the ids
        of the tokens after the prompt are ahead of their number.
    """
    positions = torch.empty(3, length, dtype=torch.int64)
    index = following = 0
    for image in images:
        text = image.start - index
        positions[:, index : image.start] = torch.arange(following, following + text)
        index, following = image.start + image.count, following + text
        positions[:, image.start : index] = following
        following += max(image.grid)
    positions[:, index:] = torch.arange(following, following + length - index)
    return positions, following - index


def fill_in(positions: Tensor, visual: Tensor, start: int, places: Sequence[Tensor]) -> Tensor:
    """Position ids with the heights and widths of some visual tokens.

    Args:
        positions: int64 [3, n], of `prompt_positions`, filled in or not.
        visual: bool [n], which tokens of the prompt are visual.
        start: index from which on they are looked for.
        places: int64 [k, 2] each, row and column of the first of them.

    Returns:
        int64 [3, n].
    """
    found = torch.cat(list(places)).to(positions.device)
    indices = visual[start:].nonzero().flatten()[: len(found)] + start
    positions = positions.clone()
    positions[1:, indices] = positions[:1, indices] + found.T
    return positions
