"""Every way to generate, against a stock model that is fed the kept embeddings and position ids by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import BATCH, FAMILIES, IMAGE, Family, Size, prompt_of
from reference import embedded, greedy, kept_prompts
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from gprune.pruners import GPrune

LOGITS: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
close = {"rtol": 0, "atol": 1e-5}

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    "no cache": {"do_sample": False, "use_cache": False},
}


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


@pytest.mark.parametrize("mode", MODES)
def test_modes_equal_stock_generation_from_kept_embeddings(family: Family, pruner: GPrune, mode: str) -> None:
    model, inputs = family.model(), family.inputs()
    torch.manual_seed(0)
    by_hand = embedded(kept_prompts(family, model, pruner, inputs))
    expected = model.generate(**by_hand, max_new_tokens=6, **MODES[mode])
    torch.manual_seed(0)
    with pruner(model) as run:
        output = model.generate(**inputs, max_new_tokens=6, **MODES[mode])
    length, repeats = inputs["input_ids"].shape[1], MODES[mode].get("num_return_sequences", 1)
    assert torch.equal(output[:, length:], expected)
    assert torch.equal(output[:, :length], inputs["input_ids"].repeat_interleave(repeats, 0))
    assert len(run.images) == 3


def test_images_repeated_for_beams_are_scored_once(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    seen: list[int] = []

    class Counting(GPrune):
        def score(self, tokens: Any) -> Tensor:
            raise AssertionError("GPrune selects without it")

        def _select(self, tokens: Any, counts: Any) -> Any:
            seen.append(len(tokens.sizes))
            return super()._select(tokens, counts)

    with Counting(keep=0.4)(model):
        model.generate(**inputs, max_new_tokens=3, num_beams=4)
    assert seen == [3]  # one call, for one copy of each image


def test_streamer_sees_prompt_and_tokens(family: Family, pruner: GPrune) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.pieces: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.pieces.append(value)

        def end(self) -> None:
            self.pieces.append(torch.tensor(-1))

    model, prompt, streamer = family.model(), prompt_of(family.inputs(), 1), Streamer()
    _, tokens = greedy(model, kept_prompts(family, model, pruner, prompt, BATCH[1:2])[0], 6)
    with pruner(model):
        model.generate(**prompt, **GREEDY, streamer=streamer)
    assert torch.equal(streamer.pieces[0], prompt["input_ids"])
    assert torch.equal(torch.cat(streamer.pieces[1:-1]), tokens)
    assert streamer.pieces[-1] == -1


def test_assisted_decoding_rolls_the_cache_back(family: Family, pruner: GPrune) -> None:
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    torch.manual_seed(0)
    assistant = LlamaForCausalLM(FAMILIES["llava"].build()[0].text_config).eval()
    settings = {
        **GREEDY,
        "max_new_tokens": 16,
        "suppress_tokens": [IMAGE],
    }  # a drafted placeholder is no image
    with pruner(model):
        plain = model.generate(**prompt, **settings)
        assert torch.equal(plain, model.generate(**prompt, **settings, assistant_model=assistant))


@pytest.mark.parametrize("padded", [False, True], ids=["one prompt", "padded batch"])
@pytest.mark.parametrize("cache", ["returned", "copied", "static"])
def test_second_turn_on_a_pruned_cache(family: Family, pruner: GPrune, cache: str, padded: bool) -> None:
    model, inputs = family.model(), family.inputs()
    if not padded:
        inputs = prompt_of(inputs, 1)
    pixels = {name: value for name, value in inputs.items() if name in ("pixel_values", "image_sizes")}
    first = {"past_key_values": StaticCache(config=model.config, max_cache_len=400)} if cache == "static" else {}
    with pruner(model):
        turn = model.generate(**inputs, **GREEDY, **LOGITS, **first)
        answers = turn.sequences.shape[1] - inputs["input_ids"].shape[1]
        question = torch.randint(3, 88, (len(turn.sequences), 150), generator=torch.Generator().manual_seed(5))
        ids = torch.cat([turn.sequences, question], dim=1)
        mask = inputs["attention_mask"]
        mask = torch.cat([mask, mask.new_ones(len(mask), answers + question.shape[1])], dim=1)
        past = copy.deepcopy(turn.past_key_values) if cache == "copied" else turn.past_key_values
        on = model.generate(ids, attention_mask=mask, past_key_values=past, **GREEDY, **LOGITS)
        anew = model.generate(ids, attention_mask=mask, **pixels, **GREEDY, **LOGITS)
    torch.testing.assert_close(torch.stack(on.logits), torch.stack(anew.logits), **close)
    assert torch.equal(on.sequences, anew.sequences)


@pytest.mark.parametrize("length", [5, 150])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_second_turn_with_a_padded_question(family: Family, pruner: GPrune, static: bool, length: int) -> None:
    """Rows of unequal length, padded on the left, one without a question; then one more token for all."""
    model, inputs = family.model(), family.inputs()
    cache = StaticCache(config=model.config, max_cache_len=400) if static else DynamicCache()
    question = torch.randint(3, 88, (3, length + 1), generator=torch.Generator().manual_seed(5))
    valid = torch.ones_like(question)
    valid[0, :3] = valid[2, :-1] = 0
    mask = torch.cat([inputs["attention_mask"], valid], dim=1)
    positions = mask.cumsum(1) - 1
    start = inputs["input_ids"].shape[1]
    with pruner(model):
        model(**inputs, past_key_values=cache, position_ids=positions[:, :start])
        call = {"input_ids": question[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, start:-1]}
        first = model(**call, past_key_values=cache).logits[:, -1]
        second = model(input_ids=question[:, -1:], attention_mask=mask, past_key_values=cache).logits[:, -1]
        for row in range(3):
            prompt = prompt_of(inputs, row)
            del prompt["attention_mask"]
            own = question[row : row + 1, valid[row].bool()]
            prompt["input_ids"] = torch.cat([prompt["input_ids"], own], dim=1)
            logits = model(**prompt).logits[0]
            torch.testing.assert_close(second[row], logits[-1], **close)
            if row < 2:
                torch.testing.assert_close(first[row], logits[-2], **close)


def test_image_added_to_a_pruned_cache(family: Family, pruner: GPrune) -> None:
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    cut = 5 + family.layout(BATCH[1][0])[0] + 1  # five tokens of text, the first image, one more token
    first = {"input_ids": prompt["input_ids"][:, :cut]}
    second = {"input_ids": prompt["input_ids"][:, cut:]}
    for name in ("pixel_values", "image_sizes"):
        first[name], second[name] = prompt[name][:1], prompt[name][1:]
    with pruner(model) as run:
        whole = model(**prompt).logits[:, -1]
        cache = model(**first).past_key_values
        assert len(run.images) == 1
        torch.testing.assert_close(model(**second, past_key_values=cache).logits[:, -1], whole, **close)
        cache = model(input_ids=first["input_ids"][:, :4]).past_key_values  # text only, then an image
        rest = {**prompt, "input_ids": prompt["input_ids"][:, 4:]}
        torch.testing.assert_close(model(**rest, past_key_values=cache).logits[:, -1], whole, **close)


def test_cache_of_one_prompt_goes_on_with_many_rows(family: Family, pruner: GPrune) -> None:
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    questions = torch.randint(3, 88, (3, 4), generator=torch.Generator().manual_seed(5))
    with pruner(model):
        cache = model(**prompt).past_key_values
        cache.batch_repeat_interleave(3)
        output = model(input_ids=questions, past_key_values=cache).logits[:, -1]
        for row in range(3):
            ids = torch.cat([prompt["input_ids"], questions[row : row + 1]], dim=1)
            anew = model(**{**prompt, "input_ids": ids, "attention_mask": None}).logits[0, -1]
            torch.testing.assert_close(output[row], anew, **close)
        with pytest.raises(ValueError, match=r"2 rows.*filled with 3.*prefill again"):
            model(input_ids=questions[:2], past_key_values=cache)


def test_static_cache_filled_by_hand_and_used_again(family: Family, pruner: GPrune) -> None:
    model, inputs = family.model(), family.inputs()
    cache = StaticCache(config=model.config, max_cache_len=400)
    expected = torch.stack([greedy(model, p, 4)[0] for p in kept_prompts(family, model, pruner, inputs)])
    text = {name: inputs[name][2:, -5:] for name in ("input_ids", "attention_mask")}
    with pruner(model):
        for _ in range(2):
            logits = [model(**inputs, past_key_values=cache).logits[:, -1]]
            while len(logits) < 4:
                token = logits[-1].argmax(-1, keepdim=True)
                logits.append(model(input_ids=token, past_key_values=cache).logits[:, -1])
            torch.testing.assert_close(torch.stack(logits, 1), expected, **close)
            cache.reset()
        one = text["input_ids"].expand(3, -1)[:, :1]
        assert torch.equal(model(input_ids=one, past_key_values=cache).logits, model(input_ids=one).logits)


def test_rows_that_lose_different_numbers_of_tokens_without_padding(family: Family, pruner: GPrune) -> None:
    model, inputs = family.model(), family.inputs((((20, 40),), ((40, 40),)), seed=4)
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    inputs["attention_mask"][:] = 1
    images = (((20, 40),), ((40, 40),))
    expected = [greedy(model, p, 6)[1] for p in kept_prompts(family, model, pruner, inputs, images)]
    with pruner(model):
        output = model.generate(**inputs, **GREEDY)
    assert torch.equal(output[:, -6:], torch.stack(expected))


def test_longest_row_without_an_image(family: Family, pruner: GPrune) -> None:
    """The batch as a whole gets no shorter, yet one of its rows does."""
    model, inputs = family.model(), family.inputs((((20, 40),), ()))
    wide = inputs["input_ids"].shape[1]
    inputs["input_ids"][1] = torch.randint(3, 88, (wide,), generator=torch.Generator().manual_seed(6))
    inputs["attention_mask"][1] = 1
    images = (((20, 40),), ())
    expected = [greedy(model, p, 6)[1] for p in kept_prompts(family, model, pruner, inputs, images)]
    with pruner(model):
        assert torch.equal(model.generate(**inputs, **GREEDY)[:, wide:], torch.stack(expected))


def test_small_image_kept_whole_after_one_that_was_pruned(family: Family) -> None:
    """Nothing is dropped in the second call, and the batch got no shorter in the first; yet the cache is not stock."""
    model, pruner = family.model(), GPrune(keep=20)
    images: list[list[Size]] = [[(20, 40), (2, 200)], []]
    inputs = family.inputs(images)
    wide = inputs["input_ids"].shape[1]
    inputs["input_ids"][1] = torch.randint(3, 88, (wide,), generator=torch.Generator().manual_seed(6))
    inputs["attention_mask"][1] = 1
    cut = 4 + family.layout((20, 40))[0] + 1
    with pruner(model):
        whole = model(**inputs).logits[:, -1]
        cache, output = None, None
        for place, image in ((slice(cut), slice(1)), (slice(cut, None), slice(1, 2))):
            part = {name: inputs[name][image] for name in ("pixel_values", "image_sizes")}
            output = model(input_ids=inputs["input_ids"][:, place], **part, past_key_values=cache)
            cache = output.past_key_values
    assert output is not None
    torch.testing.assert_close(output.logits[:, -1], whole, **close)
