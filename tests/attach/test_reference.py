"""The matrix and the reference themselves, against stock models that prune nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decoding import cache_of, since, with_cache
from families import BATCH, FAMILIES, IMAGE, VIDEO, VIDEOS, Family, Media, is_visual
from families.mrope import MROPE
from families.square import SQUARE
from reference import embedded, greedy, kept_prompts, text_logits
from torch import Tensor

from gprune.families.table import FAMILIES as TABLE
from gprune.pruners import Uniform
from gprune.pruners.base import Positions

STEPS = 9
LOGITS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
EVERYTHING = Uniform(keep=1.0)
ONE_SIZE = {family.name for family in SQUARE} | {"perception_lm"}
NEED_IDS = {"ernie4_5_vl_moe", "gemma3", "gemma4", "gemma4_unified", "paligemma", "molmo2", "qwen4_exp"}
"""Families in which tokens see what comes after them, or are looked up anew or told apart inside the LLM."""
NEED_IDS |= {"exaone4_5", "hyperclovax_vision_v2"}  # whose generate() takes no embeddings
EMBEDDABLE = [
    family for name, family in FAMILIES.items() if name not in NEED_IDS and "deepstack levels" not in TABLE[name].facts
]
close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}

Prompts = Sequence[Sequence[Media]]
TWO_VIDEOS: Prompts = ((), ((4, (30, 18)), (4, (20, 40))), ((20, 40),))
CASES: list[tuple[Family, Prompts]] = [(family, BATCH) for family in FAMILIES.values()]
CASES += [
    (family, family.shown(media))
    for family in FAMILIES.values()
    if family.takes_videos
    for media in (VIDEOS, TWO_VIDEOS)
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].name}-{'image' if case[1] is BATCH else 'video'}")
def case(request: pytest.FixtureRequest) -> tuple[Family, Prompts]:
    return request.param


@pytest.fixture(params=FAMILIES.values(), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def stock(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [B, steps, vocabulary] and tokens [B, steps] of stock greedy decoding."""
    output = model.generate(**inputs, max_new_tokens=STEPS, **LOGITS)
    return torch.stack(output.logits, 1), output.sequences[:, -STEPS:]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_reference_that_keeps_everything_is_stock_generation(case: tuple[Family, Prompts], attention: str) -> None:
    family, images = case
    model, inputs = family.model(attention), family.inputs(images)
    logits, tokens = stock(model, inputs)
    prompts = kept_prompts(family, model, EVERYTHING, inputs, images)
    for row, prompt in enumerate(prompts):
        expected_logits, expected_tokens = greedy(model, prompt, STEPS)
        torch.testing.assert_close(logits[row], expected_logits, **close)
        assert torch.equal(tokens[row], expected_tokens)


@pytest.mark.parametrize("placeholder", [IMAGE, VIDEO])
def test_placeholder_that_the_model_speaks_is_text(family: Family, placeholder: int) -> None:
    model, inputs = family.model(), family.inputs()
    (prompt,) = kept_prompts(family, model, EVERYTHING, family.prompt_of(inputs, 2), [()])
    cache = cache_of(model(**family.prompt_of(inputs, 2)))
    call = {"input_ids": torch.tensor([[placeholder]]), "position_ids": prompt.next_position}
    expected = text_logits(model, prompt.followed_by(model, torch.tensor(placeholder)))[-1]
    torch.testing.assert_close(model(**call, **with_cache(cache)).logits[0, -1], expected, **close)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_taken_from_a_batch_gives_the_logits_it_has_there(case: tuple[Family, Prompts], side: str) -> None:
    family, images = case
    if images is not BATCH and family.name in ("gemma4", "gemma4_unified") and not since("5.24"):
        pytest.skip("asks for the numbers of frames even of a prompt without videos")
    model, inputs = family.model(), family.inputs(images, side=side)
    batch = model(**inputs).logits
    for row in range(len(images)):
        prompt = family.prompt_of(inputs, row, images)
        alone = model(**prompt).logits[0]
        assert len(alone) == int(inputs["attention_mask"][row].sum())
        torch.testing.assert_close(batch[row, inputs["attention_mask"][row].bool()], alone, **close)


def test_layouts_agree_with_placeholders_and_features(case: tuple[Family, Prompts]) -> None:
    family, images = case
    inputs = family.inputs(images)
    features = family.encode(family.model(), inputs, images)
    layouts = [family.layout(media) for prompt in images for media in prompt]
    assert [len(image) for image in features] == [count for count, _ in layouts]
    for (count, views), image in zip(layouts, features, strict=True):
        rows = [row for rows, _ in views for row in rows]
        assert rows == sorted(set(rows)) and rows[-1] < count
        assert all(grid is None or grid[0] * grid[1] == len(rows) for rows, grid in views)
        assert image.shape == (count, 32) and image.std() > 0.01
    for row, media in enumerate(images):
        assert int(is_visual(inputs["input_ids"][row]).sum()) == sum(family.layout(one)[0] for one in media)


def test_features_of_an_image_are_its_own(case: tuple[Family, Prompts]) -> None:
    """The images of a batch are told apart where the features are split."""
    family, images = case
    model, inputs = family.model(), family.inputs(images)
    together = family.encode(model, inputs, images)
    alone = []
    for row, media in enumerate(images):
        alone += family.encode(model, family.prompt_of(inputs, row, images), [media])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_images_of_different_size_have_different_numbers_of_tokens(family: Family) -> None:
    counts = {family.layout(size)[0] for prompt in BATCH for size in prompt}
    assert len(counts) == (1 if family.name in ONE_SIZE else 3)


@pytest.mark.parametrize("family", [each for each in MROPE if each.name in FAMILIES], ids=lambda family: family.name)
def test_grids_agree_with_the_position_ids(family: Family) -> None:
    """Families that number height and width apart say themselves how the rows of a view lie in its grid."""
    images = family.shown() if family.takes_videos else BATCH
    inputs = family.inputs(images)
    prompt = family.prompt_of(inputs, 1, images)
    visual = family.positions(family.model(), prompt)[1:, 0, is_visual(prompt["input_ids"][0])]
    start = 0
    for media in images[1]:
        count, views = family.layout(media)
        for rows, grid in views:
            assert grid is not None
            _, height, width = (axis[start:][rows].view(grid) for axis in visual)
            down, across = torch.arange(grid[0])[:, None], torch.arange(grid[1])
            assert torch.equal(height - height[0, 0], down.expand(grid))
            assert torch.equal(width - width[0, 0], across.expand(grid))
        start += count


@pytest.mark.parametrize("family", EMBEDDABLE, ids=lambda family: family.name)
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_stock_generation_from_kept_embeddings_is_the_reference(family: Family, positions: Positions) -> None:
    model, pruner = family.model(), Uniform(keep=0.5, positions=positions)
    prompts = kept_prompts(family, model, pruner, family.inputs())
    logits, tokens = stock(model, embedded(prompts))
    for row, prompt in enumerate(prompts):
        expected_logits, expected_tokens = greedy(model, prompt, STEPS)
        torch.testing.assert_close(logits[row], expected_logits, **close)
        assert torch.equal(tokens[row], expected_tokens)


def test_what_is_dropped_and_where_it_stood_changes_the_logits(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    kinds = [EVERYTHING, Uniform(keep=0.5), Uniform(keep=0.5, positions="contiguous")]
    last = [torch.stack([text_logits(model, p)[-1] for p in kept_prompts(family, model, k, inputs)[:2]]) for k in kinds]
    for one, other in ((0, 1), (0, 2), (1, 2)) if family.knows_positions else ((0, 1), (0, 2)):
        assert (last[one] - last[other]).abs().amax(-1).min() > 1e-2


def test_numbering_of_kept_and_of_new_tokens(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    whole = kept_prompts(family, model, EVERYTHING, inputs)
    original = kept_prompts(family, model, Uniform(keep=0.5), inputs)
    contiguous = kept_prompts(family, model, Uniform(keep=0.5, positions="contiguous"), inputs)
    for before, gaps, dense in zip(whole, original, contiguous, strict=True):
        assert torch.equal(gaps.positions, before.positions[..., gaps.kept])
        assert torch.equal(gaps.next_position, before.positions[..., -1:] + 1)  # prompts end in text
        assert torch.equal(dense.positions, torch.arange(len(dense.ids)).expand_as(gaps.positions))
        assert (dense.next_position == len(dense.ids)).all()
        assert torch.equal(gaps.kept, dense.kept) and torch.equal(gaps.ids, before.ids[gaps.kept])
