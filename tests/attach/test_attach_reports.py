"""Situations that people reported of other tools: packs, hidden tokens, embeddings, parts of models, caches in hand.

Where tokens are dropped at their original positions, the reference is the model itself with those tokens hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, cache_of, since, with_cache
from families import BATCH, FAMILIES, Family, Inputs, is_visual, prompt_of
from torch import Tensor
from transformers import DynamicCache

from gprune import DART, Chain, FastV, GPrune, L2Norm, Method, Random, ToMe, Uniform, UnsupportedModel, VisionZip

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
PLAIN = [
    name for name in ("llava", "llava_next", "vipllava", "mistral3", "internvl", "deepseek_vl") if name in FAMILIES
]
"""Families whose LLM sees one way, along one axis, over the whole sequence: hiding a token is dropping it."""


WAYS: list[Method] = [GPrune(0.4), GPrune(0.4, positions="contiguous"), ToMe(0.5), FastV(keep=0.7, layer=1)]
INSIDE: list[Method] = [FastV(keep=0.7, layer=1), DART(keep=0.7, layer=1)]
INSIDE.append(Chain(GPrune(0.5), FastV(keep=0.7, layer=1)))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def kept_columns(inputs: Inputs, run: Any) -> Tensor:
    """bool [B, L]: the columns of a call that the LLM saw, by what the run reports of its images."""
    columns = inputs["attention_mask"].bool().clone()
    for report, place in zip(run.images, spans(inputs), strict=True):
        row, own = place
        columns[row, own] = False
        columns[row, own[report.kept]] = True
    return columns & inputs["attention_mask"].bool()


def spans(inputs: Inputs) -> list[tuple[int, Tensor]]:
    """(row, columns) of every image of a batch."""
    places = is_visual(inputs["input_ids"]).nonzero()
    sizes = [inputs.family.layout(one)[0] for images in BATCH for one in images]
    return [(int(own[0, 0]), own[:, 1]) for own in places.split(sizes)]


def stock_logits(model: Any, inputs: Inputs, columns: Tensor) -> Tensor:
    """[B, vocabulary]: of the last token, with only these columns in sight, each where it is."""
    positions = torch.arange(columns.shape[1]).expand(len(columns), -1)
    return model(**{**inputs, "attention_mask": columns.long(), "position_ids": positions}).logits[:, -1]


# --- Visual tokens hidden by the attention mask ---


def hidden(family: Family) -> Inputs:
    """A batch in which some of the visual tokens of its first two images are hidden."""
    inputs = family.inputs()
    for row, own in spans(inputs)[:2]:
        inputs["attention_mask"][row, own[2:5]] = 0
    return inputs


@pytest.mark.parametrize("pruner", [GPrune(0.4), L2Norm(7), Random(0.5), Uniform(1.0), ToMe(0.5, where="tokens")])
@pytest.mark.parametrize("name", PLAIN)
def test_hidden_tokens_stay_hidden(name: str, pruner: Any) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), hidden(family)
    with pruner(model) as run:
        logits = model(**inputs).logits[:, -1]
        tokens = model.generate(**inputs, **GREEDY)
        again = model.generate(**inputs, **GREEDY, use_cache=False)
    assert torch.equal(tokens, again)
    shown = [inputs["attention_mask"][row, own].bool() for row, own in spans(inputs)]
    if pruner.keep != 1:
        assert all(own[report.kept].all() for own, report in zip(shown, run.images, strict=True))
    if not pruner.merges:
        expected = stock_logits(model, inputs, kept_columns(inputs, run))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_hidden_tokens_count_in_no_budget() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), hidden(family)
    counts = [int(inputs["attention_mask"][row, own].sum()) for row, own in spans(inputs)]
    with L2Norm(0.5)(model) as run:
        model(**inputs)
    assert [report.n_after for report in run.images] == [count // 2 for count in counts]
    assert counts[0] < run.images[0].n_before


@pytest.mark.parametrize("pruner", [L2Norm(0.5), GPrune(0.5), FastV(keep=0.7, layer=1)], ids=repr)
def test_an_image_that_is_hidden_as_a_whole(pruner: Method) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    row, own = spans(inputs)[1]
    inputs["attention_mask"][row, own] = 0
    with pruner(model) as run:
        tokens = model.generate(**inputs, **GREEDY)
        assert run.images[1].n_after == 0 < run.images[0].n_after
        for other in range(3):
            alone = {
                name: value for name, value in prompt_of(family.inputs(), other).items() if name != "attention_mask"
            }
            seen = family.inputs()["attention_mask"][other].bool()
            alone["attention_mask"] = inputs["attention_mask"][other : other + 1, seen]
            assert torch.equal(model.generate(**alone, **GREEDY)[0, -5:], tokens[other, -5:])


@pytest.mark.parametrize("pruner", INSIDE, ids=repr)
def test_hidden_tokens_with_methods_inside_the_llm(pruner: Method) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), hidden(family)
    with pruner(model):
        tokens = model.generate(**inputs, **GREEDY)
        for row in range(3):  # alone, where nothing is padded
            pixels = {name: own for name, own in prompt_of(family.inputs(), row).items() if name == "pixel_values"}
            seen = family.inputs()["attention_mask"][row].bool()
            ids, mask = inputs["input_ids"][row : row + 1, seen], inputs["attention_mask"][row : row + 1, seen]
            call = {"input_ids": ids, "attention_mask": mask, **pixels}
            assert torch.equal(model.generate(**call, **GREEDY)[0, -5:], tokens[row, -5:])
    stock = model(**inputs).logits[:, -1]
    with FastV(keep=1.0, layer=1)(model):
        assert torch.equal(model(**inputs).logits[:, -1], stock)


# --- Several sequences packed into one row ---


def packed(family: Family) -> dict[str, Tensor]:
    """Two prompts of a batch in one row, told apart by positions that begin anew."""
    batch = family.inputs()
    one, other = (prompt_of(batch, row) for row in (0, 1))
    lengths = [part["input_ids"].shape[1] for part in (one, other)]
    return {
        "input_ids": torch.cat([one["input_ids"], other["input_ids"]], dim=1),
        "pixel_values": batch["pixel_values"],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        **({"image_sizes": batch["image_sizes"]} if "image_sizes" in batch else {}),
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in ("llava", "llava_next", "internvl") if name in FAMILIES])
def test_packed_sequences_are_refused_where_tokens_are_dropped(name: str, training: bool) -> None:
    family = FAMILIES[name]
    model, call = copy.deepcopy(family.model()), packed(family)
    model.train(training)
    expected = model(**call, use_cache=False).logits
    for pruner in (GPrune(0.5), VisionZip(0.5), Chain(GPrune(0.5), FastV(keep=0.7, layer=1))):
        with pruner(model), pytest.raises(ValueError, match=r"several sequences are packed into one row"):
            model(**call, use_cache=False)
    with GPrune(1.0)(model):
        assert torch.equal(model(**call, use_cache=False).logits, expected)


def test_packs_that_attention_kernels_are_told_of() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), prompt_of(family.inputs(), 1)
    ends = torch.tensor([0, 5, inputs["input_ids"].shape[1]])
    with GPrune(0.5)(model), pytest.raises(ValueError, match=r"packed.*cu_seq_lens_q"):
        model(**inputs, cu_seq_lens_q=ends, cu_seq_lens_k=ends)


def test_text_is_packed_as_ever() -> None:
    family = FAMILIES["llava"]
    model, ids = family.model(), torch.tensor([[5, 6, 7, 8, 9, 10]])
    call = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "use_cache": False}
    expected = model(**call).logits
    with GPrune(0.5)(model):
        assert torch.equal(model(**call).logits, expected)


# --- Embeddings in the place of ids ---


@pytest.mark.parametrize(
    "pruner", [GPrune(0.4), GPrune(0.4, positions="contiguous"), ToMe(0.5), FastV(keep=0.7, layer=1)]
)
def test_images_are_found_in_embeddings(pruner: Method) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    with pruner(model) as run:
        expected = model(**inputs).logits[:, -1]
        kept = [image.kept for image in run.images]
        tokens = model.generate(**inputs, **GREEDY)[:, -5:]
        assert torch.equal(model(inputs_embeds=embeddings, **others).logits[:, -1], expected)
        assert all(torch.equal(image.kept, own) for image, own in zip(run.images, kept, strict=True))
        assert torch.equal(model.generate(inputs_embeds=embeddings, **others, **GREEDY)[:, -5:], tokens)
        assert torch.equal(model.generate(inputs_embeds=embeddings, **inputs, **GREEDY)[:, -5:], tokens)


@pytest.mark.parametrize("name", [name for name in (*PLAIN, "qwen2_5_vl", "llava_onevision") if name in FAMILIES])
def test_embeddings_pass_where_everything_is_kept(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    for kept in ({}, {"input_ids": inputs["input_ids"]}):
        expected = model.generate(inputs_embeds=embeddings, **others, **kept, **GREEDY)
        for pruner in (GPrune(1.0), FastV(keep=1.0)) if name in PLAIN else (GPrune(1.0),):
            with pruner(model):
                assert torch.equal(model.generate(inputs_embeds=embeddings, **others, **kept, **GREEDY), expected)


@pytest.mark.skipif(not since("5.23"), reason="this transformers hides chunked prefill")
def test_chunked_prefill_passes_where_everything_is_kept() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), prompt_of(family.inputs(), 1)
    expected = model.generate(**inputs, **GREEDY, prefill_chunk_size=8)
    with GPrune(1.0)(model):
        assert torch.equal(model.generate(**inputs, **GREEDY, prefill_chunk_size=8), expected)
    with GPrune(0.9)(model), pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=8)


# --- Parts of the model, called by themselves ---


@pytest.mark.parametrize(
    "pruner", [GPrune(0.4), GPrune(0.4, positions="contiguous"), ToMe(0.5), FastV(keep=0.7, layer=1)]
)
def test_the_base_model_by_itself(pruner: Method) -> None:
    """As trainers call it: the head on its hidden states gives the logits of the whole, and so it goes on."""
    family = FAMILIES["llava_next"]
    model, inputs = family.model(), family.inputs()
    token = torch.full((3, 1), 9)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with pruner(model) as run:
        whole = model(**inputs)
        expected = model(input_ids=token, attention_mask=mask, **with_cache(cache_of(whole))).logits
        images = len(run.images)
        base = model.base_model(**inputs)
        assert torch.equal(model.lm_head(base.last_hidden_state), whole.logits)
        step = model.base_model(input_ids=token, attention_mask=mask, **with_cache(cache_of(base)))
        assert torch.equal(model.lm_head(step.last_hidden_state), expected)
        assert images == len(run.images) == 3


@pytest.mark.parametrize("name", [name for name in ("llava", "llava_next", "paligemma") if name in FAMILIES])
def test_features_that_are_asked_for_under_tome_are_numbers(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    sizes = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
    stock = model.get_image_features(inputs["pixel_values"], **sizes, return_dict=True).pooler_output
    with ToMe(0.5)(model):
        features = model.get_image_features(inputs["pixel_values"], **sizes, return_dict=True).pooler_output
    assert [len(item) for item in features] == [len(item) for item in stock]
    assert all(torch.isfinite(item).all() for item in features)


@pytest.mark.parametrize("name", [name for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") if name in FAMILIES])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_fewer_images_than_placeholders_in_families_with_grids(name: str, keep: float) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    inputs["image_grid_thw"] = inputs["image_grid_thw"][:2]
    with GPrune(keep)(model):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=r"placeholders of more images.*image_grid_thw"):
                call(**inputs)


@pytest.mark.parametrize("pruner", [*WAYS[:3], Random(0.5, seed=3)], ids=repr)
def test_assisted_decoding_with_hidden_states(pruner: Method) -> None:
    """What comes back of each step is what greedy decoding gives, of the tokens that the LLM saw."""
    family = FAMILIES["llava"]
    model, inputs = copy.deepcopy(family.model()), prompt_of(family.inputs(), 1)
    model.set_attn_implementation("eager")
    helper = copy.deepcopy(model)
    for parameter in helper.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    more = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    with pruner(model), pruner(helper):
        greedy = model.generate(**inputs, **GREEDY, **more)
        output = model.generate(**inputs, **GREEDY, **more, assistant_model=helper)
    assert torch.equal(output.sequences, greedy.sequences)
    for name in ("hidden_states", "attentions"):
        steps, expected = getattr(output, name), getattr(greedy, name)
        assert [[each.shape for each in step] for step in steps] == [[each.shape for each in step] for step in expected]
        for own, other in zip(steps, expected, strict=True):
            for layer, layer_of_greedy in zip(own, other, strict=True):
                assert type(layer) is Tensor
                torch.testing.assert_close(layer[..., -1, :], layer_of_greedy[..., -1, :], rtol=0, atol=1e-5)


def test_assisted_decoding_with_hidden_states_of_layers_that_differ() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), prompt_of(family.inputs(), 1)
    helper = copy.deepcopy(model)
    with FastV(keep=0.7, layer=1)(model):
        for wanted in ("output_hidden_states", "output_attentions"):
            with pytest.raises(ValueError, match=r"assisted decoding.*FastV"):
                model.generate(**inputs, **GREEDY, assistant_model=helper, **{wanted: True})


# --- Caches in the hands of their users ---

METHODS: list[Method] = [
    GPrune(0.4),
    GPrune(0.4, positions="contiguous"),
    FastV(keep=0.7, layer=1),
    Chain(GPrune(0.5), FastV(keep=0.7, layer=1)),
]


@pytest.mark.parametrize("rows", [[1, 0, 2], [0, 0], [1], [2, 1, 1, 0, 0]])
@pytest.mark.parametrize("pruner", METHODS, ids=repr)
@pytest.mark.parametrize("name", [name for name in ("llava", "llava_next", "qwen2_5_vl") if name in FAMILIES])
def test_rows_taken_of_a_cache(name: str, pruner: Any, rows: list[int]) -> None:
    if name == "qwen2_5_vl" and isinstance(pruner, FastV):
        pytest.skip("positions of a conversation that goes on are the caller's there")
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    tokens = torch.tensor([[7], [8], [9]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with pruner(model):
        cache = cache_of(model(**inputs))
        other = copy.deepcopy(cache)
        expected = model(input_ids=tokens, attention_mask=mask, **with_cache(other)).logits
        second = model(
            input_ids=tokens, attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1), **with_cache(other)
        )
        taken = copy.deepcopy(cache)
        taken.batch_select_indices(torch.tensor(rows))
        logits = model(input_ids=tokens[rows], attention_mask=mask[rows], **with_cache(taken)).logits
        torch.testing.assert_close(logits, expected[rows], rtol=0, atol=1e-5)
        taken.reorder_cache(torch.arange(len(rows)).flip(0))
        back = rows[::-1]
        call = {"input_ids": tokens[back], "attention_mask": torch.nn.functional.pad(mask, (0, 1), value=1)[back]}
        torch.testing.assert_close(model(**call, **with_cache(taken)).logits, second.logits[back], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pruner", METHODS, ids=repr)
def test_rows_repeated_of_a_cache(pruner: Method) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    tokens = torch.tensor([[7], [8], [9]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with pruner(model):
        cache = cache_of(model(**inputs))
        expected = model(input_ids=tokens, attention_mask=mask, **with_cache(copy.deepcopy(cache))).logits
        cache.batch_repeat_interleave(2)
        rows = torch.arange(3).repeat_interleave(2)
        logits = model(input_ids=tokens[rows], attention_mask=mask[rows], **with_cache(cache)).logits
    torch.testing.assert_close(logits, expected[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pruner", METHODS[:2], ids=repr)
def test_a_cache_that_is_cropped(pruner: Method) -> None:
    """Text after the last image can be taken back; visual tokens, of which some are gone, cannot."""
    family = FAMILIES["llava"]
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    short = {**prompt, **{name: prompt[name][:, :-3] for name in ("input_ids", "attention_mask")}}
    tokens = torch.tensor([[7, 8]])
    with pruner(model):
        expected = model(input_ids=tokens, **with_cache(cache_of(model(**short)))).logits
        cache = cache_of(model(**prompt))
        cache.crop(-3)
        torch.testing.assert_close(model(input_ids=tokens, **with_cache(cache)).logits, expected, rtol=0, atol=1e-5)
        cache = cache_of(model(**prompt))
        cache.crop(-12)
        with pytest.raises(ValueError, match=r"cropped to \d+ columns, into the visual tokens"):
            model(input_ids=tokens, **with_cache(cache))


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_a_cache_put_together_anew(positions: Any) -> None:
    """Keys and values that were stored elsewhere: what they stand for cannot be known any more."""
    family = FAMILIES["llava"]
    model, prompt = family.model(), prompt_of(family.inputs(), 1)
    with GPrune(0.4, positions=positions)(model):
        output = model.generate(**prompt, **GREEDY, return_dict_in_generate=True)
        cache = DynamicCache()
        for index, layer in enumerate(cache_of(output).layers):
            cache.update(layer.keys.clone(), layer.values.clone(), index)
        with pytest.raises(UnsupportedModel, match=r"placeholders of images, but no image.*put together anew"):
            model.generate(
                input_ids=output.sequences,
                attention_mask=torch.ones_like(output.sequences),
                **with_cache(cache),
                **GREEDY,
            )


def test_rows_that_come_from_elsewhere() -> None:
    family = FAMILIES["llava"]
    model, batch = family.model(), family.inputs()
    with GPrune(0.4)(model):
        cache, other = (cache_of(model(**prompt_of(batch, row))) for row in (0, 1))
        columns = min(cache.get_seq_length(), other.get_seq_length())
        for own, foreign in zip(cache.layers, other.layers, strict=True):
            own.keys, own.values = foreign.keys[:, :, :columns].clone(), foreign.values[:, :, :columns].clone()
        with pytest.raises((UnsupportedModel, ValueError), match=r"replaced by others|cropped"):
            model(input_ids=torch.tensor([[7]]), **with_cache(cache))
