"""Which models vLLM can serve pruned, and how the visual tokens of an image lie in them.

Neither needs vLLM: the same functions say how many placeholders a prompt gets and which features fill them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..families.table import FAMILIES
from ..families.tiling import tiling
from ..families.views import scaled
from ..tokens import View

SERVED = {
    "llava": "GPruneLlavaForConditionalGeneration",
    "llava_next": "GPruneLlavaNextForConditionalGeneration",
    "llava_onevision": "GPruneLlavaOnevisionForConditionalGeneration",
    "internvl": "GPruneInternVLForConditionalGeneration",
}
"""Names of the architectures that `plugin.register` adds to vLLM, by model_type."""

EXPERIMENTAL = {
    "qwen2_vl": "GPruneQwen2VLForConditionalGeneration",
    "qwen2_5_vl": "GPruneQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "GPruneQwen3VLForConditionalGeneration",
}
"""Those that an operator has to ask for."""


def served_architecture(config: Any, experimental: bool = False) -> str:
    """The name of the architecture with which vLLM prunes a model.

    Args:
        config: of transformers.
        experimental: whether one of `EXPERIMENTAL` will do.

    Raises:
        ValueError: it cannot; says why and what is accepted.
    """
    kind = config.model_type
    if kind in EXPERIMENTAL:
        if not experimental:
            raise ValueError(
                f"vLLM serves a model with model_type {kind!r} pruned only as an experiment; start gprune serve with "
                f"--experimental, after reading what that means in docs/serving.md, or use gprune batch"
            )
        return EXPERIMENTAL[kind]
    if kind not in SERVED:
        raise ValueError(
            f"vLLM cannot serve a model with model_type {kind!r} pruned; accepted are {', '.join(SERVED)}; "
            f"for another one, see gprune.serve.embed or gprune batch"
        )
    tower = config.vision_config.model_type
    if kind == "llava" and tower == "pixtral":
        raise ValueError(
            f"vLLM cannot serve a llava with a vision tower of model_type {tower!r} pruned: line breaks stand between "
            f"its visual tokens; accepted are square towers, such as CLIP and SigLIP"
        )
    return SERVED[kind]


def views(config: Any, count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> tuple[View, ...]:
    """The views of an image of one of these architectures; rows in no view are newlines.

    Args:
        config: of transformers.
        count: visual tokens of the image before pruning.
        size: (height, width) of the image in pixels; of one of `EXPERIMENTAL`, in any unit.
        device: of the views' rows.

    Raises:
        ValueError: an image of this size has another number of tokens.
    """
    rows = torch.arange(count, device=device)
    if FAMILIES[config.model_type].tiling == "any resolution":
        return _base_and_grid(config, rows, size)
    if config.model_type == "internvl":
        tile = config.image_seq_length
        _check_count(count, math.ceil(count / tile) * tile, size)
        return tuple(View(part, scaled((1, 1), tile)) for part in rows.split(tile))
    return (View(rows, scaled(size if config.model_type in EXPERIMENTAL else (1, 1), count)),)


def _base_and_grid(config: Any, rows: Tensor, size: tuple[int, int]) -> tuple[View, ...]:
    tiles = tiling(config, size)
    base, (lines, columns) = math.prod(tiles.base), tiles.grid
    _check_count(len(rows), sum(tiles.views) + tiles.newlines, size)
    views = (View(rows[:base], tiles.base),)
    if not lines * columns:
        return views
    grid = rows[base:].view(lines, columns + 1)[:, :-1]
    return (*views, View(grid.reshape(-1), (lines, columns)))


def _check_count(given: int, expected: int, size: tuple[int, int]) -> None:
    if given != expected:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels (height x width) has {given} visual tokens, but its views have "
            f"{expected}; ask without arguments of the processor that change how an image is cut or scaled"
        )
