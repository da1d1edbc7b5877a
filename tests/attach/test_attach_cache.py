"""Going on with a pruned cache, against the long way: more text, more images, more rows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import MAIN, PLACEHOLDERS, cache_of, joined, present, since, with_cache
from families import BATCH, FAMILIES, Family, Inputs, Size, is_visual, prompt_of
from families.base import PER_TOKEN
from families.parts import BEGIN, BREAK, END, GLOBAL, LINE, TAG
from families.tiled import Idefics3
from reference import KeptPrompt, greedy, kept_prompts, text_logits
from torch import Tensor
from transformers import DynamicCache, StaticCache

from gprune import host
from gprune.families.table import FAMILIES as TABLE
from gprune.pruners import GPrune
from gprune.pruners.base import Positions

LOGITS: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": PLACEHOLDERS, **LOGITS}
LIKE_TEXT = ("cosmos3_edge", "minicpmv4_7", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
"""Families whose own generate() numbers images like text that are added to a cache, as all did before 5.23."""

MROPE = [name for name in FAMILIES if TABLE[name].rope_3d]
CASES: list[tuple[str, Positions]] = [(name, "original") for name in FAMILIES] + [(name, "contiguous") for name in MAIN]
MARKS = {BEGIN, END, LINE, BREAK, TAG, GLOBAL}
close = {"rtol": 0, "atol": 2e-5}

pytestmark = pytest.mark.filterwarnings("ignore:.*are edges at similarity")  # of the few tokens of Aria, all


@pytest.fixture(params=["llava_next", "llava_onevision"])
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(params=["original", "contiguous"])
def pruner(request: pytest.FixtureRequest) -> GPrune:
    return GPrune(keep=0.4, positions=request.param)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def logits_of(model: Any, prompt: KeptPrompt, output: Any) -> Tensor:
    """[n, vocabulary]: those of the n tokens generated last, by what was kept of the prompt and all after it."""
    for token in output.sequences[0, len(prompt.kept) :]:
        prompt = prompt.followed_by(model, token)
    return text_logits(model, prompt)[-len(output.logits) - 1 : -1]


def question(rows: int, length: int) -> Tensor:
    return torch.randint(3, 88, (rows, length), generator=torch.Generator().manual_seed(5))


def pixels_of(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in PER_TOKEN}


def grids_of(inputs: Inputs) -> dict[str, Tensor]:
    """What tells the shapes of images, without their pixels."""
    return {name: grid for name, grid in inputs.items() if name.endswith("_grid_thw") or name == "target_sizes"}


def types_of(inputs: Inputs, length: int) -> dict[str, Tensor]:
    """The token types, with those of text for the tokens that came after the prompts."""
    types = {name: value for name, value in inputs.items() if name.endswith("token_type_ids")}
    return {name: torch.nn.functional.pad(value, (0, length - value.shape[1])) for name, value in types.items()}


@pytest.mark.parametrize(("cache", "length"), [("returned", 60), ("copied", 5), ("static", 60)])
@pytest.mark.parametrize(("name", "positions"), CASES)
def test_second_turn_on_a_pruned_cache(name: str, positions: Positions, cache: str, length: int) -> None:
    """Whatever of the first prompt the caller repeats: only ids, the kinds of tokens too, or the grids as well."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4, positions=positions)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    kept = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    first = with_cache(StaticCache(config=model.config, max_cache_len=400)) if cache == "static" else {}
    with pruner(model):
        turn = model.generate(**prompt, **GREEDY, **first)
        ids = torch.cat([turn.sequences, question(1, length)], dim=1)
        grids = grids_of(prompt)
        types = types_of(prompt, ids.shape[1])
        ways = [{}, {"attention_mask": torch.ones_like(ids)}, types, types | grids]
        for way in ways if cache == "copied" else ways[:1]:
            past = copy.deepcopy(cache_of(turn)) if cache == "copied" else cache_of(turn)
            output = model.generate(ids, **way, **with_cache(past), **GREEDY)
            torch.testing.assert_close(torch.cat(output.logits), logits_of(model, kept, output), **close)


@pytest.mark.parametrize("name", MROPE)
def test_two_conversations_in_turns(name: str) -> None:
    """The model itself remembers one offset of position ids only, that of the prompt it saw last."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, inputs = family.model(), family.inputs()
    prompts = [prompt_of(inputs, row) for row in range(2)]
    kept = kept_prompts(family, model, pruner, inputs)
    with pruner(model):
        turns = [model.generate(**prompt, **GREEDY) for prompt in prompts]
        for turn, prompt, own in zip(turns, prompts, kept, strict=False):
            ids = torch.cat([turn.sequences, question(1, 6)], dim=1)
            types = types_of(prompt, ids.shape[1])
            for way in ({}, types, types | grids_of(prompt)):
                past = copy.deepcopy(cache_of(turn))
                output = model.generate(ids, **way, **with_cache(past), **GREEDY)
                torch.testing.assert_close(torch.cat(output.logits), logits_of(model, own, output), **close)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(("name", "positions"), CASES)
def test_image_added_to_a_pruned_cache(name: str, positions: Positions, static: bool) -> None:
    family, pruner = FAMILIES[name], GPrune(keep=0.4, positions=positions)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    whole = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    first, second = split(family, prompt)
    cut = first["input_ids"].shape[1]
    expected = text_logits(model, in_two_calls(whole, cut))[-1]
    cache = StaticCache(config=model.config, max_cache_len=400) if static else DynamicCache(config=model.config)
    with pruner(model) as run:
        model(**first, **with_cache(cache))
        assert len(run.images) == 1
        logits = model(**second, **with_cache(cache)).logits[0, -1]
        assert len(run.images) == 1
    torch.testing.assert_close(logits, expected, **close)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_image_added_through_generate(name: str, static: bool) -> None:
    """Some families are handed the kinds of all tokens then, the cached ones too."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    whole = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    first, second = split(family, prompt)
    expected = text_logits(model, in_two_calls(whole, first["input_ids"].shape[1]))[-1]
    cache = StaticCache(config=model.config, max_cache_len=400) if static else DynamicCache(config=model.config)
    tokens = {name: prompt[name] for name in PER_TOKEN if name in prompt}
    with pruner(model):
        model.generate(**first, **with_cache(cache), max_new_tokens=1, do_sample=False)
        if name in MROPE:  # stock wants the grids of all images, or numbers the new one like text
            told = "like text" if name in LIKE_TEXT else "grids for" if since("5.23") else None
            with pytest.raises(ValueError, match=told):
                model.generate(**tokens, **pixels_of(second), **with_cache(cache), **GREEDY)
            like_text = torch.arange(second["input_ids"].shape[1])[None, None]
            with pytest.raises(ValueError, match=r"\[1, batch, length\].*like text"):
                model(**second, **with_cache(cache), position_ids=like_text)
            return
        output = model.generate(**tokens, **pixels_of(second), **with_cache(cache), **GREEDY)
    torch.testing.assert_close(output.logits[0][0], expected, **close)


def split(family: Family, prompt: Inputs) -> tuple[Inputs, Inputs]:
    """A prompt with two images in two, before all that belongs to the second."""
    ids, sizes = prompt["input_ids"][0], BATCH[1]
    cut = int(is_visual(ids).nonzero()[family.layout(sizes[0])[0]])
    while MARKS & set(ids[cut - 2 : cut].tolist()):
        cut -= 1
    parts = []
    for number, place in enumerate((slice(cut), slice(cut, None))):
        tokens = {name: prompt[name][:, place] for name in PER_TOKEN if name in prompt and name != "attention_mask"}
        if isinstance(family, Idefics3):  # has the tiles of all images of a prompt in one row
            first = family.number(sizes[0])
            tiles = slice(first) if number == 0 else slice(first, None)
            pixels = {name: value[:, tiles] for name, value in pixels_of(prompt).items()}
        else:
            pixels = family.cut(prompt, number, [(size,) for size in sizes])
        parts.append(Inputs(family, tokens | pixels))
    return parts[0], parts[1]


def in_two_calls(prompt: KeptPrompt, cut: int) -> KeptPrompt:
    """The same prompt where no token sees one of a later call."""
    later = (prompt.kept.nonzero().squeeze(1) >= cut) & (prompt.blocks >= 0)
    # All of PaliGemma's prompt sees all of it, but only in the first call.
    block = -1 if prompt.family.name == "paligemma" else prompt.blocks + 10
    return replace(prompt, blocks=torch.where(later, block, prompt.blocks))


@pytest.mark.parametrize("length", [5, 150])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_second_turn_with_a_padded_question(family: Family, pruner: GPrune, static: bool, length: int) -> None:
    """Rows of unequal length, padded on the left, one without a question; then one more token for all."""
    model, inputs = family.model(), family.inputs()
    cache = StaticCache(config=model.config, max_cache_len=400) if static else DynamicCache()
    asked = question(3, length + 1)
    valid = torch.ones_like(asked)
    valid[0, :3] = valid[2, :-1] = 0
    mask = torch.cat([inputs["attention_mask"], valid], dim=1)
    positions = mask.cumsum(1) - 1
    start = inputs["input_ids"].shape[1]
    with pruner(model):
        model(**inputs, **with_cache(cache), position_ids=positions[:, :start])
        call = {"input_ids": asked[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, start:-1]}
        first = model(**call, **with_cache(cache)).logits[:, -1]
        second = model(input_ids=asked[:, -1:], attention_mask=mask, **with_cache(cache)).logits[:, -1]
    for row, prompt in enumerate(kept_prompts(family, model, pruner, inputs)):
        for token in asked[row, valid[row].bool()]:
            prompt = prompt.followed_by(model, token)
        logits = text_logits(model, prompt)
        torch.testing.assert_close(second[row], logits[-1], **close)
        if row < 2:
            torch.testing.assert_close(first[row], logits[-2], **close)


@pytest.mark.parametrize("name", [*MAIN, "glm4v"])
def test_batch_goes_on_through_generate(name: str) -> None:
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, inputs = family.model(), family.inputs()
    kept = kept_prompts(family, model, pruner, inputs)
    with pruner(model):
        turn = model.generate(**inputs, **GREEDY)
        ids = torch.cat([turn.sequences, question(3, 100)], dim=1)
        mask = torch.nn.functional.pad(
            inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1
        )
        output = model.generate(ids, attention_mask=mask, **with_cache(cache_of(turn)), **GREEDY)
    for row, prompt in enumerate(kept):
        for token in output.sequences[row, inputs["input_ids"].shape[1] :]:
            prompt = prompt.followed_by(model, token)
        logits = torch.stack([step[row] for step in output.logits])
        torch.testing.assert_close(logits, text_logits(model, prompt)[-4:-1], **close)


@pytest.mark.parametrize("name", present(*MAIN, "glm4v", "gemma4", "molmo2"))
def test_text_then_an_image(name: str) -> None:
    """The cache holds nothing that was pruned when the image comes."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    kept = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    rest = Inputs(family, {name: value[:, 3:] if name in PER_TOKEN else value for name, value in prompt.items()})
    del rest["attention_mask"]
    positions = family.positions(model, prompt)[..., 3:]
    with pruner(model):
        text = cache_of(model(input_ids=prompt["input_ids"][:, :3]))
        for given in ({}, {"position_ids": positions}):
            if name in MROPE and not given:  # where the cached text ended is known to the caller alone
                with pytest.raises(ValueError, match=r"3 columns.*position_ids.*\[4, batch, length\]"):
                    model(**rest, **with_cache(copy.deepcopy(text)))
                continue
            logits = model(**rest, **given, **with_cache(copy.deepcopy(text))).logits[0, -1]
            torch.testing.assert_close(logits, text_logits(model, kept)[-1], **close)


@pytest.mark.parametrize("name", MAIN)
def test_cache_of_one_prompt_goes_on_with_many_rows(name: str) -> None:
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    kept = kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0]
    questions = question(3, 4)
    with pruner(model):
        cache = cache_of(model(**prompt))
        cache.batch_repeat_interleave(3)
        output = model(input_ids=questions, **with_cache(cache)).logits[:, -1]
        with pytest.raises(ValueError, match=r"2 rows.*filled with 3.*prefill again"):
            model(input_ids=questions[:2], **with_cache(cache))
    for row, own in enumerate(questions):
        asked = kept
        for token in own:
            asked = asked.followed_by(model, token)
        torch.testing.assert_close(output[row], text_logits(model, asked)[-1], **close)


@pytest.mark.parametrize("name", [*MAIN, "glm4v"])
def test_static_cache_filled_by_hand_and_used_again(name: str) -> None:
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, inputs = family.model(), family.inputs()
    cache = StaticCache(config=model.config, max_cache_len=400)
    expected = torch.stack([greedy(model, prompt, 4)[0] for prompt in kept_prompts(family, model, pruner, inputs)])
    with pruner(model):
        for _ in range(2):
            logits = [model(**inputs, **with_cache(cache)).logits[:, -1]]
            while len(logits) < 4:
                token = logits[-1].argmax(-1, keepdim=True)
                logits.append(model(input_ids=token, **with_cache(cache)).logits[:, -1])
            torch.testing.assert_close(torch.stack(logits, 1), expected, **close)
            cache.reset()
        text = question(3, 4)
        if name in MROPE:  # stock numbers text by where the last images ended, whatever cache they were in
            host.set_rope_offset(model, None)
        parts = [model(input_ids=part, **with_cache(cache)).logits for part in text.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(input_ids=text, use_cache=False).logits, **close)


def test_small_image_kept_whole_after_one_that_was_pruned(family: Family) -> None:
    """Nothing is dropped in the second call, and the batch got no shorter in the first; yet the cache is not stock."""
    model, pruner = family.model(), GPrune(keep=20)
    images: list[list[Size]] = [[(20, 40), (2, 200)], []]
    inputs = family.inputs(images)
    wide = inputs["input_ids"].shape[1]
    inputs["input_ids"][1] = torch.randint(3, 88, (wide,), generator=torch.Generator().manual_seed(6))
    inputs["attention_mask"][1] = 1
    cut = 4 + family.layout((20, 40))[0] + 1
    cache = DynamicCache()
    with pruner(model):
        for place, image in ((slice(cut), slice(1)), (slice(cut, None), slice(1, 2))):
            part = {name: inputs[name][image] for name in ("pixel_values", "image_sizes")}
            logits = model(input_ids=inputs["input_ids"][:, place], **part, **with_cache(cache)).logits[:, -1]
    expected = [text_logits(model, prompt)[-1] for prompt in kept_prompts(family, model, pruner, inputs, images)]
    torch.testing.assert_close(logits, torch.stack(expected), **close)


@pytest.mark.parametrize("name", [*MAIN, "lfm2_vl", "qwen3_5"])
def test_rows_of_a_later_call_that_lose_different_numbers_of_tokens(name: str) -> None:
    """They get padding after what is cached, which layers that read tokens one by one would read."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model = family.model()
    turns: list[tuple[tuple[Size, ...], ...]] = [(((20, 40),), ((20, 40),)), (((40, 40),), ((20, 40),))]
    calls, kept = [], []
    for seed, images in enumerate(turns):
        inputs = family.inputs(images, seed=seed)
        inputs["input_ids"][inputs["attention_mask"] == 0] = 7
        inputs["attention_mask"][:] = 1
        kept.append(kept_prompts(family, model, pruner, inputs, images))
        calls.append({name: value for name, value in inputs.items() if name != "attention_mask"})
    with pruner(model):
        cache = cache_of(model(**calls[0]))
        if name in ("lfm2_vl", "qwen3_5"):
            with pytest.raises(ValueError, match=rf"padding.*(conv|linear_attention) layers of {name}.*first call"):
                model(**calls[1], **with_cache(cache))
            return
        logits = model(**calls[1], **with_cache(cache)).logits[:, -1]
    expected = torch.stack([text_logits(model, joined(*prompts))[-1] for prompts in zip(*kept, strict=True)])
    torch.testing.assert_close(logits, expected, **close)


def test_what_a_mask_hid_stays_hidden_in_later_calls_without_one(family: Family, pruner: GPrune) -> None:
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    (kept,) = kept_prompts(family, model, pruner, prompt, BATCH[1:2])
    asked = question(1, 6)
    mask = torch.nn.functional.pad(prompt["attention_mask"], (0, 5), value=1)
    mask[:, -5:-3] = 0
    positions = mask.cumsum(1)[:, -5:] - 1
    with pruner(model):
        cache = cache_of(model(**{name: value for name, value in prompt.items() if name != "attention_mask"}))
        model(input_ids=asked[:, :5], attention_mask=mask, position_ids=positions, **with_cache(cache))
        logits = model(input_ids=asked[:, 5:], **with_cache(cache)).logits[0]
    for token in asked[0, 2:]:
        kept = kept.followed_by(model, token)
    torch.testing.assert_close(logits, text_logits(model, kept)[-1:], **close)


@pytest.mark.parametrize("name", [*MAIN, "glm4v"])
def test_tokens_decoded_by_hand_are_taken_back_and_others_follow(name: str) -> None:
    """Also after a call that failed half way, and whether the caller tells positions and mask or not."""
    family, pruner = FAMILIES[name], GPrune(keep=0.4)
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    (kept,) = kept_prompts(family, model, pruner, prompt, BATCH[1:2])
    length, tokens = prompt["input_ids"].shape[1], question(1, 5)
    with pruner(model):
        cache = cache_of(model(**prompt))
        for token in (3, 4, 5):
            model(input_ids=torch.tensor([[token]]), **with_cache(cache))
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[10**6]]), **with_cache(cache))
        cache.crop(-3)
        for place, token in enumerate(tokens.split(1, dim=1)):
            told = {"attention_mask": torch.ones(1, length + place + 1, dtype=torch.long)} if place % 2 else {}
            logits = model(input_ids=token, **told, **with_cache(cache)).logits[0, -1]
            kept = kept.followed_by(model, token[0, 0])
            torch.testing.assert_close(logits, text_logits(model, kept)[-1], **close)


def test_an_unpruned_cache_goes_on_in_chunks(family: Family) -> None:
    if not since("5.21"):
        pytest.skip("this transformers reads chunks wrongly by itself")
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    with GPrune(keep=10**6)(model):
        turn = model.generate(**prompt, **GREEDY)
        ids = torch.cat([turn.sequences, question(1, 9)], dim=1)
        outputs = [
            model.generate(ids, **with_cache(copy.deepcopy(cache_of(turn))), prefill_chunk_size=chunk, **GREEDY)
            for chunk in (None, 4)
        ]
    torch.testing.assert_close(*(torch.cat(output.logits) for output in outputs), **close)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("given", ["all", "new"])
def test_a_pruned_cache_does_not_go_on_in_chunks(name: str, chunk: int, given: str) -> None:
    model, prompt = FAMILIES[name].model(), prompt_of(FAMILIES[name].inputs(), 1)
    with GPrune(keep=0.4)(model):
        turn = model.generate(**prompt, **GREEDY)
        ids = torch.cat([turn.sequences, question(1, 9)], dim=1)
        shown = {"attention_mask": torch.ones_like(ids), **with_cache(cache_of(turn))}
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(ids if given == "all" else ids[:, -9:], **shown, prefill_chunk_size=chunk, **GREEDY)
