"""Every way to generate, against the same search by the long way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoding import MAIN, PLACEHOLDERS, beam_search, next_scores, present, sample, since
from families import BATCH, FAMILIES, IMAGE, Inputs, prompt_of
from reference import kept_prompts, text_logits
from torch import Tensor

from gprune import host
from gprune.pruners import GPrune
from gprune.pruners.base import Positions

STEPS = 4
DRAFTED = present(*MAIN, "gemma4", "glm4v", "molmo2")
SETTINGS: dict[str, Any] = {"do_sample": False, "suppress_tokens": PLACEHOLDERS}

RECURRENT = dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp", "glm5_next"), "5.20")
REPEATS = {"aria": "5.21", "muse_glimmer": "5.20", "muse_spark": "5.20", "exaone4_5": "5.20"} | RECURRENT
"""The first transformers that repeats the prompts of a family rightly."""

MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "static cache, beams": {"num_beams": 2, "cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
}
CASES: list[tuple[str, Positions]] = [(name, "original") for name in FAMILIES] + [(name, "contiguous") for name in MAIN]

pytestmark = pytest.mark.filterwarnings("ignore:.*are edges at similarity")  # of the few tokens of Aria, all


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "positions"), CASES)
def test_modes_equal_the_long_way(name: str, positions: Positions, mode: str) -> None:
    """Also where stock gets it wrong: GLM-4V repeats the images of a prompt for beams as [a, a, b, b]."""
    if name == "llama4" and mode in ("beams", "sampling", "static cache, beams"):
        pytest.skip("stock repeats prompts, but not the features of this family")
    if not since(REPEATS.get(name, "5.19")) and mode in ("beams", "sampling", "static cache, beams"):
        pytest.skip("this transformers gets it wrong by itself")
    if name == "unlimited_ocr" and mode == "static cache, beams":
        pytest.skip("stock does not put the rows of this family's static cache in the order of beams")
    family, pruner, settings = FAMILIES[name], GPrune(keep=0.4, positions=positions), MODES[mode]
    model, inputs = family.model(), family.inputs()
    repeats = settings.get("num_return_sequences", 1)
    prompts = kept_prompts(family, model, pruner, inputs)
    torch.manual_seed(0)
    if mode == "sampling":
        expected = sample(model, [prompt for prompt in prompts for _ in range(repeats)], STEPS)
    else:
        beams = settings.get("num_beams", 1)
        expected = torch.cat([beam_search(model, prompt, beams, STEPS)[:repeats] for prompt in prompts])
    torch.manual_seed(0)
    with pruner(model) as run:
        output = model.generate(**inputs, max_new_tokens=STEPS, **SETTINGS | settings)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, length:], expected)
    assert torch.equal(output[:, :length], inputs["input_ids"].repeat_interleave(repeats, 0))
    assert len(run.images) == 3


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_one_prompt_without_padding_and_without_a_cache(name: str, positions: Positions) -> None:
    """Where gaps in the position ids of a call without a mask would be the ends of packed sequences."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4, positions=positions)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    expected = text_logits(model, kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0])
    del prompt["attention_mask"]
    with pruner(model):
        logits = model(**prompt, use_cache=False).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.skipif("llama4" not in FAMILIES, reason="this transformers has no Llama 4 that works")
def test_features_that_stock_does_not_repeat_for_beams() -> None:
    family = FAMILIES["llama4"]
    model, inputs = family.model(), family.inputs()
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**inputs, num_beams=2, max_new_tokens=2)
    with GPrune(keep=0.4)(model), pytest.raises(ValueError, match="placeholders"):
        model.generate(**inputs, num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize("name", present("llava_next", "smolvlm", "qwen3_vl"))
def test_images_repeated_for_beams_are_scored_once(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    seen: list[int] = []

    class Counting(GPrune):
        def _select(self, tokens: Any, counts: Any) -> Any:
            seen.append(len(tokens.sizes))
            return super()._select(tokens, counts)

    with Counting(keep=0.4)(model):
        model.generate(**inputs, max_new_tokens=3, num_beams=4)
    assert seen == [3]  # one call, for one copy of each image


@pytest.mark.parametrize("name", MAIN)
def test_streamer_sees_prompt_and_tokens(name: str) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.pieces: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.pieces.append(value)

        def end(self) -> None:
            self.pieces.append(torch.tensor(-1))

    family, pruner, streamer = FAMILIES[name], GPrune(keep=0.4), Streamer()
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    expected = beam_search(model, kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0], 1, STEPS)[0]
    with pruner(model):
        model.generate(**prompt, max_new_tokens=STEPS, **SETTINGS, streamer=streamer)
    assert torch.equal(streamer.pieces[0], prompt["input_ids"])
    assert torch.equal(torch.cat(streamer.pieces[1:-1]), expected)
    assert streamer.pieces[-1] == -1


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", DRAFTED)
def test_tokens_drafted_by_a_model_or_from_the_prompt(name: str, positions: Positions) -> None:
    family, pruner, steps = FAMILIES[name], GPrune(keep=0.4, positions=positions), 8
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    expected = beam_search(model, kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0], 1, steps)[0]
    assistant = copy.deepcopy(model)  # prunes nothing
    with pruner(model):
        for drafts in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}):
            output = model.generate(**prompt, max_new_tokens=steps, **SETTINGS, **drafts)
            assert torch.equal(output[0, -steps:], expected)


@pytest.mark.parametrize("name", DRAFTED)
def test_drafted_tokens_are_taken_and_rolled_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three drafted tokens the third is always wrong."""
    family, pruner, steps = FAMILIES[name], GPrune(keep=0.4), 9
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    expected = beam_search(model, kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0], 1, steps)[0]

    class Drafts:
        requires_model_outputs = False
        calls = 0

        def get_candidates(self, ids: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            self.calls += 1
            known = ids.shape[1] - prompt["input_ids"].shape[1]
            drafted = expected[known : known + 3].clone()
            drafted[2:] = (drafted[2:] + 1) % IMAGE
            return torch.cat([ids, drafted[None]], dim=1), None

        def update_candidate_strategy(self, *_: Any) -> None:
            pass

    drafts = Drafts()
    monkeypatch.setattr(model, "_get_candidate_generator", lambda **_: drafts)
    with pruner(model):
        output = model.generate(**prompt, max_new_tokens=steps, **SETTINGS, prompt_lookup_num_tokens=3)
    assert torch.equal(output[0, -steps:], expected)
    assert drafts.calls == 3


def test_drafted_tokens_where_the_cache_cannot_be_rolled_back() -> None:
    family = FAMILIES["qwen3_5"]
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    with GPrune(keep=0.4)(model), pytest.raises(ValueError, match="stateful"):
        model.generate(**prompt, max_new_tokens=4, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("name", [*MAIN, "glm4v"])
def test_guidance_away_from_another_prompt(name: str) -> None:
    """The negative prompt has a cache of its own, which is not pruned, and position ids of its own."""
    family, pruner, scale = FAMILIES[name], GPrune(keep=0.4), 1.7
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    ids = torch.randint(3, 86, (1, 9), generator=torch.Generator().manual_seed(1))
    negative = Inputs(family, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **family.token_types(ids)})
    wanted = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    unwanted = kept_prompts(family, model, pruner, negative, ((),))[0]
    settings = {"guidance_scale": scale, "negative_prompt_ids": ids}
    if host.has_rope_3d(model):
        settings["use_cache"] = False
        with pytest.raises(RuntimeError, match=r"shapes|Sizes"):  # stock fails by itself
            model.generate(**prompt, **settings | {"use_cache": True}, max_new_tokens=2)
    with pruner(model):
        output = model.generate(**prompt, **settings, **SETTINGS, max_new_tokens=STEPS)
    for token in output[0, -STEPS:]:
        towards, away = next_scores(model, [wanted, unwanted])
        guided = (away + scale * (towards - away)).nan_to_num(-torch.inf, neginf=-torch.inf)
        assert token == guided.argmax()
        wanted, unwanted = wanted.followed_by(model, token), unwanted.followed_by(model, token)


def test_rows_that_lose_different_numbers_of_tokens_without_padding() -> None:
    family, pruner, images = FAMILIES["llava_next"], GPrune(keep=0.4), (((20, 40),), ((40, 40),))
    model, inputs = family.model(), family.inputs(images, seed=4)
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    inputs["attention_mask"][:] = 1
    prompts = kept_prompts(family, model, pruner, inputs, images)
    expected = torch.cat([beam_search(model, prompt, 1, STEPS) for prompt in prompts])
    with pruner(model):
        output = model.generate(**inputs, **SETTINGS, max_new_tokens=STEPS)
    assert torch.equal(output[:, -STEPS:], expected)


def test_longest_row_without_an_image() -> None:
    """The batch as a whole gets no shorter, yet one of its rows does."""
    family, pruner, images = FAMILIES["llava_next"], GPrune(keep=0.4), (((20, 40),), ())
    model, inputs = family.model(), family.inputs(images)
    wide = inputs["input_ids"].shape[1]
    inputs["input_ids"][1] = torch.randint(3, 88, (wide,), generator=torch.Generator().manual_seed(6))
    inputs["attention_mask"][1] = 1
    prompts = kept_prompts(family, model, pruner, inputs, images)
    expected = torch.cat([beam_search(model, prompt, 1, STEPS) for prompt in prompts])
    with pruner(model):
        output = model.generate(**inputs, **SETTINGS, max_new_tokens=STEPS)
    assert torch.equal(output[:, wide:], expected)
