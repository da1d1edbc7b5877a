"""Questions about pictures, as a model and its processor want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image


def build_inputs(model: Any, processor: Any, asked: Sequence[tuple[Sequence[Image.Image], str]]) -> Any:
    """Tensors of a batch of prompts, on the model's device and in its dtype.

    Args:
        model: a model.
        processor: its processor, with a chat template.
        asked: per prompt the pictures and the question about them, in the chat template in this order.

    Returns:
        What the processor returns; prompts of different lengths are padded.
    """
    prompts = []
    for images, question in asked:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        prompts.append(
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        )
    pictures = [picture for images, _ in asked for picture in images]
    # A single prompt needs no padding, and not every tokenizer has a token for it.
    inputs = processor(images=pictures, text=prompts, padding=len(prompts) > 1, return_tensors="pt")
    return inputs.to(model.device, model.dtype)
