"""Sounds in a prompt: they pass through, and are numbered with what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import cache_of, present, with_cache
from families import FAMILIES, IMAGE, Media
from families.base import Inputs
from families.parts import BREAK, LINE, TAG, VIDEO
from reference import KeptPrompt, greedy, kept_prompts
from torch import Tensor

from gprune import verify
from gprune.attach.preview import visual_tokens
from gprune.pruners import CDPruner, GPrune
from gprune.pruners.base import Positions

STEPS = 5
LENGTH = 20
THINKERS = present("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
CASES = [(name, positions) for name in THINKERS for positions in ("original", "contiguous")]
SEEN: tuple[Sequence[Media], Sequence[Media]] = (((20, 40), (30, 18)), ((20, 40), (4, (30, 18))))
close = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def sounds(count: int) -> dict[str, Tensor]:
    """So many sounds, the last one shorter than the others."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(count, LENGTH, dtype=torch.long)
    mask[-1, LENGTH - 4 :] = 0
    return {"input_features": torch.randn(count, 8, LENGTH, generator=generator), "feature_attention_mask": mask}


def features_of(model: Any, heard: dict[str, Tensor]) -> list[Tensor]:
    """The tokens [n, d] of each sound, by the stock encoder alone."""
    each = [{name: value[i : i + 1] for name, value in heard.items()} for i in range(len(heard["input_features"]))]
    return [model.base_model.get_audio_features(**one).last_hidden_state for one in each]


def heard_around(name: str, media: Sequence[Media]) -> Inputs:
    """A prompt with a sound before and one after what is seen."""
    family, heard = FAMILIES[name], sounds(2)
    model, inputs = family.model(), family.inputs([media])
    first, last = ([LINE, *[TAG] * len(rows), BREAK] for rows in features_of(model, heard))
    return _with_sounds(inputs, [*first, *inputs["input_ids"][0].tolist(), *last, 5, 6], heard)


def heard_in_video(name: str) -> Inputs:
    """A prompt with a video whose sound stands between its frames."""
    family, heard = FAMILIES[name], sounds(1)
    model, inputs = family.model(), family.inputs([((4, (30, 18)),)])
    ids = inputs["input_ids"][0].tolist()
    start, count = ids.index(VIDEO), ids.count(VIDEO)
    frame = [VIDEO] * (count // 2)
    within = [LINE, *frame, *[TAG] * len(features_of(model, heard)[0]), *frame, BREAK]
    inputs["video_second_per_grid"] = torch.tensor([2.0])
    inputs = _with_sounds(inputs, ids[:start] + within + ids[start + count :], heard)
    inputs["use_audio_in_video"] = torch.tensor(True)
    return inputs


def _with_sounds(inputs: Inputs, ids: list[int], heard: dict[str, Tensor]) -> Inputs:
    told = {**inputs, **heard, "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    return Inputs(inputs.family, told)


def expected(model: Any, pruner: GPrune, inputs: Inputs, media: Sequence[Media]) -> KeptPrompt:
    """What is left of a prompt with sounds."""
    prompt = kept_prompts(inputs.family, model, pruner, inputs, [media])[0]
    heard = {name: inputs[name] for name in ("input_features", "feature_attention_mask")}
    embeddings = prompt.embeddings.clone()
    embeddings[0, prompt.ids == TAG] = torch.cat(features_of(model, heard))
    return replace(prompt, embeddings=embeddings)


@pytest.mark.parametrize("media", SEEN, ids=["images", "image and video"])
@pytest.mark.parametrize(("name", "positions"), CASES)
def test_sounds_pass_through(name: str, positions: Positions, media: Sequence[Media]) -> None:
    model, inputs, pruner = FAMILIES[name].model(), heard_around(name, media), GPrune(keep=0.4, positions=positions)
    logits, tokens = greedy(model, expected(model, pruner, inputs, media), STEPS)
    with pruner(model):
        output = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        forward = model(**inputs)
    torch.testing.assert_close(torch.cat(output.logits), logits, **close)
    assert torch.equal(output.sequences[0, -STEPS:], tokens)
    torch.testing.assert_close(forward.logits[0, -1], logits[0], **close)
    assert forward.logits.shape[1] < inputs["input_ids"].shape[1]


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_the_sound_of_a_video_stands_between_its_frames(name: str, positions: Positions) -> None:
    model, inputs, pruner = FAMILIES[name].model(), heard_in_video(name), GPrune(keep=0.4, positions=positions)
    logits, _ = greedy(model, expected(model, pruner, inputs, [(4, (30, 18))]), STEPS)
    with pruner(model):
        output = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    torch.testing.assert_close(torch.cat(output.logits), logits, **close)


@pytest.mark.parametrize("name", THINKERS)
def test_a_sound_on_a_pruned_cache(name: str) -> None:
    family, heard = FAMILIES[name], sounds(1)
    model, inputs, pruner = family.model(), family.inputs([((20, 40),)]), GPrune(keep=0.4)
    (rows,) = features_of(model, heard)
    later = torch.tensor([[7, LINE, *[TAG] * len(rows), BREAK, 8]])
    prompt = kept_prompts(family, model, pruner, inputs, [((20, 40),)])[0]
    for token in later[0]:
        prompt = prompt.followed_by(model, token)
    embeddings = prompt.embeddings.clone()
    embeddings[0, prompt.ids == TAG] = rows
    logits, _ = greedy(model, replace(prompt, embeddings=embeddings), 1)
    with pruner(model):
        cache = cache_of(model(**inputs))
        output = model(input_ids=later, **heard, **with_cache(cache))
    torch.testing.assert_close(output.logits[:, -1], logits, **close)


@pytest.mark.parametrize("name", THINKERS)
def test_a_sound_is_no_part_of_the_question(name: str) -> None:
    model, inputs = FAMILIES[name].model(), heard_around(name, [(20, 40)])
    ids = inputs["input_ids"][0]
    text = ids[(ids != TAG) & (ids != IMAGE)]
    (question,) = visual_tokens(CDPruner(keep=0.5), model, inputs).questions
    assert torch.equal(question, model.get_input_embeddings()(text))


@pytest.mark.parametrize("name", THINKERS)
def test_checking_a_prompt_with_sounds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"the prompts hold sounds.*accepted are prompts with images or videos alone"):
        verify(FAMILIES[name].model(), heard_around(name, [(20, 40)]))
