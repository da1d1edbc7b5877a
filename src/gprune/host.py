"""What gprune relies on in transformers: a name of its that may change stands in this file alone.

A pruner lives in somebody else's model. So every question to that model is a function here, in gprune's own words and
answered for every supported version; what is missing is refused by name, never guessed. Not listed are the words that
every caller shares with its processor (`input_ids`, `attention_mask`, `position_ids`, `pixel_values`), and the parts
that tell one family from another.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, Cache, GenerationMixin, PreTrainedModel, StaticCache, vision_utils
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.image_processing_utils import select_best_resolution
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate
from transformers.utils import ModelOutput

from .errors import UnsupportedModel

# --- Versions ---------------------------------------------------------------------------------------------------------

SUPPORTED = "transformers>=5.19,<5.25"
NEWEST_TESTED = Version("5.24.0")
"""A newer one is checked on the model at hand by `gprune.verify`; docs/compatibility.md says how it is taken in."""


def installed() -> Version:
    """The version of transformers that is imported."""
    return Version(transformers.__version__)


def untested() -> bool:
    """Whether the installed transformers is newer than any that gprune was tested with."""
    return installed() > NEWEST_TESTED


def lacks(owner: str, missing: str) -> UnsupportedModel:
    """The error for a name that gprune relies on and that is not there."""
    return UnsupportedModel(
        f"{owner} has no {missing} in transformers {installed()}, which gprune relies on; tested are {SUPPORTED}; "
        f"pip install '{SUPPORTED}'"
    )


# --- Arguments of forward ---------------------------------------------------------------------------------------------

Modality = Literal["image", "video"]
PIXELS: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The argument with the pixels of each modality."""

CACHES = ("cache", "past_key_values")
"""What the argument with the KV cache is called: the first since 5.24, the second before and, until 5.40, beside it."""

ENCODED = "mm_encoder_outputs"
"""The argument with features that are encoded already: modality -> output of its encoder."""

LOGITS = "logits_to_keep"
"""The argument that says of how many last columns logits are wanted; 0 for all."""

EXPERT_TYPES = "moe_mm_token_type_ids"
"""The argument by which layers choose experts, of the tokens of a call alone."""

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", EXPERT_TYPES)
"""Arguments that tell the kinds of visual tokens from text, which is 0."""

ALIGNED = {"labels": -100, **dict.fromkeys(TOKEN_TYPES, 0)}
"""Arguments [B, q] with a value per column of input_ids, and what fills them where there is padding."""

_SEQUENCE = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", *ALIGNED)


def forward_arguments(model: Module) -> list[str]:
    """The arguments of the model's forward by name, in the order in which they may be given without.

    A forward that hands `*args, **kwargs` on is read where the names are said: in the class that it overrides.

    Raises:
        UnsupportedModel: no forward takes encoded features, or none a KV cache.
    """
    kind = type(model)
    names = _named(kind.forward)
    kinds = {parameter.kind for parameter in inspect.signature(kind.forward).parameters.values()}
    if ENCODED not in names and inspect.Parameter.VAR_KEYWORD in kinds:
        inner = (_named(vars(each)["forward"]) for each in kind.__mro__[1:] if "forward" in vars(each))
        names += [name for name in next((each for each in inner if ENCODED in each), []) if name not in names]
    if ENCODED in names and any(name in names for name in CACHES):
        return names[1:]
    if not kind.forward.__module__.startswith("transformers."):
        raise UnsupportedModel(
            f"{kind.__name__}.forward was overridden by {kind.forward.__module__}.{kind.forward.__qualname__}, which "
            f"does not name {ENCODED} and {' or '.join(CACHES)}; accepted is a forward that names them, or one of a "
            f"subclass that hands **kwargs on; attach before it is patched, or wrap it with functools.wraps"
        )
    raise lacks(f"{kind.__name__}.forward", ENCODED if ENCODED not in names else f"argument {' or '.join(CACHES)}")


def _named(function: Callable[..., Any]) -> list[str]:
    """The arguments of a function that have a name of their own."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among arguments by name; None if there is none."""
    for name in CACHES:
        if (cache := arguments.get(name)) is not None:
            return cache
    return None


def with_cache(function: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """The argument that hands a KV cache to a function of transformers."""
    taken = inspect.signature(function).parameters
    name = next((name for name in CACHES if name in taken), None)
    if name is None:
        raise lacks(getattr(function, "__qualname__", str(function)), f"argument {' or '.join(CACHES)}")
    return {name: cache}


def cache_in(output: Any) -> Any:
    """The KV cache in what forward or `generate()` returned; None if there is none."""
    values = output if isinstance(output, tuple) else output.values()
    return next((value for value in values if isinstance(value, Cache)), None)


def modalities(call: Mapping[str, Any]) -> list[Modality]:
    """The modalities that a forward call carries, as pixels or pre-encoded."""
    encoded, carried = call.get(ENCODED), []
    for modality, name in PIXELS.items():
        pixels = call.get(name)
        if (pixels is not None and pixels.numel() > 0) or (encoded and encoded.get(modality) is not None):
            carried.append(modality)
    return carried


def check_arguments(call: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel if a call carries a KV cache under a name that gprune does not know."""
    unknown = [name for name, value in call.items() if isinstance(value, Cache) and name not in CACHES]
    if unknown:
        raise lacks("forward", f"known name for the KV cache that it is given as {' and '.join(unknown)}")


def check_per_token(model: PreTrainedModel, call: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel if a call has a value per token that gprune does not know, and so could not shorten."""
    known = {*_SEQUENCE, *CACHES, *grid_arguments(model)}
    for name in (*map(encoder_name, PIXELS), _SOUND_ENCODER):
        known.update(_named(getattr(model.base_model, name, _no_encoder)))
    batch, length = call["input_ids"].shape
    for name, value in call.items():
        if name in known or not isinstance(value, Tensor):
            continue
        shape = tuple(value.shape)
        if shape == (length,) or shape[-2:] == (batch, length) or (shape[:1] == (batch,) and length in shape[1:]):
            raise UnsupportedModel(
                f"forward is given {name} of shape {list(shape)}, a value for each of {length} tokens of the prompt, "
                f"which gprune does not know in transformers {installed()} and cannot shorten; accepted are "
                f"{', '.join(_SEQUENCE)}; leave {name} out, or detach the pruner for this call"
            )


def _no_encoder() -> None:
    """In the place of an encoder that a model does not have."""


# --- KV caches --------------------------------------------------------------------------------------------------------


def columns_of(cache: Any) -> int:
    """How many columns a KV cache holds; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Arguments that tell attention kernels where the sequences of a pack begin."""


def counter_of(cache: Any) -> Any:
    """The same as the cache itself counts: of a static cache a tensor on its device, which compiled code can read."""
    return cache.get_seq_length()


def capacity_of(cache: Any) -> int | None:
    """How many columns a KV cache has room for, if that is fixed beforehand, as for compiled decoding.

    Layers that keep a prompt apart have room for it and for a window of what follows; the rest passes through.
    """
    return max(map(_room_in, cache.layers)) if isinstance(cache, StaticCache) else None


def _room_in(layer: Any) -> int:
    apart = hasattr(layer, _APART)
    return int(layer.prefill_max_cache_len + layer.max_cache_len if apart else layer.get_max_length())


_APART = "prefill_length"
"""In layers of a cache that keep all of a prompt and a window of what follows: how many columns the prompt has."""

_APART_KEYS = ("all_keys", "prefill_keys")
"""What such layers call the keys of their prompts, the first where there are both; other layers have `keys` alone."""


def last_layer(cache: Any) -> Any:
    """The last layer of a cache that holds every column of a prompt; None if none does."""
    for layer in reversed(getattr(cache, "layers", ())):
        if hasattr(layer, _APART) or type(layer) in (DynamicLayer, StaticLayer):
            return layer
    return None


def keys_name(layer: Any) -> str:
    """What such a layer calls its keys [B, heads, columns, d], of at least the prompt; None while it is empty."""
    return next((name for name in _APART_KEYS if hasattr(layer, name)), "keys")


def replaces_keys(layer: Any) -> bool:
    """Whether whatever is done to a layer of a cache leaves another tensor of keys in it."""
    return type(layer) is DynamicLayer


def shorten_prompt(cache: Any, before: int, after: int) -> None:
    """Tell layers that were told how long a prompt is, which they keep apart from what follows, that it is shorter.

    Args:
        before, after: the columns of the call that brings it, without pruning and with it.
    """
    for layer in getattr(cache, "layers", ()):
        told = getattr(layer, _APART, None)
        if told is not None:
            most = getattr(layer, "prefill_max_cache_len", None)  # they were told no more than there is room for
            setattr(layer, _APART, min(after, most) if told == most else told - (before - after))


def uneven_layers(cache: Any) -> set[str]:
    """The kinds of a cache's layers that cannot be of different lengths."""
    return {type(layer).__name__ for layer in getattr(cache, "layers", ()) if type(layer) is not DynamicLayer}


def kv_bytes(cache: Any) -> int:
    """Bytes of all tensors in the layers of a KV cache."""
    states = (state for layer in cache.layers for state in vars(layer).values())
    return sum(state.nbytes for state in states if isinstance(state, Tensor))


# --- Image processors -------------------------------------------------------------------------------------------------

_PROCESSORS = {"Idefics3": "idefics3", "LlavaNext": "llava_next"}


def image_processor(family: str) -> Any:
    """The class of a family's image processor that works on pictures of Pillow, and so without torchvision."""
    module = f"transformers.models.{_PROCESSORS[family]}.image_processing_pil_{_PROCESSORS[family]}"
    try:
        return getattr(importlib.import_module(module), f"{family}ImageProcessorPil")
    except (ImportError, AttributeError) as error:
        raise lacks(module, f"{family}ImageProcessorPil") from error


def smart_size(size: tuple[int, int], multiple: int, least: int, most: int) -> tuple[int, int]:
    """(height, width), in multiples, that Qwen-VL scales an image to, with at least and at most so many pixels."""
    module = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    try:
        height, width = importlib.import_module(module).smart_resize(*size, multiple, least, most)
    except (ImportError, AttributeError) as error:
        raise lacks(module, "smart_resize") from error
    return height, width


# --- Placeholders and encoders ----------------------------------------------------------------------------------------

POOLED = "pooler_output"
"""The field of an encoder's output with the visual tokens as the LLM receives them."""

UNPOOLED = "last_hidden_state"
"""The field of an encoder's output with all that its tower made; missing where `generate()` has cut the output."""

DEEPSTACK = "deepstack_features"
"""The field of an encoder's output with what is added to visual tokens in layers of the LLM, one tensor a layer."""


def placeholders(config: Any) -> list[int]:
    """The token ids that stand for visual tokens of any modality."""
    return [token for token in (placeholder(config, modality) for modality in PIXELS) if token >= 0]


def text_token(model: PreTrainedModel) -> int:
    """A token id for padding, which the mask hides, but which must not count as a placeholder."""
    return next(token for token in range(3) if token not in placeholders(model.config))


def placeholder(config: Any, modality: Modality = "image") -> int:
    """The token id that stands for a visual token of a modality in input_ids; -1 if there are no videos.

    Raises:
        UnsupportedModel: the config has no such id for images.
    """
    token = getattr(config, f"{modality}_token_id", None)
    if token is None and modality == "image":
        raise lacks(type(config).__name__, "image_token_id")
    return -1 if token is None else int(token)


_SOUND_ENCODER = "get_audio_features"
_SOUND_MASK, _SOUND_LENGTHS = "feature_attention_mask", "audio_feature_lengths"
"""Which features of a sound are no padding; how many that are, by which models number the tokens of sounds."""


def sound_token(config: Any) -> int:
    """The token id that stands for a piece of a sound in input_ids; -1 if there are no sounds."""
    token = getattr(config, "audio_token_id", None)
    return -1 if token is None else int(token)


def encoder_name(modality: Modality) -> str:
    """The name of the base model's method that makes visual tokens of pixels."""
    return f"get_{modality}_features"


def encoder_of(model: PreTrainedModel, modality: Modality) -> Callable[..., ModelOutput] | None:
    """The method that makes visual tokens of pixels; None for a modality that the model does not take."""
    return getattr(model.base_model, encoder_name(modality), None)


def encode(model: PreTrainedModel, modality: Modality, **inputs: Any) -> Any:
    """Make visual tokens of pixels, with the arguments of the encoder by name.

    Raises:
        UnsupportedModel: there is no such encoder.
    """
    encoder = encoder_of(model, modality)
    if encoder is None:
        raise lacks(type(model.base_model).__name__, encoder_name(modality))
    return encoder(**inputs, return_dict=True)


def encoder_arguments(model: PreTrainedModel, modality: Modality) -> list[str]:
    """The names of the encoder's arguments; empty for a modality that the model does not take."""
    encoder = encoder_of(model, modality)
    return [] if encoder is None else _named(encoder)


def check_encoder(model: PreTrainedModel, modality: Modality, fields: Sequence[str]) -> None:
    """Raise UnsupportedModel unless the encoder is there and says that it returns these fields.

    Those of videos do not all say so truly; what they return is checked when they are called (`check_encoded`).
    """
    encoder = encoder_of(model, modality)
    base = type(model.base_model).__name__
    if encoder is None:
        raise lacks(base, encoder_name(modality))
    returned = inspect.signature(encoder).return_annotation
    kinds = [kind for kind in typing.get_args(returned) or (returned,) if dataclasses.is_dataclass(kind)]
    stated = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    for field in fields if stated else ():
        if field not in stated:
            raise lacks(f"what {base}.{encoder_name(modality)} returns", field)


def check_encoded(output: Any, modality: Modality, fields: Sequence[str]) -> None:
    """Raise UnsupportedModel unless what an encoder returned has these fields."""
    if not isinstance(output, ModelOutput):
        raise lacks(f"{encoder_name(modality)} returned a {type(output).__name__}, which", f"field {fields[0]}")
    for field in fields:
        if output.get(field) is None:
            raise lacks(f"what {encoder_name(modality)} returned", f"field {field}")


# --- Masks ------------------------------------------------------------------------------------------------------------

MASK_MAKER = "create_masks_for_generate"
"""The model's own function, if it has one, that makes the mask of a static cache for `generate()`."""


PREPARE = "prepare_inputs_for_generation"
"""The model's method by which `generate()` makes the arguments of forward."""

NEXT = "next_sequence_length"
"""By which `generate()` tells that method how many tokens are new, but of a chunk of them."""


def check_preparing() -> None:
    """Raise UnsupportedModel unless chunks can be told."""
    if NEXT not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
        raise lacks("transformers.GenerationMixin", f"{PREPARE} with the argument {NEXT}")


def mask_maker(model: PreTrainedModel) -> Callable[..., Any]:
    """What `generate()` makes a 4-D mask with when the cache is static."""
    return getattr(model, MASK_MAKER, create_masks_for_generate)


def first_step(arguments: Mapping[str, Any]) -> bool:
    """Whether `generate()` asks for the mask of its prefill."""
    return bool(arguments.get("is_first_iteration"))


# --- The LLM ----------------------------------------------------------------------------------------------------------

BACKENDS = ("eager", "sdpa")
"""Attention backends that take a mask of any shape."""

ROPE = "position_embeddings"
"""The argument of a layer with the rotations of its tokens."""

_APART_KINDS = {"reference_sliding_attention"}
_RECURRENT = {"conv", "hybrid", "hybrid_sliding", "linear_attention"}


def decoder_of(model: PreTrainedModel) -> Any:
    """The stack of layers that reads the prompt."""
    return model.get_decoder()


def embeddings_of(model: PreTrainedModel) -> Tensor:
    """The LLM's input embeddings, floating [vocabulary, d]."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def layers_of(decoder: Any) -> Any:
    """The layers of the LLM, in order."""
    return decoder.layers


def attention_in(layer: Any) -> Any:
    """The attention of a layer of the LLM."""
    return layer.self_attn


def check_layers(model: PreTrainedModel) -> None:
    """Raise UnsupportedModel unless hooks on the layers of the LLM would find what narrows them."""
    decoder = decoder_of(model)
    if not getattr(decoder, "layers", None):
        raise lacks(type(decoder).__name__, "layers")
    layer = layers_of(decoder)[0]
    if not hasattr(layer, "self_attn"):
        raise lacks(type(layer).__name__, "self_attn")
    taken = list(inspect.signature(type(layer).forward).parameters)[1:]
    for name in ("hidden_states", "attention_mask", "position_ids", ROPE):
        if name not in taken:
            raise lacks(f"{type(layer).__name__}.forward", f"argument {name}")
    if taken[0] != "hidden_states":
        raise lacks(f"{type(layer).__name__}.forward", f"hidden_states as its first argument, but {taken[0]}, and")
    with_cache(type(layer).forward, None)


BACKEND_FIELD = "_attn_implementation"
"""What a config calls the attention backend."""


def backend_of(module: Any) -> str:
    """The attention backend of a module, or of a config, by its name."""
    return getattr(getattr(module, "config", module), BACKEND_FIELD) or ""


def register_backend(name: str, attention: Callable[..., Any]) -> None:
    """Make a function known as an attention backend."""
    AttentionInterface.register(name, attention)


def with_backend(config: Any, name: str) -> Any:
    """A copy of a config with another attention backend."""
    config = copy.copy(config)
    config._attn_implementation_internal = name
    return config


def attend(backend: str, module: Module, *states: Any, **kwargs: Any) -> Any:
    """Call one of `BACKENDS` for a module."""
    if backend == "sdpa":
        return sdpa_attention_forward(module, *states, **kwargs)
    # Every family has its own.
    return sys.modules[type(module).__module__].eager_attention_forward(module, *states, **kwargs)


def layer_kinds(config: Any) -> set[str]:
    """The kinds of layers of an LLM that are told apart; empty where all are alike."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ())


def recurrent_kinds(config: Any) -> set[str]:
    """Those of `layer_kinds` that read their tokens one after the other, padding too."""
    return layer_kinds(config) & _RECURRENT


def windowed_kinds(config: Any) -> set[str]:
    """Those of `layer_kinds` that keep a prompt apart from a window of what follows, and lose its padding there."""
    return layer_kinds(config) & _APART_KINDS


def window_of(config: Any) -> int | None:
    """How many tokens the layers of an LLM look back; None for all."""
    return getattr(config.get_text_config(), "sliding_window", None)


def deepstack_levels(config: Any) -> int:
    """Into how many of its first layers the LLM is given deepstack features; 0 for families without."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


Fact = Literal["kinds of layers", "deepstack levels", "layers without windows"]
_FACTS: dict[Fact, tuple[str, str]] = {
    "kinds of layers": ("text", "layer_types"),
    "deepstack levels": ("vision", "deepstack_visual_indexes"),
    "layers without windows": ("vision", "fullatt_block_indexes"),
}


def check_facts(config: Any, facts: Sequence[Fact]) -> None:
    """Raise UnsupportedModel if a config does not say what those of its family say, which cannot be guessed."""
    for part, name in (_FACTS[fact] for fact in facts):
        owner = config.get_text_config() if part == "text" else config.vision_config
        if getattr(owner, name, None) is None:
            raise lacks(type(owner).__name__, name)


def recomputes(module: Module) -> bool:
    """Whether layers in a module, while training, are computed again for gradient checkpointing."""
    return module.training and any(getattr(each, "gradient_checkpointing", False) for each in module.modules())


# --- Positions --------------------------------------------------------------------------------------------------------

_POSITIONS_3D = "compute_3d_position_ids"
_OFFSET = "rope_deltas"


def has_rope_3d(model: PreTrainedModel) -> bool:
    """Whether the model numbers visual tokens by time, height and width."""
    return hasattr(model.base_model, _POSITIONS_3D)


def check_rope_3d(model: PreTrainedModel, expected: bool) -> None:
    """Raise UnsupportedModel unless the model numbers visual tokens as its family is known to."""
    base, kind = model.base_model, type(model.base_model).__name__
    if expected:
        for name in (_POSITIONS_3D, _OFFSET):
            if not hasattr(base, name):
                raise lacks(kind, name)
        with_cache(getattr(base, _POSITIONS_3D), None)
    elif has_rope_3d(model):
        raise UnsupportedModel(
            f"{kind} has {_POSITIONS_3D} in transformers {installed()}: it numbers visual tokens along three axes, and "
            f"did not in any version that was tested; accepted is {SUPPORTED}; pip install '{SUPPORTED}'"
        )


ROPE_INDEX = "get_rope_index"
"""The method of a base model that numbers a prompt along three axes, for `generate()` too."""


def rope_offset(model: PreTrainedModel) -> Tensor | None:
    """int64 [B, 1]: by how much the model's last call with images had its positions ahead of its tokens' number."""
    return getattr(model.base_model, _OFFSET)


def set_rope_offset(model: PreTrainedModel, offset: Tensor | None) -> None:
    """Have the model believe that its last call with images ended so far ahead."""
    setattr(model.base_model, _OFFSET, offset)


def grid_arguments(model: PreTrainedModel) -> list[str]:
    """The arguments with the grids of images and videos that `positions_3d` reads; empty where it is not there."""
    if not has_rope_3d(model):
        return []
    taken = inspect.signature(getattr(model.base_model, _POSITIONS_3D)).parameters
    return [name for name in taken if name not in (*_SEQUENCE, *CACHES)]


def positions_3d(model: PreTrainedModel, call: Mapping[str, Any], new: Tensor) -> Tensor | None:
    """The positions that the model itself would give to a call that begins a sequence: int64 [3, B, q].

    Args:
        call: the arguments by name.
        new: bool [B, q], which columns of the call hold a token.
    """
    compute = getattr(model.base_model, _POSITIONS_3D)
    arguments = {name: call.get(name) for name in inspect.signature(compute).parameters}
    arguments |= {"inputs_embeds": torch.empty(*new.shape, 0, device=new.device), "attention_mask": new.long()}
    if _SOUND_LENGTHS in arguments and call.get(_SOUND_MASK) is not None:
        arguments[_SOUND_LENGTHS] = call[_SOUND_MASK].sum(dim=1)
    return compute(**(arguments | with_cache(compute, None)))


# --- The vision tower -------------------------------------------------------------------------------------------------


def attention_layers(tower: Module) -> list[Module]:
    """The self-attention layers of a tower whose backend can be chosen, in order; not that of a merger on the way."""
    return [
        module
        for name, module in tower.named_modules()
        if hasattr(module, "config")
        and "merger" not in name
        and any(hasattr(module, q) for q in ("qkv", "k_proj", "k"))
    ]


def has_class_token(tower: Module) -> bool:
    """Whether the first token of every image stands for the whole image."""
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())


def whole_layers(tower: Any) -> list[int]:
    """In a tower with windows, the indices of the layers without; empty where no layer has any.

    In a tower that merges patches on its way, those of the layers after, which see what becomes visual tokens.
    """
    if (merging := getattr(tower.config, "insert_layer_id", None)) is not None:
        return list(range(merging + 1, tower.config.num_hidden_layers))
    return list(getattr(tower.config, "fullatt_block_indexes", None) or ())


PATCHES, GRIDS = "hidden_states", "grid_thw"
"""The arguments of a tower of packed patches: the pixels of each, [P, values], and int64 [images, 3], time, height and
width of every picture in patches."""

PLACES, ENDS = "position_ids", "cu_seqlens"
TAPS, WEIGHTS = "interp_indices", "interp_weights"
WINDOWS, WINDOW_ENDS = "window_index", "cu_window_seqlens"
"""What such a tower works out of its grids, but takes ready-made too: of every patch its place, and where in the table
of learned places that is; where pictures end; the order of the tokens by windows, and where those end, in patches."""

_TABLES = {
    "get_vision_position_ids": (PLACES,),
    "get_vision_cu_seqlens": (ENDS,),
    "get_vision_interpolation_indices_and_weights": (TAPS, WEIGHTS),
    "get_vision_window_index": (WINDOWS, WINDOW_ENDS),
}


def check_packed_tower(tower: Any) -> None:
    """Raise UnsupportedModel unless a tower takes packed patches, and what it would work out of their grids."""
    kind, forward = type(tower).__name__, inspect.signature(type(tower).forward).parameters
    for name in (PATCHES, GRIDS):
        if name not in forward:
            raise lacks(f"{kind}.forward", f"argument {name}")
    if not any(each.kind is each.VAR_KEYWORD for each in forward.values()):
        raise lacks(f"{kind}.forward", f"**kwargs with {PLACES} and {ENDS}")
    for name in ("spatial_merge_size", "patch_embed"):
        if not hasattr(tower, name):
            raise lacks(kind, name)
    if not hasattr(tower.patch_embed, "in_channels"):
        raise lacks(type(tower.patch_embed).__name__, "in_channels")
    for name in _TABLES:
        if not hasattr(vision_utils, name) or "kwargs" not in inspect.signature(getattr(vision_utils, name)).parameters:
            raise lacks("transformers.vision_utils", f"{name} with the argument kwargs")


def packed_call(tower: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a tower of packed patches, by name."""
    return {**dict(zip(_named(type(tower).forward)[1:], args, strict=False)), **kwargs}


def patches_of_token(tower: Any) -> int:
    """How many patches, one after the other, such a tower makes one visual token of."""
    return int(tower.spatial_merge_size) ** 2


def colour_channels(tower: Any) -> int:
    """How many colour channels follow each other in the pixels of a patch."""
    return int(tower.patch_embed.in_channels)


def packed_tables(tower: Any, grids: Tensor) -> dict[str, Tensor]:
    """What a tower of packed patches would work out of the grids of its pictures, by their names."""
    merge = tower.spatial_merge_size
    tables = {
        PLACES: vision_utils.get_vision_position_ids(grids, merge),
        ENDS: vision_utils.get_vision_cu_seqlens(grids),
    }
    if hasattr(tower, "window_size"):
        tables[WINDOWS], tables[WINDOW_ENDS] = vision_utils.get_vision_window_index(
            grids, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
        )
    if hasattr(tower, "num_grid_per_side"):
        tables[TAPS], tables[WEIGHTS] = vision_utils.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    return tables


FEATURE_LAYERS = ("vision_feature_layer", "vision_feature_layers")
"""Says which hidden states of the tower become visual tokens; the second is VipLLaVA's before 5.24."""

STRATEGY = "vision_feature_select_strategy"
"""Says how visual tokens are taken of hidden states: "default" leaves the first out."""


def feature_layers(config: Any, arguments: Mapping[str, Any]) -> int | Sequence[int]:
    """Which hidden states of the tower become visual tokens: as the encoder is told, the config says, or the last."""
    for name in FEATURE_LAYERS:
        chosen = arguments.get(name)
        chosen = getattr(config, name, None) if chosen is None else chosen
        if chosen is not None:
            return chosen
    return -1


def feature_strategy(config: Any, arguments: Mapping[str, Any]) -> str | None:
    """How visual tokens are taken of hidden states: "default" leaves the first out; None in families that take all."""
    chosen = arguments.get(STRATEGY)
    return getattr(config, STRATEGY, None) if chosen is None else chosen


def best_resolution(size: tuple[int, int], resolutions: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(height, width) of the canvas that an any-resolution model cuts an image of `size` into tiles on."""
    height, width = select_best_resolution(size, list(resolutions))
    return height, width
