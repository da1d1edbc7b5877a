"""Where the visual tokens of images, and those of videos, go in a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import host
from ..host import PIXELS, Modality

Placeholders = Callable[[Any, Tensor], dict[Modality, Tensor]]
"""(config, input_ids [B, q]) -> of each modality, bool [B, q], where its visual tokens go."""


def by_token(config: Any, ids: Tensor) -> dict[Modality, Tensor]:
    """Images and videos have a placeholder of their own each."""
    return {modality: ids == host.placeholder(config, modality) for modality in PIXELS}


def of_either(config: Any, ids: Tensor) -> dict[Modality, Tensor]:
    """All have the placeholder of images, so that a call can only carry either."""
    return dict.fromkeys(PIXELS, ids == host.placeholder(config))


def between_marks(config: Any, ids: Tensor) -> dict[Modality, Tensor]:
    """All have the placeholder of images; between a token that begins a video and one that ends it they are its."""
    begun = (ids == config.video_start_token_id).cumsum(dim=1)
    ended = (ids == config.video_end_token_id).cumsum(dim=1)
    placeholders = ids == host.placeholder(config)
    return {"image": placeholders & (begun <= ended), "video": placeholders & (begun > ended)}
