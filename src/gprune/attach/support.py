"""Whether a model can be pruned."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import PreTrainedModel

from .layouts import LAYOUTS, Layout

REQUIRED = "transformers>=5.19,<6"


class UnsupportedModel(TypeError):
    """gprune cannot prune this model, or not with the installed version of transformers."""


def layout_of(model: Any) -> Layout:
    """The layout of the model's visual tokens.

    Raises:
        UnsupportedModel: not a generating model of a supported family, or transformers is too old.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model_type not in LAYOUTS:
        raise UnsupportedModel(
            f"cannot prune a {type(model).__name__} (model_type={model_type!r}); supported are the "
            f"...ForConditionalGeneration models of transformers with model_type {', '.join(LAYOUTS)}; "
            f"if it is a wrapper around one of these, attach to the wrapped model"
        )
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise UnsupportedModel(
            f"{type(model).__name__}.forward takes no mm_encoder_outputs in transformers "
            f"{transformers.__version__}; accepted is {REQUIRED}; pip install '{REQUIRED}'"
        )
    return LAYOUTS[model_type]
