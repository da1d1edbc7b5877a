"""All that gprune knows of a family of models, in one row: model_type -> what differs from other families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from packaging.version import Version
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
from ..pruners.base import Method, Need
from .patches import (
    ToTokens,
    merged,
    merged_in_windows,
    packed,
    patches,
    pooled,
    pooled_by_size,
    resized_frames,
    without_class_token,
)
from .tiles import Joins, adjacent, overview_last
from .views import Views, base_and_lines, frames, frames_and_newline, newline, two_resolutions, unordered

FROM_TOWER: tuple[Need, ...] = ("attention", "keys")
"""What a method can need to know of the vision tower."""

NO_PLACE = "its views do not show the whole picture"
UNKNOWN = "its layout of visual tokens is not known to gprune; CONTRIBUTING.md shows how to add a family"

_NEIGHBOURS = "its visual tokens are made of neighbouring patches, of which none may be missing"
_CODEBOOK = "its image tokens are entries of a codebook, read like words, so that there are no features to rank"
_QUERIES = "its Q-Former already condenses every image to a few query tokens"
_CROSS_ATTENTION = "images reach its LLM by cross-attention, so that they take no place in the prompt"


@dataclass(frozen=True)
class Tower:
    """Where a family keeps its vision tower, and how it makes visual tokens of patches.

    Args:
        name: of the tower in the base model.
        image: takes values of patches to those of visual tokens, in the image encoder.
        video: in the video encoder; None: not known.
    """

    name: str
    image: ToTokens
    video: ToTokens | None = None


@dataclass(frozen=True)
class Family:
    """What gprune knows of a family; as it stands, of one where an item is an image and one view, and no more is known.

    Args:
        views: of an item of the image encoder's output.
        joins: which neighbouring items are tiles of one image; None: each item is an image.
        video: the views of an item of the video encoder's output; None: videos cannot be pruned.
        tower: how attention and keys of the vision tower are read; None: they cannot be.
        projector: of the base model, the part that makes one visual token of one patch, so that tokens can be merged
            in the tower before it; empty: they cannot be.
        unmergeable: why not.
        llm: whether the LLM is a stack of layers with full attention, between which tokens can be dropped.
        tiling: how many visual tokens an image has: as many as any other, or as `tiling` works out of its size;
            None: that does not follow from its size alone.
        tile: (model) -> tokens per tile, where the encoder returns all tiles of a prompt as one item.
        mark: (model) -> the learned row, [d], whose copies among an item's features tell how it is laid out.
        output: the field of the encoder's output that holds the features.
        project: (model, features [..., d]) -> the features as the LLM receives them, where `output` is not that.
        rope_3d: whether tokens are numbered by time, height and width.
        facts: what a config of the family says, so that its absence means something else than none.
        since: the first version of transformers whose forward takes fewer visual tokens than an image has.
        broken: the version of transformers in which the family does not work at all, with or without a pruner.
        refused: why the family cannot be pruned at all; empty: it can.
    """

    views: Views = frames
    joins: Joins | None = None
    video: Views | None = None
    tower: Tower | None = None
    projector: str = ""
    unmergeable: str = _NEIGHBOURS
    llm: bool = False
    tiling: Literal["whole", "any resolution"] | None = None
    tile: Callable[[PreTrainedModel], int] | None = None
    mark: Callable[[PreTrainedModel], Tensor] | None = None
    output: str = host.POOLED
    project: Callable[[PreTrainedModel, Tensor], Tensor] | None = None
    rope_3d: bool = False
    facts: tuple[host.Fact, ...] = ()
    since: str = "5.19"
    broken: str = ""
    refused: str = ""


def _shuffled_tile(model: PreTrainedModel) -> int:
    """Tokens of a tile of Idefics3 after its pixel shuffle."""
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size // model.config.scale_factor) ** 2)


def _projector(model: PreTrainedModel, features: Tensor) -> Tensor:
    return cast(Module, model.multi_modal_projector)(features)


_FLAT_CLIPS = host.installed() >= Version("5.20.2")
"""Whether LLaVA-NeXT-Video's features of a clip are [n, d], as everywhere; before, they were [frames, n, d]."""

_PROJECTOR = "multi_modal_projector"
_PATCHES = Tower("vision_tower", without_class_token(patches))
_POOLED = Tower("vision_tower", without_class_token(pooled))
_PACKED = without_class_token(packed)

_LLAVA = Family(tower=_PATCHES, projector=_PROJECTOR, llm=True, tiling="whole")
_LLAVA_NEXT = Family(
    base_and_lines,
    mark=newline,
    tower=Tower("vision_tower", _PACKED),
    projector=_PROJECTOR,
    llm=True,
    tiling="any resolution",
)
_TILES = Family(joins=adjacent, llm=True)
_TILES_PER_PROMPT = Family(joins=overview_last, tile=_shuffled_tile, tower=Tower("vision_model", pooled), llm=True)
_GLM = Family(tower=Tower("visual", merged, merged), llm=True, rope_3d=True)
_QWEN = replace(_GLM, video=frames)
_DEEPSTACK = replace(_QWEN, facts=("deepstack levels",))
_MIXED: tuple[host.Fact, ...] = ("kinds of layers",)
_LINEAR = replace(_QWEN, llm=False, facts=_MIXED)

FAMILIES: dict[str, Family] = {
    "aria": Family(unordered, llm=True, unmergeable="learned queries, of a number of their own, stand for its patches"),
    "aya_vision": Family(joins=overview_last, tower=_POOLED),
    "blip-2": Family(refused=_QUERIES),
    "chameleon": Family(refused=_CODEBOOK),
    "cohere2_vision": Family(joins=partial(adjacent, gap=1), tower=Tower("vision_tower", pooled)),
    "deepseek_vl": Family(tower=Tower("vision_model", patches), projector="aligner", llm=True),
    "emu3": Family(refused=_CODEBOOK),
    "gemma3": Family(tower=Tower("vision_tower", pooled), facts=_MIXED),
    "gemma4": Family(facts=_MIXED),
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm_ocr": _GLM,
    "got_ocr2": _TILES,
    "idefics": Family(refused=_CROSS_ATTENTION),
    "idefics3": _TILES_PER_PROMPT,
    "instructblip": Family(refused=_QUERIES),
    "instructblipvideo": Family(refused=_QUERIES),
    "internvl": replace(_TILES, tower=_POOLED),
    "kimi_k25": Family(llm=True),
    "kosmos-2": Family(refused="its resampler already condenses every image to a few query tokens"),
    "lfm2_vl": Family(joins=partial(adjacent, gap=1), tower=Tower("vision_tower", pooled_by_size), facts=_MIXED),
    "llama4": Family(joins=overview_last, output=host.UNPOOLED, project=_projector, broken="5.24.0"),
    "llava": _LLAVA,
    "llava_next": _LLAVA_NEXT,
    "llava_next_video": replace(
        _LLAVA_NEXT,
        video=frames if _FLAT_CLIPS else None,
        tower=Tower("vision_tower", _PACKED, without_class_token(pooled)),
    ),
    "llava_onevision": replace(
        _LLAVA_NEXT,
        video=frames_and_newline,
        tower=Tower("vision_tower", _PACKED, without_class_token(resized_frames)),
        projector="",
        unmergeable="it scales the grid of patches down, in which none may be missing",
    ),
    "mistral3": Family(tower=Tower("vision_tower", pooled_by_size), llm=True),
    "mllama": Family(refused=_CROSS_ATTENTION),
    "molmo2": Family(two_resolutions, llm=True),
    "paligemma": Family(tower=Tower("vision_tower", patches), projector=_PROJECTOR, llm=True),
    "perception_lm": _TILES,
    "qwen2_5_vl": replace(
        _QWEN, tower=Tower("visual", merged_in_windows, merged_in_windows), facts=("layers without windows",)
    ),
    "qwen2_vl": _QWEN,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_vl": _DEEPSTACK,
    "qwen3_vl_moe": _DEEPSTACK,
    "smolvlm": replace(_TILES_PER_PROMPT, since="5.21"),
    "vipllava": _LLAVA,
}


def unsupported(config: Any) -> str | None:
    """Why models with this config cannot be pruned, and what to do; None if they can."""
    model_type = getattr(config, "model_type", None)
    if model_type in FAMILIES:
        reason = FAMILIES[model_type].refused
        if not reason:
            return None
    elif getattr(config, "is_encoder_decoder", False):
        reason = "in an encoder-decoder model, images are not in the prompt of the part that generates"
    elif hasattr(config, "vision_config"):
        reason = UNKNOWN
    else:
        reason = "it does not take images"
    known = ", ".join(name for name, family in FAMILIES.items() if not family.refused)
    return f"{reason}; supported are models with model_type {known}"


def missing(method: Method, family: str) -> str | None:
    """What a method needs that a family does not have, as the reason why it does not go on it; None if it has all.

    A model of the family may still be refused, for its attention, the kind of its vision tower or of its LLM's layers.

    Args:
        method: with its settings.
        family: the model_type.
    """
    if method.acts == "nowhere":
        return None
    row = FAMILIES.get(family, Family(refused=UNKNOWN))
    return row.refused or next(filter(None, (_missing(part, row) for part in method.parts)), None)


def families_of(method: Method) -> list[str]:
    """The model types that a method goes on, sorted."""
    return [family for family in FAMILIES if missing(method, family) is None]


def _missing(method: Method, row: Family) -> str | None:
    if "place" in method.needs and (row.joins is not None or row.views is unordered):
        return NO_PLACE
    if row.tower is None and set(FROM_TOWER) & set(method.needs):
        return "its vision tower cannot be read by gprune"
    if method.acts == "in the tower" and not row.projector:
        return row.unmergeable
    if method.merges and row.project is not None:
        return "it projects features after they can be replaced"
    return "its LLM is not known to gprune" if method.acts == "in the LLM" and not row.llm else None
