"""One question about some pictures, as a processor wants it."""

from __future__ import annotations

from typing import Any

from PIL import Image

from gprune.cli.options import WrongInput


def build_inputs(model: Any, processor: Any, pictures: list[Image.Image], question: str) -> Any:
    """Tensors of one prompt on the model's device: the pictures, then the question, in the chat template.

    Raises:
        WrongInput: the question is blank, or the checkpoint has no chat template.
    """
    if not question.strip():
        raise WrongInput("the question is empty; accepted is any text; write it after the pictures, in quotes")
    if getattr(processor, "chat_template", None) is None:
        raise WrongInput("the checkpoint has no chat template; accepted are instruction-tuned checkpoints with one")
    content: list[dict[str, Any]] = [{"type": "image"} for _ in pictures]
    content.append({"type": "text", "text": question})
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=pictures, text=prompt, return_tensors="pt").to(model.device, model.dtype)
