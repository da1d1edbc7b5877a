"""Tokens merged inside the vision tower, or after the projector, against a full recompute by the long way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, beam_search, cache_of, sample, with_cache
from families import BATCH, FAMILIES, IMAGE, VIDEOS, Family, prompt_of
from merging import MERGING, merged_prompts
from reference import greedy, text_logits
from torch.nn.functional import cross_entropy

from gprune import Chain, FastV, GPrune, NonFiniteFeatures, ToMe, UnsupportedModel
from gprune.families.table import FAMILIES as TABLE

STEPS = 9  # the prefill and 8 decode steps
LOGITS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
every = pytest.mark.parametrize("name", MERGING)


def reference(family: Family, model: Any, keep: float, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and tokens of greedy decoding of the batch."""
    prompts = merged_prompts(family, model, keep, family.inputs(), **settings)
    runs = [greedy(model, prompt, STEPS) for prompt in prompts]
    return torch.stack([logits for logits, _ in runs]), torch.stack([tokens for _, tokens in runs])


@torch.no_grad()
@every
@pytest.mark.parametrize("keep", [0.4, 0.2])  # 6 of 16 patches by as many a layer, 3 by halving in the end
def test_generation_equals_full_recompute(name: str, keep: float) -> None:
    family = MERGING[name]
    inputs = family.inputs()
    length = inputs["input_ids"].shape[1]
    for attention, positions in (("eager", "original"), ("sdpa", "contiguous"), ("sdpa", "original")):
        model = family.model(attention)
        logits, tokens = reference(family, model, keep, positions=positions)
        with ToMe(keep, positions=positions)(model):
            output = model.generate(**inputs, max_new_tokens=STEPS, **LOGITS)
        torch.testing.assert_close(torch.stack(output.logits, 1), logits, **close)
        assert torch.equal(output.sequences[:, length:], tokens)
        assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
        assert cache_of(output).get_seq_length() < length


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama4"])
def test_merging_after_the_projector_equals_full_recompute(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    logits, tokens = reference(family, model, 0.4, where="tokens")
    with ToMe(0.4, "tokens")(model):
        output = model.generate(**inputs, max_new_tokens=STEPS, **LOGITS)
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, **close)
    assert torch.equal(output.sequences[:, inputs["input_ids"].shape[1] :], tokens)


@torch.no_grad()
@every
def test_forward_and_decoding_by_hand_equal_full_recompute(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    expected, _ = reference(family, model, 0.4)
    mask = inputs["attention_mask"]
    with ToMe(0.4)(model):
        output = model(**inputs)
        logits, cache = [output.logits[:, -1]], cache_of(output)
        while len(logits) < STEPS:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            token = logits[-1].argmax(-1, keepdim=True)
            output = model(input_ids=token, attention_mask=mask, **with_cache(cache))
            logits.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(logits, 1), expected, **close)


MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "no cache": {"use_cache": False},
}


@torch.no_grad()
@pytest.mark.parametrize("where", ["vision", "tokens"])
@pytest.mark.parametrize("mode", MODES)
@every
def test_modes_equal_the_long_way(name: str, mode: str, where: Any) -> None:
    family, settings, steps = MERGING[name], {"do_sample": False, **MODES[mode]}, 4
    model, inputs = family.model(), family.inputs()
    repeats = settings.get("num_return_sequences", 1)
    prompts = merged_prompts(family, model, 0.4, inputs, where=where)
    torch.manual_seed(0)
    if mode == "sampling":
        expected = sample(model, [prompt for prompt in prompts for _ in range(repeats)], steps)
    else:
        beams = settings.get("num_beams", 1)
        expected = torch.cat([beam_search(model, prompt, beams, steps)[:repeats] for prompt in prompts])
    torch.manual_seed(0)
    with ToMe(0.4, where)(model):
        output = model.generate(**inputs, max_new_tokens=steps, suppress_tokens=PLACEHOLDERS, **settings)
    assert torch.equal(output[:, inputs["input_ids"].shape[1] :], expected)


@torch.no_grad()
@pytest.mark.parametrize("where", ["vision", "tokens"])
@every
def test_keeping_everything_changes_no_bit(name: str, where: Any) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        arguments = {**inputs, **LOGITS, "max_new_tokens": 3, **settings}
        stock, stock_forward = model.generate(**arguments), model(**inputs)
        with ToMe(1.0, where)(model) as run:
            output, forward = model.generate(**arguments), model(**inputs)
        assert all(map(torch.equal, output.logits, stock.logits))
        assert torch.equal(forward.logits, stock_forward.logits)
        assert [image.n_after for image in run.images] == [image.n_before for image in run.images]


@torch.no_grad()
def test_a_method_inside_the_llm_goes_on_from_it() -> None:
    family = MERGING["llava"]
    with Chain(ToMe(0.4), FastV(0.8, layer=1))(family.model()) as run:
        family.model()(**family.inputs())
    assert [image.per_layer for image in run.images] == [(6, 3)] * 3


@torch.no_grad()
@every
def test_report_says_what_is_left(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    with ToMe(0.4)(model) as run:
        model(**inputs)
    prompts = merged_prompts(family, model, 0.4, inputs)
    left = [int(prompt.visual.sum()) for prompt in prompts]
    after = [image.n_after for image in run.images]
    assert [after[0], after[1] + after[2], 0] == left
    for image in run.images:
        assert int(torch.isin(image.views[0].rows, image.kept).sum()) == 6  # exactly int(0.4 * 16)
        assert image.n_after == len(image.kept)


@torch.no_grad()
def test_budget_of_padded_tiles_is_that_of_every_tile() -> None:
    """What lies in the padding is cut off, merged or not: the high-resolution view keeps about its share."""
    family, sizes = MERGING["llava_next"], ((32, 32), (32, 16), (30, 18))
    model = family.model()
    with ToMe(0.5)(model) as run:
        model(**family.inputs([[size] for size in sizes]))
    kept = [[int(torch.isin(view.rows, image.kept).sum()) for view in image.views] for image in run.images]
    assert kept[0] == [8, 32]  # 4 tiles without padding: exact
    assert kept[1] == [8, 16]
    assert kept[2][0] == 8
    assert len(run.images[2].views[1]) == 32  # of 4 tiles
    assert 0 < kept[2][1] < 32


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "paligemma"])
def test_batch_of_n_equals_n_batches_of_one(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    with ToMe(0.4)(model) as run:
        output = model.generate(**inputs, max_new_tokens=4, **LOGITS)
        reports = iter(run.images)
        for row, sizes in enumerate(BATCH):
            alone = model.generate(**prompt_of(inputs, row), max_new_tokens=4, **LOGITS)
            logits = torch.stack([step[row] for step in output.logits])
            torch.testing.assert_close(logits, torch.cat(alone.logits), **close)
            for report in run.images if sizes else []:
                assert torch.equal(next(reports).kept, report.kept)


@every
def test_loss_and_gradient_through_the_tower(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs(side="right")
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    tower = getattr(model.base_model, TABLE[name].tower.name)
    weight = next(p for n, p in tower.named_parameters() if n.endswith("encoder.layers.1.mlp.fc1.weight"))
    predicted, wanted = [], []
    for row, prompt in enumerate(merged_prompts(family, model, 0.4, inputs, dtype=torch.float32)):
        predicted.append(text_logits(model, prompt)[:-1])
        wanted.append(labels[row][: len(prompt.kept)][prompt.kept][1:])
    loss = cross_entropy(torch.cat(predicted), torch.cat(wanted))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() > 1e-4
    with ToMe(0.4)(model):
        output = model(**inputs, labels=labels, use_cache=False)
    torch.testing.assert_close(output.loss, loss, **close)
    torch.testing.assert_close(torch.autograd.grad(output.loss, weight)[0], gradient, **close)


def hooks(model: Any) -> list[dict[str, Any]]:
    """Everything on every module, dictionaries by their contents."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in model.modules()
    ]


@torch.no_grad()
@every
def test_model_is_identical_after_the_context(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    stock, before = model(**inputs).logits, hooks(model)
    with ToMe(0.4)(model):
        assert model(**inputs).logits.shape != stock.shape
        assert hooks(model) != before
    assert hooks(model) == before
    assert torch.equal(model(**inputs).logits, stock)
    with pytest.raises(RuntimeError, match="mine"), ToMe(0.4)(model):
        raise RuntimeError("mine")
    assert hooks(model) == before


@torch.no_grad()
def test_hidden_states_are_those_after_merging_whenever_hooks_were_put_on() -> None:
    """transformers notes hidden states by hooks of its own, which it puts on at the first call."""
    family = MERGING["llava"]
    used = family.model()
    inputs = family.inputs()
    expected, _ = reference(family, used, 0.4)
    config, kind = family.build()
    fresh = kind(config).eval()
    fresh.load_state_dict(used.state_dict())
    for model in (fresh, used, fresh):
        with ToMe(0.4)(model):
            torch.testing.assert_close(model(**inputs).logits[:, -1], expected[:, 0], **close)


@torch.no_grad()
def test_another_run_in_force_merges_nothing() -> None:
    family = MERGING["llava_next"]
    model, inputs = family.model(), family.inputs()
    with GPrune(0.4)(model) as plain:
        expected = model(**inputs).logits
    with ToMe(0.4)(model) as outer:
        merged = model(**inputs).logits
        with GPrune(0.4)(model) as inner:
            assert torch.equal(model(**inputs).logits, expected)
        assert [image.n_after for image in inner.images] == [image.n_after for image in plain.images]
        assert torch.equal(model(**inputs).logits, merged)
        with ToMe(0.4, "tokens")(model):
            again = model(**inputs).logits
    with ToMe(0.4, "tokens")(model):
        assert torch.equal(model(**inputs).logits, again)
    assert len(outer.images) == 3


@torch.no_grad()
def test_a_copy_of_the_model_merges_with_its_own_weights() -> None:
    family = MERGING["llava"]
    model, inputs = family.model(), family.inputs()
    with ToMe(0.4)(model):
        other = copy.deepcopy(model)
    with ToMe(0.4)(model):
        expected = model(**inputs).logits
    assert torch.equal(other(**inputs).logits, expected)
    other.base_model.vision_tower.encoder.layers[0].mlp.fc2.weight.zero_()
    changed = other(**inputs).logits
    assert not torch.equal(changed, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "paligemma"])
def test_half_precision_and_autocast_keep_as_many(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    half = copy.deepcopy(model).to(torch.bfloat16)
    with ToMe(0.4)(half) as run:
        assert half(**inputs).logits.isfinite().all()
    with ToMe(0.4)(model) as cast, torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**inputs).logits.isfinite().all()
    for image in run.images + cast.images:
        assert int(torch.isin(image.views[0].rows, image.kept).sum()) == 6


@torch.no_grad()
def test_a_number_of_tokens_per_image_where_an_image_is_one_tile() -> None:
    family = MERGING["llava"]
    with ToMe(5)(family.model()) as run:
        family.model()(**family.inputs())
    assert [image.n_after for image in run.images] == [5, 5, 5]


@torch.no_grad()
@every
def test_pixels_that_are_not_finite_name_the_image(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    good = model(**inputs).logits
    inputs["pixel_values"][1] = torch.nan
    with ToMe(0.4)(model), pytest.raises(NonFiniteFeatures, match=r"image 1 \(of 3"):
        model(**inputs)
    assert torch.equal(model(**family.inputs()).logits, good)


# --- what is refused ---

REASONS = {
    "llava_onevision": "scales the grid",
    "vipllava": r"layers \[-1, -2\]",
    "aria": "learned queries",
    "deepseek_ocr2": "learned queries",
    "deepseek_vl_hybrid": "second tower",
    "fast_vlm": "convolutions",
    "janus": "a kind of its own",
}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in MERGING or name == "vipllava"])
def test_families_whose_towers_need_all_tokens(name: str) -> None:
    model = FAMILIES[name].model()
    before = hooks(model)
    with pytest.raises(UnsupportedModel, match=f'{name}.*{REASONS.get(name, "neighbouring")}.*where="tokens"'):
        ToMe(0.5).attach(model)
    assert hooks(model) == before


@pytest.mark.skipif("llama4" not in FAMILIES, reason="this transformers has no Llama 4 that works")
def test_features_that_are_projected_after_they_could_be_replaced() -> None:
    model = FAMILIES["llama4"].model()
    before = hooks(model)
    with pytest.raises(UnsupportedModel, match=r"llama4.*projects them after"):
        ToMe(0.5, "tokens").attach(model)
    assert hooks(model) == before


@torch.no_grad()
def test_a_refusal_leaves_the_run_before_in_force() -> None:
    family = FAMILIES["llava_onevision"]
    model, inputs = family.model(), family.inputs()
    with GPrune(0.4)(model) as run:
        expected = model(**inputs).logits
        with pytest.raises(UnsupportedModel):
            ToMe(0.5).attach(model)
        assert torch.equal(model(**inputs).logits, expected)
    assert len(run.images) == 3


@pytest.mark.parametrize(
    ("name", "settings", "arguments", "error", "message"),
    [
        ("llava", {"vision_feature_select_strategy": "full"}, {}, UnsupportedModel, '"full", and.* class token'),
        ("llava", {"vision_feature_layer": [-2, -1]}, {}, UnsupportedModel, r"layers \[-2, -1\]"),
        ("llava_next", {}, {"keep": 7}, ValueError, "keep=7 tokens per image.*tiles.*ratio"),
        ("paligemma", {}, {"keep": 0.01}, ValueError, None),
        ("llava", {"vision_feature_layer": 2}, {"keep": 0.2}, ValueError, "3 of 16.*2 layers.*leaves 4 or more"),
        ("llava", {"vision_feature_layer": 0}, {"keep": 0.9}, ValueError, "14 of 16.*0 layers"),
    ],
)
def test_what_cannot_be_merged(name: str, settings: Any, arguments: Any, error: Any, message: str | None) -> None:
    model = replace(MERGING[name], settings={**MERGING[name].settings, **settings}).model()
    before = hooks(model)
    if message is None:  # 1 of 16 can be reached in 5 layers
        ToMe(**arguments).attach(model).detach()
    else:
        with pytest.raises(error, match=message):
            ToMe(**arguments).attach(model)
    assert hooks(model) == before


def test_a_tower_of_another_kind() -> None:
    tower = {"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    family = MERGING["llava"]
    other = replace(family, settings={**family.settings, "vision_config": {**tower, "image_size": 16, "patch_size": 4}})
    with pytest.raises(UnsupportedModel, match="its vision tower is a dinov2"):
        ToMe(0.5).attach(other.model())


@torch.no_grad()
def test_attention_backends_that_take_no_sizes() -> None:
    family = MERGING["llava"]
    model = copy.deepcopy(family.model())
    with ToMe(0.5)(model):
        model.set_attn_implementation({"vision_config": "flex_attention"})
        with pytest.raises(UnsupportedModel, match=r'"flex_attention".*eager and sdpa'):
            model(**family.inputs())
    with pytest.raises(UnsupportedModel, match=r'"flex_attention".*eager and sdpa'):
        ToMe(0.5).attach(model)


@torch.no_grad()
@pytest.mark.skipif(not FAMILIES["llava_next_video"].takes_videos, reason="a later transformers is needed for videos")
def test_videos() -> None:
    family = MERGING["llava_next_video"]
    model = family.model()
    with ToMe(0.5)(model), pytest.raises(ValueError, match=r"carries a video.*detach"):
        model(**family.video_inputs())
    with ToMe(0.5, "tokens")(model) as run:
        model(**family.video_inputs(VIDEOS))
    assert [video.n_after for video in run.videos] == [8, 8]


@torch.no_grad()
def test_layers_chosen_in_the_call() -> None:
    """Layers after the config's merge nothing more; those before have not merged enough."""
    family = MERGING["llava"]
    model, inputs = family.model(), family.inputs()
    with ToMe(0.4)(model) as run:
        model(**inputs, vision_feature_layer=-1)
        assert [image.n_after for image in run.images] == [6, 6, 6]
        with pytest.raises(ValueError, match=r"12 tokens of a tile, where 6 .*vision_feature_layer"):
            model(**inputs, vision_feature_layer=2)


@torch.no_grad()
def test_features_that_were_encoded_without_it() -> None:
    family = MERGING["llava_next"]
    model, inputs = family.model(), family.inputs()
    told = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    text = {name: value for name, value in inputs.items() if name not in told}
    stock = model.base_model.get_image_features(**told, return_dict=True)
    with ToMe(0.4)(model):
        expected = model(**inputs).logits
        with pytest.raises(ValueError, match=r"image 0 has 16 of its 16 visual tokens left.*leaves 6"):
            model(**text, mm_encoder_outputs={"image": stock})
        merged = model.base_model.get_image_features(**told, return_dict=True)
        assert torch.equal(model(**text, mm_encoder_outputs={"image": merged}).logits, expected)


def test_gradient_checkpointing() -> None:
    family = MERGING["llava"]
    model = copy.deepcopy(family.model()).train()
    model.gradient_checkpointing_enable()
    with ToMe(0.5)(model), pytest.raises(ValueError, match=r"gradient checkpointing.*gradient_checkpointing_disable"):
        model(**family.inputs())
    with ToMe(0.5)(model.eval()) as run:
        model(**family.inputs())
    assert len(run.images) == 3
