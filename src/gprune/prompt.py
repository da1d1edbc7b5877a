"""Questions about pictures, as a model and its processor want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from .errors import BadType, BadValue

Chat = Sequence[Mapping[str, Any]]
"""A conversation as chat templates read it: messages with a "role" and a "content", a list of parts that are
{"type": "text", "text": ...} or {"type": "image", "image": a picture}."""


def build_inputs(model: Any, processor: Any, asked: Sequence[tuple[Sequence[Image.Image], str]]) -> Any:
    """Tensors of a batch of questions, on the model's device and in its dtype.

    Args:
        model: a model.
        processor: its processor, with a chat template.
        asked: per prompt the pictures and the question about them, in the chat template in this order.

    Returns:
        What the processor returns; prompts of different lengths are padded.

    Raises:
        BadType: a prompt is no such pair.
        BadValue: the processor refuses a prompt; says the sizes of its pictures.

    `inputs = build_inputs(model, processor, [([picture], "What is shown here?")])`
    """
    return build_chat_inputs(model, processor, [ask(images, question) for images, question in asked])


def ask(images: Sequence[Image.Image], question: str) -> Chat:
    """A conversation of one message: the pictures, then the question about them.

    Raises:
        BadType: a picture by itself, or no text.
    """
    if isinstance(images, (Image.Image, str)) or not isinstance(images, Iterable) or not isinstance(question, str):
        given = f"({type(images).__name__}, {type(question).__name__})"
        raise BadType(f"a prompt is {given}; accepted is ([picture, ...], question); write the pictures as a list")
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def build_chat_inputs(model: Any, processor: Any, chats: Sequence[Chat]) -> Any:
    """Tensors of a batch of conversations that the model is to go on with, on its device and in its dtype.

    Args:
        model: a model.
        processor: its processor, with a chat template.
        chats: with any number of pictures each, or none.

    Returns:
        What the processor returns; prompts of different lengths are padded.

    Raises:
        BadValue: the processor refuses a prompt; says the sizes of its pictures.
    """
    try:
        inputs = processor.apply_chat_template(
            [[dict(message) for message in chat] for chat in chats],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            # A single prompt needs no padding, and not every tokenizer has a token for it.
            processor_kwargs={"padding": len(chats) > 1, "return_tensors": "pt"},
        )
    except ValueError as error:
        sizes = ", ".join(f"{width} x {height}" for width, height in _sizes(chats)) or "none"
        raise BadValue(
            f"the processor of {model.config.model_type} cannot read this prompt (pictures: {sizes}): {error}; crop or "
            f"scale a picture that is too small, or many times as long as it is wide, or leave it out"
        ) from error
    return inputs.to(model.device, model.dtype)


def _sizes(chats: Sequence[Chat]) -> list[tuple[int, int]]:
    """(width, height) of every picture."""
    parts = [
        part
        for chat in chats
        for message in chat
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]
    return [part["image"].size for part in parts if isinstance(part.get("image"), Image.Image)]
