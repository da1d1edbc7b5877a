"""vLLM answers as transformers does where kept tokens of a model with one axis keep their positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import (
    BUDGETS,
    DEFAULT,
    Asked,
    answers,
    check,
    check_runnable,
    crossed,
    engine,
    load,
    picture,
    placed,
    prompt,
)
from servable import WRITERS

from gprune.scenes.model import embedded_path

SIZES = ((64, 64), (100, 40), (30, 90))


@pytest.fixture(scope="module", params=crossed(["llava_next", *WRITERS], ["llava_next", "internvl", "mistral3"]))
def family(request: pytest.FixtureRequest) -> str:
    check_runnable(request.param)
    return request.param


@pytest.fixture(scope="module")
def path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_path() if family == "llava_next" else WRITERS[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Any]:
    """Takes 32 tokens of a prompt at a time, so that images are prefilled in parts."""
    with engine(path, **placed(path, gprune_keep=DEFAULT), max_num_batched_tokens=32) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(path: Path) -> tuple[Any, Any]:
    return load(path)


def test_images_each_with_its_own_budget(llm: Any, reference: tuple[Any, Any]) -> None:
    images = [picture(*size, seed=i) for i, size in enumerate(SIZES)]
    asked: list[Asked] = [([image], keep, "what is there?") for keep in BUDGETS for image in images]
    check(llm, reference, [*asked, ([], None, "what is there?")])


def test_several_images_in_a_prompt(family: str, llm: Any, reference: tuple[Any, Any]) -> None:
    if family == "llava_onevision":
        pytest.skip("vLLM cuts up several images otherwise than transformers")
    images = [picture(*size, seed=10 + i) for i, size in enumerate(SIZES)]
    check(llm, reference, [([*images, images[1]], keep, "which are alike?") for keep in (0.7, 3)])


def test_a_prompt_whose_image_is_partly_in_the_cache(family: str, llm: Any, reference: tuple[Any, Any]) -> None:
    """Another question about the same picture goes on in the middle of it; with another budget, from the start."""
    images = [picture(96, 96, seed=30)] * (4 if family in ("llava", "internvl", "mistral3", "idefics3") else 1)
    check(llm, reference, [(images, 0.6, "what is there?")])
    (again,) = check(llm, reference, [(images, 0.6, "how many shapes?")])
    (other,) = check(llm, reference, [(images, 0.4, "how many shapes?")])
    border = again.num_cached_tokens
    assert again.prompt_token_ids[border - 1 : border + 1] == [reference[0].config.image_token_id] * 2
    assert other.num_cached_tokens < border


def test_more_is_dropped_than_there_are_positions_left(llm: Any, reference: tuple[Any, Any]) -> None:
    """vLLM counts what is left of a prompt, but positions go on as if all of it were there."""
    processor = reference[1]
    images = [picture(96, 96, seed=40 + i) for i in range(40)]
    with pytest.raises(ValueError, match=r"visual tokens of the prompt are dropped, and \d+ may be: the model has"):
        answers(llm, [prompt(processor, images, 1)])
    check(llm, reference, [(images[:1], 1, "what is there?")])
