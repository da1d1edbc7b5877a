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
    merged_by_size,
    merged_in_windows,
    merged_over_frames,
    packed,
    patches,
    pooled,
    pooled_by_size,
    pooled_lines,
    resized_frames,
    without_class_token,
)
from .placeholders import Placeholders, between_marks, by_token, of_either
from .tiles import Joins, adjacent, overview_first, overview_last
from .views import (
    PARTIAL,
    Views,
    averaged,
    base_and_lines,
    frames,
    frames_and_newline,
    frames_in_lines,
    lines_then_base,
    merged_frames,
    newline,
    placed_frames,
    queries_of_tiles,
    sifted_frames,
    tiles_then_whole,
    two_resolutions,
    unordered,
)

MIDDLE: Need = "middle attention"
FROM_TOWER: tuple[Need, ...] = ("attention", "keys", MIDDLE)
"""What a method can need to know of the vision tower."""

NO_PLACE = "its views do not show the whole picture"
NO_FRAMES: dict[Views | None, str] = {
    None: "its videos cannot be pruned by gprune",
    averaged: "its encoder averages the frames of a clip, so that none comes before another",
    sifted_frames: "its processor has left out tokens that are like those of the frame before already",
}
"""Why the frames of videos that have such views cannot be compared."""
NO_TILES = "which part of the picture each of its tiles shows is not known to gprune"
UNKNOWN = "its layout of visual tokens is not known to gprune; CONTRIBUTING.md shows how to add a family"

_NEIGHBOURS = "its visual tokens are made of neighbouring patches, of which none may be missing"
_NOT_PACKED = "its vision tower works out by itself where patches lie, so that gprune can leave none out before it"
_CODEBOOK = "its image tokens are entries of a codebook, read like words, so that there are no features to rank"
_QUERIES = "its Q-Former already condenses every image to a few query tokens"
_RESAMPLER = "its resampler already condenses every image to a few query tokens"
_CROSS_ATTENTION = "images reach its LLM by cross-attention, so that they take no place in the prompt"
_ENCODER_DECODER = "in an encoder-decoder model, images are not in the prompt of the part that generates"
_BLOCKS_BY_POSITION = (
    "its LLM finds blocks of the KV cache by position ids, which are not where tokens lie once some are dropped"
)
_ZEROS = "its image tokens are zeros, to which layers of its LLM add features, each others: there is no one to rank by"
_DISTANCES = "its LLM weighs tokens by how many others lie between them, which dropping tokens changes"
_OTHER_PROMPTS = "its position ids count images over all prompts of a batch, so that answers depend on other prompts"
_SOUNDS = "its prompt may hold sounds, which gprune was not tested with"
_TALKER = "its talker reads what the thinker made of every token; attach to model.thinker, which answers in text"


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
        placeholders: where the visual tokens of images and of videos go.
        tower: how attention and keys of the vision tower are read; None: they cannot be.
        projector: of the base model, the part that makes one visual token of one patch, so that tokens can be merged
            in the tower before it; empty: they cannot be.
        unmergeable: why not.
        packed: whether the vision tower is given the patches of all pictures in one row, those of a visual token after
            one another, and takes ready-made where each lies, so that some can be left out before it.
        llm: whether the LLM is a stack of layers with full attention, between which tokens can be dropped.
        tiling: how many visual tokens an image has: as many as any other, or as `tiling` works out of its size;
            None: that does not follow from its size alone.
        per_prompt: whether the encoder returns all tiles of a prompt as one item; then each has a run of placeholders.
        mark: (model) -> the learned row, [d], whose copies among an item's features tell how it is laid out.
        output: the field of the encoder's output that holds the features.
        project: (model, features [..., d]) -> the features as the LLM receives them, where `output` is not that.
        rope_3d: whether tokens are numbered by time, height and width.
        numbered: whether `generate()` hands position ids on to forward.
        facts: what a config of the family says, so that its absence means something else than none.
        since: the first version of transformers whose forward takes fewer visual tokens than an image has, or in which
            the family was seen to be right.
        broken: the version of transformers in which the family does not work at all, with or without a pruner.
        refused: why the family cannot be pruned at all; empty: it can.
    """

    views: Views = frames
    joins: Joins | None = None
    video: Views | None = None
    placeholders: Placeholders = by_token
    tower: Tower | None = None
    projector: str = ""
    unmergeable: str = _NEIGHBOURS
    packed: bool = False
    llm: bool = False
    tiling: Literal["whole", "any resolution"] | None = None
    per_prompt: bool = False
    mark: Callable[[PreTrainedModel], Tensor] | None = None
    output: str = host.POOLED
    project: Callable[[PreTrainedModel, Tensor], Tensor] | None = None
    rope_3d: bool = False
    numbered: bool = True
    facts: tuple[host.Fact, ...] = ()
    since: str = "5.19"
    broken: str = ""
    refused: str = ""


def _projector(model: PreTrainedModel, features: Tensor) -> Tensor:
    return cast(Module, model.multi_modal_projector)(features)


_FLAT_CLIPS = host.installed() >= Version("5.20.2")
"""Whether LLaVA-NeXT-Video's features of a clip are [n, d], as everywhere; before, they were [frames, n, d]."""

_PROJECTOR = "multi_modal_projector"
_PATCHES = Tower("vision_tower", without_class_token(patches))
_POOLED = Tower("vision_tower", without_class_token(pooled))
_WINDOWS = Tower("visual", merged_in_windows, merged_in_windows)
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
_TILES_PER_PROMPT = Family(joins=overview_last, per_prompt=True, tower=Tower("vision_model", pooled), llm=True)
_QWEN = Family(video=frames, tower=Tower("visual", merged, merged), packed=True, llm=True, rope_3d=True)
_GLM = replace(_QWEN, placeholders=of_either)
_DEEPSTACK = replace(_QWEN, facts=("deepstack levels",))
_MIXED: tuple[host.Fact, ...] = ("kinds of layers",)
_LINEAR = replace(_QWEN, llm=False, facts=_MIXED)
_SLICES = Family(joins=overview_first, tower=Tower("vision_tower", pooled_by_size), facts=_MIXED)

FAMILIES: dict[str, Family] = {
    "apertus1p5": Family(refused=_CODEBOOK),
    "aria": Family(unordered, llm=True, unmergeable="learned queries, of a number of their own, stand for its patches"),
    "aya_vision": Family(joins=overview_last, tower=_POOLED),
    "blip": Family(refused=_CROSS_ATTENTION),
    "blip-2": Family(refused=_QUERIES),
    "chameleon": Family(refused=_CODEBOOK),
    "cohere2_vision": Family(joins=partial(adjacent, gap=1), tower=Tower("vision_tower", pooled)),
    "cohere_compass": replace(_DEEPSTACK, llm=False, facts=("deepstack levels", "kinds of layers")),
    "cosmos3_edge": replace(_QWEN, packed=False, since="5.23"),
    "cosmos3_omni": _DEEPSTACK,
    "deepseek_ocr2": Family(
        queries_of_tiles, unmergeable="learned queries, of a number of their own, stand for its patches", llm=True
    ),
    "deepseek_vl": Family(tower=Tower("vision_model", patches), projector="aligner", llm=True),
    "deepseek_vl_hybrid": Family(
        tower=Tower("vision_model", patches),
        unmergeable="a second tower sees the picture too, and the tokens of both are joined one by one",
        llm=True,
    ),
    "diffusion_gemma": Family(refused="it denoises blocks of text, in the place of one token after the other"),
    "dots3_note": Family(refused=_SOUNDS),
    "emu3": Family(refused=_CODEBOOK),
    "ernie4_5_vl_moe": Family(
        video=merged_frames,
        tower=Tower("vision_tower", merged, merged_over_frames),
        llm=True,
        rope_3d=True,
    ),
    "exaone4_5": Family(
        video=frames,
        tower=_WINDOWS,
        numbered=False,
        facts=("kinds of layers", "layers without windows"),
        since="5.24",
    ),
    "fast_vlm": Family(unmergeable="its tower is made of convolutions, in which no patch may be missing", llm=True),
    "florence2": Family(refused=_ENCODER_DECODER),
    "fuyu": Family(refused="line breaks in its prompt alone tell the shape of an image"),
    "gemma3": Family(tower=Tower("vision_tower", pooled), facts=_MIXED),
    "gemma3n": Family(refused="its vision tower comes from timm, with which gprune was not tested"),
    "gemma4": Family(video=placed_frames, facts=_MIXED),
    "gemma4_unified": Family(video=placed_frames, facts=_MIXED),
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm5_next": Family(video=frames, placeholders=between_marks, tower=Tower("visual", merged, merged), facts=_MIXED),
    "glm_image": Family(refused=_CODEBOOK),
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "got_ocr2": _TILES,
    "granite4_vision": Family(refused=_ZEROS),
    "granite_docling": replace(_TILES_PER_PROMPT, joins=overview_first, facts=("deepstack levels",)),
    "hunyuan_vl": Family(refused=_OTHER_PROMPTS),
    "hy_v4_vl": Family(
        frames_in_lines,
        video=frames_in_lines,
        tower=Tower("vision_tower", pooled_lines, pooled_lines),
        rope_3d=True,
        facts=_MIXED,
    ),
    "hyperclovax_vision_v2": Family(
        video=frames,
        tower=Tower("vision_model", merged_in_windows, merged_in_windows),
        llm=True,
        numbered=False,
        facts=("layers without windows",),
        since="5.24",
    ),
    "idefics": Family(refused=_CROSS_ATTENTION),
    "idefics2": Family(refused=_RESAMPLER),
    "idefics3": _TILES_PER_PROMPT,
    "inkling2": Family(refused=_DISTANCES),
    "inkling2_loop": Family(refused=_DISTANCES),
    "inkling_mm_model": Family(refused=_DISTANCES),
    "instructblip": Family(refused=_QUERIES),
    "instructblipvideo": Family(refused=_QUERIES),
    "internvl": replace(_TILES, tower=_POOLED),
    "janus": Family(
        tower=Tower("vision_model", patches), unmergeable="its vision tower is of a kind of its own", llm=True
    ),
    "kimi_k25": Family(video=averaged, llm=True),
    "kosmos-2": Family(refused=_RESAMPLER),
    "kosmos-2.5": Family(refused=_RESAMPLER),
    "lfm2_vl": Family(joins=partial(adjacent, gap=1), tower=Tower("vision_tower", pooled_by_size), facts=_MIXED),
    "lfm3_vl": Family(video=frames, tower=Tower("vision_tower", merged, merged), facts=_MIXED),
    "lighton_ocr": Family(tower=Tower("vision_encoder", pooled_by_size), llm=True),
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
    "minicpm_ocr": _SLICES,
    "minicpmv4_6": _SLICES,
    "minicpmv4_7": replace(_SLICES, rope_3d=True),
    "minimax_m3_vl": Family(refused=_BLOCKS_BY_POSITION),
    "mistral3": Family(tower=Tower("vision_tower", pooled_by_size), llm=True),
    "mistral_large4": Family(tower=Tower("vision_tower", pooled_by_size)),
    "mllama": Family(refused=_CROSS_ATTENTION),
    "molmo2": Family(two_resolutions, llm=True),
    "muse_glimmer": Family(video=frames, facts=_MIXED),
    "muse_spark": Family(video=frames, facts=_MIXED),
    "nemotron_h_omni": Family(refused=_SOUNDS),
    "ovis2": Family(joins=partial(adjacent, gap=1), tower=Tower("vision_tower", pooled), llm=True),
    "paddleocr_vl": replace(_QWEN, video=None, tower=Tower("visual", pooled_by_size), packed=False, since="5.23"),
    "paligemma": Family(tower=Tower("vision_tower", patches), projector=_PROJECTOR, llm=True),
    "perception_lm": _TILES,
    "pp_chart2table": _TILES,
    "qianfan_ocr": replace(_TILES, tower=_POOLED),
    "qwen2_5_omni": Family(refused=_TALKER),
    "qwen2_5_omni_thinker": replace(
        _QWEN, tower=_WINDOWS, packed=False, facts=("layers without windows",), since="5.24"
    ),
    "qwen2_5_vl": replace(_QWEN, tower=_WINDOWS, facts=("layers without windows",)),
    "qwen2_vl": _QWEN,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_omni_moe": Family(refused=_TALKER),
    "qwen3_omni_moe_thinker": replace(_DEEPSTACK, packed=False, since="5.24"),
    "qwen3_vl": _DEEPSTACK,
    "qwen3_vl_moe": _DEEPSTACK,
    "qwen4_exp": _LINEAR,
    "shieldgemma2": Family(refused="it judges pictures, and generates nothing"),
    "smolvlm": replace(_TILES_PER_PROMPT, since="5.21"),
    "step3p7": Family(tiles_then_whole, facts=_MIXED, since="5.24"),
    "t5gemma2": Family(refused=_ENCODER_DECODER),
    "unlimited_ocr": Family(lines_then_base, mark=newline, facts=_MIXED),
    "video_llama_3": Family(video=sifted_frames, tower=Tower("vision_model", merged_by_size, merged_by_size), llm=True),
    "video_llava": replace(_LLAVA, tower=Tower("image_tower", without_class_token(patches)), tiling=None, since="5.23"),
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
        reason = _ENCODER_DECODER
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
    if "place" in method.needs and (row.joins is not None or row.views in PARTIAL):
        return NO_PLACE
    if "tiles" in method.needs and (row.joins is not None or row.views in PARTIAL):
        return NO_TILES
    if "frames" in method.needs and row.video in NO_FRAMES:
        return NO_FRAMES[row.video]
    if row.tower is None and set(FROM_TOWER) & set(method.needs):
        return "its vision tower cannot be read by gprune"
    if method.acts == "before the tower" and not row.packed:
        return _NOT_PACKED
    if method.acts == "in the tower" and not row.projector:
        return row.unmergeable
    if method.merges and row.project is not None:
        return "it projects features after they can be replaced"
    return "its LLM is not known to gprune" if method.acts == "in the LLM" and not row.llm else None
