"""Patches that are left out before the vision tower, against the stock tower in which a mask hides them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, beam_search, cache_of, present
from families import FAMILIES, prompt_of
from knowing import Curious, encoder_output, signals
from narrowing import COLOURS, IMAGES, PACKED, left_of, narrowed_prompts, page, sizes_of
from reference import greedy, text_logits
from torch import Tensor
from transformers import vision_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gprune import (
    Chain,
    FastV,
    GPrune,
    GraphCover,
    L2Norm,
    Method,
    PixelDedup,
    ToMe,
    Unpruned,
    UnsupportedModel,
    VisionZip,
)
from gprune.attach import refusal, visual_tokens
from gprune.attach.hooks import hooks_of
from gprune.cost import cost, cost_of_prompt, measure
from gprune.families.table import families_of
from gprune.serve.settings import served_pruner
from gprune.tokens import kept_count

STEPS = 4
GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False}
LOGITS: dict[str, Any] = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
every = pytest.mark.parametrize("name", PACKED)
MAIN = present("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
some = pytest.mark.parametrize("name", MAIN)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def generated(model: Any, method: Method, inputs: Mapping[str, Tensor], **settings: Any) -> tuple[Tensor, list[int]]:
    """Logits of greedy decoding, [B, STEPS, vocabulary], and what was kept of each picture."""
    with method(model) as run:
        output = model.generate(**{**inputs, **LOGITS, **settings})
    return torch.stack(output.logits, 1), [image.n_after for image in run.images]


# --- against a full recompute ---


@every
@pytest.mark.parametrize("method", [PixelDedup(tau=0), PixelDedup(0.3)], ids=str)
def test_generation_equals_a_tower_in_which_a_mask_hides_them(name: str, method: PixelDedup) -> None:
    family = PACKED[name]
    inputs = page(family)
    for attention in ("eager", "sdpa"):
        model = family.model(attention)
        expected = torch.stack(
            [greedy(model, prompt, STEPS)[0] for prompt in narrowed_prompts(family, model, method, inputs)]
        )
        logits, kept = generated(model, method, inputs)
        torch.testing.assert_close(logits, expected, **close)
        assert kept == [int(left.sum()) for left in left_of(method, inputs)]
        assert all(left < whole for left, whole in zip(kept, sizes_of(inputs), strict=True))


@every
def test_forward_by_hand_equals_it(name: str) -> None:
    family, method = PACKED[name], PixelDedup()
    model, inputs = family.model(), page(family, seed=1)
    with method(model) as run:
        output = model(**inputs)
    for row, prompt in enumerate(narrowed_prompts(family, model, method, inputs)):
        torch.testing.assert_close(output.logits[row, -1], text_logits(model, prompt)[-1], **close)
    dropped = inputs["input_ids"].shape[1] - cache_of(output).get_seq_length()
    assert dropped > 0
    for image, left in zip(run.images, left_of(method, inputs), strict=True):
        assert image.kept.tolist() == left.nonzero().squeeze(1).tolist()
        assert (image.n_before, image.n_after) == (len(left), int(left.sum()))


@some
def test_the_tower_does_not_see_what_leaves(name: str) -> None:
    """Dropping the same tokens after the tower is another answer."""
    family, method = PACKED[name], PixelDedup()
    model, inputs = family.model(), page(family)
    features = [torch.cat(list(encoder_output(model, inputs).pooler_output))]
    with method(model):
        features.append(torch.cat(list(encoder_output(model, inputs).pooler_output)))
    left = torch.cat(left_of(method, inputs))
    assert (features[0] - features[1])[left].norm() > 0.01 * features[0][left].norm()
    assert not features[1][~left].any()


@some
def test_beams_equal_the_long_way(name: str) -> None:
    family, method = PACKED[name], PixelDedup()
    model, inputs = family.model(), page(family)
    prompts = narrowed_prompts(family, model, method, inputs)
    expected = torch.cat([beam_search(model, prompt, 3, STEPS)[:1] for prompt in prompts])
    with method(model):
        output = model.generate(**inputs, **GREEDY, num_beams=3, suppress_tokens=PLACEHOLDERS)
    assert torch.equal(output[:, inputs["input_ids"].shape[1] :], expected)


@some
def test_a_batch_keeps_and_says_what_its_prompts_do_alone(name: str) -> None:
    family, method = PACKED[name], PixelDedup(0.6)
    model, inputs = family.model(), page(family)
    logits, kept = generated(model, method, inputs)
    for row in range(len(IMAGES)):
        alone, own = generated(model, method, prompt_of(inputs, row, IMAGES))
        torch.testing.assert_close(logits[row], alone[0], **close)
        assert own == kept[: len(IMAGES[row])]
        kept = kept[len(IMAGES[row]) :]


@some
def test_training_sees_what_it_sees(name: str) -> None:
    family, method = PACKED[name], PixelDedup()
    inputs = page(family)
    losses = []
    for checkpointing in (False, True):
        model = copy.deepcopy(family.model()).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with method(model), torch.enable_grad():
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
        losses.append((loss.detach(), model.base_model.visual.patch_embed.proj.weight.grad))
    assert losses[0][1].norm() > 0
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other)


# --- one after the other ---


@every
@pytest.mark.parametrize("second", [GraphCover(0.5), L2Norm(4, positions="contiguous")], ids=str)
def test_a_second_method_sees_what_is_left(name: str, second: Any) -> None:
    family, first = PACKED[name], PixelDedup()
    model, inputs = family.model(), page(family)
    prompts = narrowed_prompts(family, model, first, inputs, second)
    expected = torch.stack([greedy(model, prompt, STEPS)[0] for prompt in prompts])
    logits, kept = generated(model, Chain(first, second), inputs)
    torch.testing.assert_close(logits, expected, **close)
    assert kept == [kept_count(int(left.sum()), second.keep) for left in left_of(first, inputs)]


@some
def test_a_view_that_lacks_tokens_has_no_grid(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), page(family)
    tokens = visual_tokens(Chain(PixelDedup(), GPrune(0.5)), model, inputs)
    assert list(tokens.sizes) == [int(left.sum()) for left in left_of(PixelDedup(), inputs)]
    assert [view.grid for view in tokens.views] == [None] * 3
    noise = visual_tokens(Chain(PixelDedup(), GPrune(0.5)), model, family.inputs(IMAGES))
    assert [view.grid for view in noise.views] == [(5, 7), (5, 5), (4, 2)]


@pytest.mark.parametrize("name", [name for name in MAIN if PACKED[name].name != "qwen3_vl"])
def test_what_is_read_in_the_tower_belongs_to_what_is_left(name: str) -> None:
    """In a tower of one layer, keys depend on a patch and its place alone."""
    settings = PACKED[name].settings
    tower = {**settings["vision_config"], "depth": 1, "fullatt_block_indexes": [0]}
    family = type(PACKED[name])(name, {**settings, "vision_config": tower})
    model, inputs = family.model(), page(family)
    with Curious(1.0)(model):
        whole = signals(encoder_output(model, inputs), "keys")
    with Chain(PixelDedup(), Curious(1.0))(model):
        output = encoder_output(model, inputs)
        keys, attention = (signals(output, each) for each in ("keys", "attention"))
    left = torch.cat(left_of(PixelDedup(), inputs))
    torch.testing.assert_close(keys[left], whole[left], **close)
    assert keys[~left].isnan().all() and attention[~left].isnan().all()
    for own in attention.split(sizes_of(inputs)):  # a token is the mean of four patches
        assert own.nansum() * 4 == pytest.approx(1, abs=1e-5)


@some
def test_a_second_method_may_read_the_tower(name: str) -> None:
    family = PACKED[name]
    inputs = page(family)
    _, kept = generated(family.model(), Chain(PixelDedup(), VisionZip(0.5)), inputs)
    assert kept == [kept_count(int(left.sum()), 0.5) for left in left_of(PixelDedup(), inputs)]


@pytest.mark.parametrize("name", [name for name in MAIN if PACKED[name].name != "qwen3_vl"])
def test_a_second_method_may_act_in_the_llm(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), page(family)
    left = [int(own.sum()) for own in left_of(PixelDedup(), inputs)]
    with Chain(PixelDedup(), FastV(0.8, layer=1))(model) as run:
        model.generate(**inputs, **GREEDY)
    assert [image.per_layer[0] for image in run.images if image.per_layer is not None] == left


# --- nothing to leave out ---


@every
def test_nothing_changes_where_nothing_is_a_duplicate(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), family.inputs(IMAGES)
    for use_cache in (True, False):
        settings = {"use_cache": use_cache, "suppress_tokens": PLACEHOLDERS}
        stock, _ = generated(model, Unpruned(), inputs, **settings)
        logits, kept = generated(model, PixelDedup(), inputs, **settings)
        assert torch.equal(logits, stock)
        assert kept == sizes_of(inputs)


@some
@pytest.mark.parametrize("keep", [0.5, 0.01, 6])
def test_the_bound_holds_exactly_where_nothing_is_a_duplicate(name: str, keep: float) -> None:
    inputs = PACKED[name].inputs(IMAGES)
    _, kept = generated(PACKED[name].model(), PixelDedup(keep), inputs)
    assert kept == [kept_count(size, keep) for size in sizes_of(inputs)]


def test_pixels_come_as_the_processor_of_transformers_makes_them() -> None:
    """A square of one colour is one, though its channels differ: what follows it leaves."""
    picture = torch.full((56, 140, 3), 255, dtype=torch.uint8)
    picture[:28, 28:84] = torch.tensor([200, 30, 60], dtype=torch.uint8)
    picture[28:, 28:56] = torch.tensor([0, 80, 0], dtype=torch.uint8)
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=10**6)
    made = processor(picture.numpy(), return_tensors="pt", input_data_format="channels_last")
    assert made["image_grid_thw"].tolist() == [[1, 4, 10]]
    groups = made["pixel_values"].view(10, 4, COLOURS, -1).transpose(1, 2).flatten(2)
    assert PixelDedup(tau=0).choose(groups).tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]


# --- on and off ---


def fingerprint(model: Any) -> list[dict[str, Any]]:
    """What is on the model, its base and its tower, by contents, but for where the last call ended."""
    parts = (vars(part) | {"rope_deltas": None} for part in (model, model.base_model, model.base_model.visual))
    return [{key: dict(each) if isinstance(each, dict) else each for key, each in part.items()} for part in parts]


@some
def test_the_model_is_afterwards_what_it_was(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), page(family)
    before, stock = fingerprint(model), model(**inputs).logits
    with PixelDedup()(model):
        assert not torch.equal(model(**inputs).logits[:, -1], stock[:, -1])
        broken = {
            **inputs,
            "pixel_values": inputs["pixel_values"].masked_fill(torch.ones(1, dtype=torch.bool), torch.nan),
        }
        with pytest.raises(ValueError, match=r"image 0 \(of 3"):
            model(**broken)
    assert hooks_of(model) is None
    assert fingerprint(model) == before
    assert torch.equal(model(**inputs).logits, stock)


@some
def test_threads_each_have_their_own(name: str) -> None:
    family = PACKED[name]
    model, pages = family.model(), [page(family, seed) for seed in range(2)]
    methods: list[Method] = [PixelDedup(), GPrune(0.5), Chain(PixelDedup(0.4), GPrune(0.5)), Unpruned()]
    jobs = [(method, inputs) for method in methods for inputs in pages]
    alone = [generated(model, *job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: generated(model, *job), jobs * 2))
    for (logits, kept), (expected, counts) in zip(together, alone * 2, strict=True):
        assert torch.equal(logits, expected) and kept == counts


def test_an_inner_run_takes_its_turn() -> None:
    family = PACKED["qwen2_5_vl"]
    model, inputs = family.model(), page(family)
    plain, _ = generated(model, GPrune(0.5), inputs)
    with PixelDedup()(model):
        assert torch.equal(generated(model, GPrune(0.5), inputs)[0], plain)


# --- what it costs ---


@every
def test_measured_cost_falls_by_more_than_the_prompt(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), page(family)
    full, after, before = (measure(model, inputs, method) for method in (Unpruned(), L2Norm(0.4), PixelDedup(0.4)))
    assert before.kept_tokens <= after.kept_tokens < full.kept_tokens
    assert before.total < 0.9 * after.total < full.total
    assert cost_of_prompt(model, inputs, [(40, 56)], PixelDedup(0.4)) == before


@pytest.mark.parametrize("method", [PixelDedup(), Chain(PixelDedup(), GPrune(0.5))], ids=str)
def test_no_config_tells_its_cost(method: Method) -> None:
    with pytest.raises(ValueError, match=r"how many depends on what the picture shows.*gprune.cost.measure"):
        cost("llava-next-8b", [(480, 640)], 20, method)


def test_it_is_not_served() -> None:
    with pytest.raises(
        ValueError, match=r"'pixeldedup:tau=0.1' cannot be served by vLLM: .*depends on what a picture shows"
    ):
        served_pruner("pixeldedup:tau=0.1", 0.5)


# --- what is refused ---


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PACKED])
def test_families_whose_towers_are_given_all(name: str) -> None:
    model = FAMILIES[name].model()
    for method in (PixelDedup(), Chain(PixelDedup(), GPrune(0.5))):
        reason = refusal(method, model)
        assert reason is not None and name in reason and "works out by itself where patches lie" in reason
    with pytest.raises(UnsupportedModel, match=f"accepted are {', '.join(families_of(PixelDedup()))}; use a method"):
        PixelDedup().attach(model)


def test_merging_in_a_tower_after_it() -> None:
    assert "neighbouring patches" in str(refusal(Chain(PixelDedup(), ToMe(0.5)), PACKED["qwen2_vl"].model()))
    assert families_of(Chain(PixelDedup(), ToMe(0.5, "tokens"))) == families_of(PixelDedup())


@pytest.mark.parametrize("name", [name for name in MAIN if FAMILIES[name].takes_videos])
def test_videos(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), family.video_inputs()
    encoded = encoder_output(model, inputs, "video")
    with PixelDedup()(model):
        for call in (model.forward, lambda **inputs: model.generate(**inputs, **GREEDY), model):
            with pytest.raises(ValueError, match=r"carries a video, and PixelDedup compares.*detach"):
                call(**inputs)
        given = {key: value for key, value in inputs.items() if key != "pixel_values_videos"}
        with pytest.raises(ValueError, match="carries a video"):
            model(**given, mm_encoder_outputs={"video": encoded})


@some
def test_features_that_were_encoded_without_it(name: str) -> None:
    family = PACKED[name]
    model, inputs = family.model(), page(family)
    text = {key: value for key, value in inputs.items() if key != "pixel_values"}
    stock = encoder_output(model, inputs)
    with PixelDedup()(model):
        expected = model(**inputs).logits
        with pytest.raises(ValueError, match=r"encoded while it was not attached; pass the pixels"):
            model(**text, mm_encoder_outputs={"image": stock})
        own = encoder_output(model, inputs)
        assert torch.equal(model(**text, mm_encoder_outputs={"image": own}).logits, expected)


def test_a_tower_that_lacks_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PACKED["qwen2_vl"].model()
    monkeypatch.delattr(vision_utils, "get_vision_position_ids")
    with pytest.raises(UnsupportedModel, match=r"vision_utils has no get_vision_position_ids"):
        PixelDedup().attach(model)
