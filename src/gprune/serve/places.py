"""Which positions the tokens of a pruned prompt get where they keep those of the unpruned one.

vLLM numbers a prompt before it encodes the images, when nobody knows yet which of their tokens will be kept. But how
many are kept is known, and with it the positions of all text. Where in its image a kept token lies comes with its
features, as columns after the last one, and is added when the features reach the language model. None of it needs vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256
"""Up to here bfloat16 and float16 count exactly, so a place travels as two digits: 65535 at most."""
PLACE_DIGITS = 2


@dataclass(frozen=True)
class Shrunk:
    """The placeholders of an image in a pruned prompt.

    Args:
        start: index of the first of them.
        kept: how many there are.
        before: how many there were before pruning.
    """

    start: int
    kept: int
    before: int

    @property
    def dropped(self) -> int:
        """How many are gone."""
        return self.before - self.kept


def with_places(features: Tensor, places: Tensor) -> Tensor:
    """Features followed by their places.

    Args:
        features: floating [k, d].
        places: int64 [k, axes] on the same device, each from 0 to 65535: how far ahead a token's position is of that
            of its image's first token.

    Returns:
        [k, d + PLACE_DIGITS * axes], in the dtype of the features.
    """
    digits = torch.stack([places // BASE, places % BASE], dim=2).flatten(1)
    return torch.cat([features, digits.to(features.dtype)], dim=1)


def split_places(features: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """The inverse of `with_places` for any of its rows: features [k, d], and int64 [k, axes]."""
    width = features.shape[1] - PLACE_DIGITS * axes
    digits = features[:, width:].long().unflatten(1, (axes, PLACE_DIGITS))
    return features[:, :width], digits[..., 0] * BASE + digits[..., 1]


def unpruned_prompt(tokens: list[int], images: Iterable[Shrunk]) -> list[int]:
    """The prompt as it was before pruning.

    Args:
        tokens: of the pruned prompt.
        images: all that were pruned in it, in order.
    """
    parts, index = [], 0
    for image in images:
        parts += tokens[index : image.start] + tokens[image.start : image.start + 1] * image.dropped
        index = image.start
    return parts + tokens[index:]


def pruned_positions(positions: Tensor, images: Iterable[Shrunk]) -> Tensor:
    """The position ids of a pruned prompt, as far as they are known before its images are encoded.

    Args:
        positions: int64 [axes, n], those of the unpruned prompt.
        images: all that were pruned in it, in order.

    Returns:
        int64 [axes, n - dropped]; all visual tokens of a pruned image have those of its first one.
    """
    indices = torch.arange(positions.shape[1])
    kept = torch.ones_like(indices, dtype=torch.bool)
    ahead = 0
    for image in images:
        first = image.start + ahead
        indices[first : first + image.before] = first
        kept[first + image.kept : first + image.before] = False
        ahead += image.dropped
    return positions[:, indices[kept]]
