"""Questions about pictures as a processor wants them, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from gprune.errors import BadValue
from gprune.prompt import build_inputs
from gprune.scenes.model import build_config, build_processor


class Strict:
    """A processor that refuses pictures that are many times as long as wide, as Qwen's does."""

    def apply_chat_template(self, chats: Any, **settings: Any) -> Any:
        raise ValueError("absolute aspect ratio must be smaller than 200, got 225.0")


def test_a_picture_that_the_processor_refuses_is_named_by_its_size() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_vl"))
    with pytest.raises(BadValue, match=r"processor of qwen2_vl.*900 x 4.*aspect ratio.*; crop or scale") as caught:
        build_inputs(model, Strict(), [([Image.new("RGB", (900, 4))], "what is this?")])
    assert isinstance(caught.value, ValueError)


def test_prompts_of_different_lengths_are_padded() -> None:
    model = SimpleNamespace(config=build_config(), device="cpu", dtype=None)
    pictures = [Image.new("RGB", size) for size in ((64, 64), (128, 64))]
    inputs = build_inputs(model, build_processor(), [([picture], "is there a star?") for picture in pictures])
    assert inputs["attention_mask"].sum(1).unique().numel() == 2
