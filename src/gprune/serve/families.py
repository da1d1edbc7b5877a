"""Which models vLLM can serve pruned, and how the visual tokens of an image lie in them.

Neither needs vLLM: the same functions say how many placeholders a prompt gets and which features fill them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..families.table import FAMILIES
from ..families.tiling import tiling
from ..families.views import scaled
from ..tokens import View

ONE_AXIS_MODELS = {
    "llava": "GPruneLlavaForConditionalGeneration",
    "llava_next": "GPruneLlavaNextForConditionalGeneration",
    "llava_onevision": "GPruneLlavaOnevisionForConditionalGeneration",
    "internvl": "GPruneInternVLForConditionalGeneration",
}
WOVEN_MODELS = {
    "mistral3": "GPruneMistral3ForConditionalGeneration",
    "idefics3": "GPruneIdefics3ForConditionalGeneration",
    "smolvlm": "GPruneSmolVLMForConditionalGeneration",
}
_QWEN = {
    "qwen2_vl": "GPruneQwen2VLForConditionalGeneration",
    "qwen2_5_vl": "GPruneQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "GPruneQwen3VLForConditionalGeneration",
}
_QWEN_MOE = {
    "qwen3_vl_moe": "GPruneQwen3VLMoeForConditionalGeneration",
}
_GLM = {
    "glm4v": "GPruneGlm4vForConditionalGeneration",
}
LLAVA_PIXTRAL = "GPruneLlavaPixtralForConditionalGeneration"
"""That of a llava whose vision tower is a Pixtral."""

SERVED = ONE_AXIS_MODELS | WOVEN_MODELS
"""Names of the architectures that `plugin.register` adds to vLLM, by model_type."""

EXPERIMENTAL = _QWEN | _QWEN_MOE | _GLM
"""Those that an operator has to ask for."""

MODULES = {
    "one_axis": (*ONE_AXIS_MODELS.values(),),
    "woven": (*WOVEN_MODELS.values(), LLAVA_PIXTRAL),
    "qwen": (*_QWEN.values(),),
    "qwen_moe": (*_QWEN_MOE.values(),),
    "glm": (*_GLM.values(),),
}
"""The architectures of each module of this room."""

_BF16 = "vLLM computes its layers of linear attention on CPUs in bfloat16 alone, in which no answers could be compared"

UNSERVED = {
    "lfm2_vl": "a tiny model of it answered otherwise in vLLM than in transformers, and why is not known",
    "aya_vision": "vLLM has no model of this family any more",
    "gemma3": (
        "its language model lets the tokens of an image see each other in both directions, which vLLM does on some "
        "GPUs, where gprune was not tested, and not on CPUs"
    ),
    "qwen3_5": _BF16,
    "qwen3_5_moe": _BF16,
}
"""Why other families cannot be served, where there is a reason beyond that nobody has tried."""


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
        because = f": {UNSERVED[kind]}" if kind in UNSERVED else ""
        raise ValueError(
            f"vLLM cannot serve a model with model_type {kind!r} pruned{because}; accepted are {', '.join(SERVED)}; "
            f"for another one, see gprune.serve.embed or gprune batch"
        )
    if kind == "llava" and config.vision_config.model_type == "pixtral":
        return LLAVA_PIXTRAL
    return SERVED[kind]


def views(config: Any, count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> tuple[View, ...]:
    """The views of an image of one of the other architectures; rows in no view are newlines.

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


def woven_views(config: Any, visual: Tensor, device: torch.device | str = "cpu") -> tuple[View, ...]:
    """The views of an image of one of `WOVEN_MODELS`, or of a llava with a Pixtral, between whose tokens there is text.

    In Pixtral text ends lines, in the others it tells tiles apart.

    Args:
        config: of transformers.
        visual: bool [n], of the tokens from the first visual one to the last, which are visual.
        device: of the views' rows.

    Returns:
        Views of the visual tokens, whose rows count these alone.
    """
    ends = [-1, *(~visual).nonzero().flatten().tolist(), len(visual)]
    runs = [end - start - 1 for start, end in pairwise(ends) if end - start > 1]
    rows = torch.arange(sum(runs), device=device)
    if config.vision_config.model_type == "pixtral":
        return (View(rows, (len(runs), runs[0])),)
    return tuple(View(part, scaled((1, 1), len(part))) for part in rows.split(runs))


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
