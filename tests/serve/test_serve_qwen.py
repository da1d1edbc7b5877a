"""vLLM with the plug-in answers as transformers does where kept tokens keep their places in a grid: Qwen-VL, GLM-4V."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import (
    BUDGETS,
    DEFAULT,
    STEPS,
    answers,
    check,
    crossed,
    engine,
    load,
    picture,
    prompt,
    pruned,
)
from servable import EXPERIMENTAL, GLM_VIDEO, QWEN_VIDEO

from gprune import GPrune, Keep

SIZES = ((64, 64), (100, 40), (30, 90), (160, 24))


def marks_of(path: Path) -> Sequence[str]:
    """What begins a video, stands for it and ends it; images begin and end alike."""
    return GLM_VIDEO if path.name.startswith("glm") else QWEN_VIDEO


@pytest.fixture(scope="module", params=crossed(EXPERIMENTAL, ["qwen2_5_vl", "qwen3_vl", "glm4v"]))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return EXPERIMENTAL[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Any]:
    """Takes 32 tokens of a prompt at a time, so that images are prefilled in parts."""
    with engine(path, **pruned(path, gprune_keep=DEFAULT), max_num_batched_tokens=32) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(path: Path) -> tuple[Any, Any]:
    return load(path)


def test_images_of_any_shape_each_with_its_own_budget(llm: Any, reference: tuple[Any, Any]) -> None:
    images = [picture(*size, seed=i) for i, size in enumerate(SIZES)]
    check(llm, reference, [([image], keep, "what is there?") for keep in BUDGETS for image in images])


@pytest.mark.parametrize("keep", [0.7, 3])
def test_several_images_in_a_prompt(llm: Any, reference: tuple[Any, Any], keep: Keep) -> None:
    """Of several shapes, one of them twice."""
    images = [picture(*size, seed=10 + i) for i, size in enumerate(SIZES)]
    check(llm, reference, [([*images, images[1]], keep, "which are alike?")])


def test_text_alone(llm: Any, reference: tuple[Any, Any]) -> None:
    check(llm, reference, [([], None, "what is there?"), ([picture(64, 64, seed=20)], None, "what is there?")])


def test_a_prompt_whose_image_is_partly_in_the_cache(llm: Any, reference: tuple[Any, Any]) -> None:
    """Another question about the same pictures goes on in the middle of one; with another budget, from the start."""
    images = [picture(160, 120, seed=30), picture(96, 160, seed=31)]
    check(llm, reference, [(images, 0.5, "what is there?")])
    (again,) = check(llm, reference, [(images, 0.5, "how many shapes?")])
    (other,) = check(llm, reference, [(images, 0.4, "how many shapes?")])
    visual = reference[1].image_token_id
    border = again.num_cached_tokens
    assert again.prompt_token_ids[border - 1 : border + 1] == [visual, visual]
    assert other.num_cached_tokens < border


def test_images_that_span_more_positions_than_tokens(llm: Any, reference: tuple[Any, Any]) -> None:
    """Whether they fit into the model is not a matter of how many of their tokens are kept."""
    images = [picture(8, 8 * 150, seed=40 + i) for i in range(14)]
    with pytest.raises(ValueError, match=r"the images span 2100 positions, .* the model has 2048; send fewer"):
        answers(llm, [prompt(reference[1], images, 1)])
    check(llm, reference, [(images[:13], 1, "what is there?")])


def test_an_image_may_come_last(llm: Any, reference: tuple[Any, Any]) -> None:
    """What follows goes on after all of it."""
    model, processor = reference
    text, image = f"what is {processor.image_token}", picture(100, 40, seed=60)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with GPrune(DEFAULT).attach(model):
        whole = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0].tolist()
    (output,) = answers(llm, [{"prompt": text, "multi_modal_data": {"image": [image]}}])
    assert list(output.outputs[0].token_ids) == whole[-STEPS:]


def test_videos_are_refused(path: Path, llm: Any, reference: tuple[Any, Any]) -> None:
    from vllm.exceptions import VLLMValidationError

    video = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    metadata = {"fps": 1.0, "duration": 4.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    request = {"prompt": "".join(marks_of(path)), "multi_modal_data": {"video": [(video, metadata)]}}
    with pytest.raises(VLLMValidationError, match=r"At most 0 video\(s\) may be provided"):
        answers(llm, [request])
    check(llm, reference, [([picture(64, 64, seed=61)], None, "what is there?")])
