"""Whether a model can be pruned."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from .layouts import LAYOUTS, Layout

_CODEBOOK = "its image tokens are entries of a codebook, read like words, so that there are no features to rank"
_QUERIES = "its Q-Former already condenses every image to a few query tokens"
_CROSS_ATTENTION = "images reach its LLM by cross-attention, so that they take no place in the prompt"

REFUSED = {
    "blip-2": _QUERIES,
    "chameleon": _CODEBOOK,
    "emu3": _CODEBOOK,
    "idefics": _CROSS_ATTENTION,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "its resampler already condenses every image to a few query tokens",
    "mllama": _CROSS_ATTENTION,
}
"""Why families that take images cannot be pruned, by model_type."""


class UnsupportedModel(TypeError):
    """gprune cannot prune this model, or not with the installed version of transformers."""


def unwrapped(model: Any) -> Any:
    """The model that PEFT has put adapters on; any other model itself."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not hasattr(model, "get_base_model"):
        return model
    if adapter.is_prompt_learning:
        raise UnsupportedModel(
            f"cannot prune a {type(model).__name__} with {adapter.peft_type}: it puts virtual tokens in front of the "
            f"prompt as embeddings; accepted are adapters of the weights, such as LoRA; attach without the adapter"
        )
    return model.get_base_model()


def layout_of(model: Any) -> Layout:
    """The layout of the model's visual tokens.

    Raises:
        UnsupportedModel: not a generating model of a supported family, or transformers is too old.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if reason := refusal(config):
        raise UnsupportedModel(f"cannot prune a {type(model).__name__} (model_type={model_type!r}): {reason}")
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise UnsupportedModel(
            f"cannot prune a {type(model).__name__} (model_type={model_type!r}): it is not a model of transformers "
            f"that generates; pass the ...ForConditionalGeneration model; if this wraps one, pass the wrapped model"
        )
    layout = LAYOUTS[model.config.model_type]
    takes_features = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    if not takes_features or Version(transformers.__version__) < Version(layout.since):
        required = f"transformers>={layout.since},<6"
        raise UnsupportedModel(
            f"{type(model).__name__}.forward takes no pruned images in transformers {transformers.__version__}; "
            f"accepted is {required}; pip install '{required}'"
        )
    return layout


def refusal(config: Any) -> str | None:
    """Why models with this config cannot be pruned, and what to do; None if they can."""
    model_type = getattr(config, "model_type", None)
    if model_type in LAYOUTS:
        return None
    if model_type in REFUSED:
        reason = REFUSED[model_type]
    elif getattr(config, "is_encoder_decoder", False):
        reason = "in an encoder-decoder model, images are not in the prompt of the part that generates"
    elif hasattr(config, "vision_config"):
        reason = "its layout of visual tokens is not known to gprune; CONTRIBUTING.md shows how to add a family"
    else:
        reason = "it does not take images"
    return f"{reason}; supported are models with model_type {', '.join(LAYOUTS)}"
