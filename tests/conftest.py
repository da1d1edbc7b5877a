"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("gprune", deadline=None)  # a busy machine is no failure
settings.load_profile("gprune")

FIRST = {
    "llava": "one view",
    "llava_next": "tiles and newlines",
    "llava_onevision": "videos of frames",
    "qwen2_vl": "packed patches",
    "qwen2_5_vl": "windows in the tower",
    "qwen3_vl": "deepstack",
    "qwen3_5": "linear attention",
    "glm4v": "videos that share a placeholder",
    "internvl": "tiles as images",
    "smolvlm": "tiles told apart by tags",
    "gemma3": "sliding windows, images that see ahead",
    "gemma4": "shared keys, per-layer embeddings",
    "paligemma": "prompts that see ahead",
    "mistral3": "line breaks that are text",
    "aria": "queries without a grid",
    "llama4": "chunked attention",
    "lfm2_vl": "convolutions",
    "molmo2": "two resolutions",
    "kimi_k25": "averaged frames",
    "deepseek_ocr2": "separators",
    "unlimited_ocr": "a window after the prompt",
    "ernie4_5_vl_moe": "experts by modality",
    "minicpmv4_6": "slices",
    "hy_v4_vl": "fixed line ends",
    "video_llama_3": "frames thinned by the processor",
    "qwen2_5_omni_thinker": "sounds",
}
"""One model_type of every kind, and what it stands for."""

WITH_ALL = {"test_attach_equality.py"}
"""Files whose tests of every family are never left for later."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what crosses the families beyond the first of each kind to `make test-thorough`."""
    if "families" not in sys.modules:  # no test at hand takes any
        return
    families = sys.modules["families"].FAMILIES
    for item in items:
        named = set(_names(getattr(getattr(item, "callspec", None), "params", {}).values(), families))
        if named and not named & FIRST.keys() and item.path.name not in WITH_ALL:
            item.add_marker("thorough")


def _names(params: Iterable[Any], families: dict[str, Any]) -> Iterator[str]:
    for param in params:
        if isinstance(param, tuple):
            yield from _names(param, families)
        elif isinstance(name := getattr(param, "name", param), str) and name in families:
            yield name
