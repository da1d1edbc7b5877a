"""The image features of a call: generate()'s own, or those of the same encoder call made here."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .state import CacheState


class EncoderOutputs(dict[str, ModelOutput]):
    """Pre-encoded features by modality, as forward takes them; carries the call's state from hook to hook.

    Nothing else can: the cache may only come into being in between, and a call may be nested or fail.
    """

    state: CacheState | None = None


def has_images(call: dict[str, Any]) -> bool:
    """Whether a forward call carries images, as pixels or pre-encoded."""
    pixels = call.get("pixel_values")
    encoded = call.get("mm_encoder_outputs") or {}
    return encoded.get("image") is not None or (pixels is not None and pixels.numel() > 0)


def refuse_video(call: dict[str, Any]) -> None:
    """Raise ValueError if a forward call carries a video: nothing would prune it."""
    encoded = call.get("mm_encoder_outputs") or {}
    if encoded.get("video") is not None or call.get("pixel_values_videos") is not None:
        raise ValueError(
            "this call carries a video, whose tokens would be left unpruned; only images can be pruned; "
            "detach the pruner for calls with videos"
        )


def encode_images(model: PreTrainedModel, call: dict[str, Any]) -> tuple[dict[str, Any], EncoderOutputs]:
    """Take the pixels out of a call that has images, encoding them if `generate()` has not.

    Returns:
        The call and the encoder outputs for it.

    Raises:
        ValueError: the features were cut into chunks.
    """
    outputs = EncoderOutputs(call.get("mm_encoder_outputs") or {})
    if outputs.get("image") is None:
        encode: Callable[..., ModelOutput] = model.base_model.get_image_features  # type: ignore[assignment]
        inputs = {name: call[name] for name in inspect.signature(encode).parameters if name in call}
        outputs["image"] = encode(**inputs, return_dict=True)
        call = {name: value for name, value in call.items() if name != "pixel_values"}
    # generate() rebuilds the output with little but the pooled features when it cuts it for chunked prefill.
    if outputs["image"].get("last_hidden_state") is None:
        raise ValueError(
            "the image features come without last_hidden_state, as when generate() cuts them to pieces for "
            "prefill_chunk_size; images can only be pruned whole; leave prefill_chunk_size out, or pass all "
            "that get_image_features returned as mm_encoder_outputs"
        )
    return call, outputs


def image_features(output: ModelOutput) -> list[Tensor]:
    """The features [n, d] of each image in prompt order; an image repeated for beams is the same object."""
    return list(output["pooler_output"])


def keep_rows(output: ModelOutput, kept: Tensor) -> ModelOutput:
    """A copy of an encoder's output with only the rows of bool [N] `kept`, in the container forward expects.

    The original is left alone: `generate()` may use it again.
    """
    pooled = output["pooler_output"]
    rows = torch.cat(list(pooled))[kept]
    output = copy.copy(output)
    output["pooler_output"] = rows.unsqueeze(0) if isinstance(pooled, Tensor) else [rows]
    return output
