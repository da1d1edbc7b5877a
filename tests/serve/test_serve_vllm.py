"""vLLM with the plug-in answers as transformers does with the same pruner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import (
    BUDGETS,
    DEFAULT,
    answers,
    check_runnable,
    contiguous,
    crossed,
    engine,
    expected,
    load,
    picture,
    prompt,
    pruned,
)
from servable import WRITERS

from gprune.scenes.model import embedded_path

SIZES = ((64, 64), (100, 40), (30, 90))
NOW = ("llava_next", "llava", "llava_onevision", "internvl", "mistral3")
ALONE = ("llava_onevision",)
"""Families with one image in a prompt: vLLM cuts several of them into tiles, transformers does not."""


@pytest.fixture(scope="module", params=crossed(["llava_next", *WRITERS], NOW))
def family(request: pytest.FixtureRequest) -> str:
    check_runnable(request.param)
    return request.param


@pytest.fixture(scope="module")
def path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_path() if family == "llava_next" else WRITERS[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Any]:
    """Takes 32 tokens of a prompt at a time, so that images are prefilled in parts."""
    with engine(path, **pruned(path, gprune_keep=DEFAULT), max_num_batched_tokens=32) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(path: Path) -> tuple[Any, Any]:
    return load(path)


def test_answers_equal_those_of_transformers(llm: Any, reference: tuple[Any, Any]) -> None:
    """At once, each request with its own budget, the same pictures under each."""
    model, processor = reference
    asked = [([picture(*size, seed=i)], keep) for keep in BUDGETS for i, size in enumerate(SIZES)]
    outputs = answers(llm, [prompt(processor, images, keep) for images, keep in asked])
    for (images, keep), output in zip(asked, outputs, strict=True):
        length, tokens = expected(model, processor, images, contiguous(DEFAULT if keep is None else keep))
        assert len(output.prompt_token_ids) == length
        assert list(output.outputs[0].token_ids) == tokens


def test_several_images_in_a_prompt(family: str, llm: Any, reference: tuple[Any, Any]) -> None:
    if family in ALONE:
        pytest.skip("vLLM cuts up several images otherwise than transformers")
    model, processor = reference
    images = [picture(*size, seed=10 + i) for i, size in enumerate(SIZES)]
    (output,) = answers(llm, [prompt(processor, images)])
    length, tokens = expected(model, processor, images, contiguous(DEFAULT))
    assert (len(output.prompt_token_ids), list(output.outputs[0].token_ids)) == (length, tokens)


def test_a_prompt_in_the_cache_gives_the_same_answer(llm: Any, reference: tuple[Any, Any]) -> None:
    """And one with the same pictures and another budget does not hit it."""
    _, processor = reference
    images = [picture(96, 64, seed=20 + i) for i in range(3)]  # longer than a block of the cache
    (first,) = answers(llm, [prompt(processor, images, 1.0)])
    (again,) = answers(llm, [prompt(processor, images, 1.0)])
    (other,) = answers(llm, [prompt(processor, images, 0.9)])
    assert again.num_cached_tokens > first.num_cached_tokens
    assert other.num_cached_tokens < again.num_cached_tokens
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


@pytest.mark.parametrize("keep", [0, 1.5, -3, True, "0.3", None])
def test_a_wrong_budget_fails_alone(llm: Any, reference: tuple[Any, Any], keep: Any) -> None:
    _, processor = reference
    image = picture(64, 64, seed=30)
    request = {**prompt(processor, [image]), "mm_processor_kwargs": {"gprune_keep": keep}}
    with pytest.raises(ValueError, match=r"gprune_keep: keep=.*a float in \(0, 1\], which is a ratio"):
        answers(llm, [request])
    assert len(answers(llm, [prompt(processor, [image])])) == 1


def test_other_arguments_of_the_processor_are_refused(llm: Any, reference: tuple[Any, Any]) -> None:
    """They change how an image is cut, so that features and placeholders would no longer be as many."""
    _, processor = reference
    image = picture(64, 64, seed=31)
    request = {**prompt(processor, [image]), "mm_processor_kwargs": {"size": {"shortest_edge": 8}}}
    with pytest.raises(ValueError, match="kwargs has size; with gprune a request may only set gprune_keep"):
        answers(llm, [request])
    assert len(answers(llm, [prompt(processor, [image])])) == 1
