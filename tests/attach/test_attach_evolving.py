"""Evo-ViT inside the vision tower against a full recompute by the long way, one tile at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import cache_of
from families import BATCH, FAMILIES, IMAGE, Family, prompt_of
from families.parts import VIPLLAVA_LAYERS
from merging import LAYERS, MERGING, evolved_tile, merged_prompts
from reference import greedy, text_logits
from torch.nn.functional import cross_entropy

from gprune import BadValue, ClsAttention, EvoViT, UnfitSettings, UnsupportedModel
from gprune.families.table import FAMILIES as TABLE

LOGITS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
every = pytest.mark.parametrize("name", MERGING)


@torch.no_grad()
@every
@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_generation_equals_full_recompute(name: str, keep: float) -> None:
    family, steps = MERGING[name], 9
    inputs = family.inputs()
    for attention, positions in (("eager", "contiguous"), ("sdpa", "original")):
        model = family.model(attention)
        prompts = merged_prompts(family, model, keep, inputs, tile=evolved_tile, positions=positions)
        runs = [greedy(model, prompt, steps) for prompt in prompts]
        with EvoViT(keep, positions=positions)(model) as run:
            output = model.generate(**inputs, max_new_tokens=steps, **LOGITS)
        torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([own for own, _ in runs]), **close)
        length = inputs["input_ids"].shape[1]
        assert torch.equal(output.sequences[:, length:], torch.stack([tokens for _, tokens in runs]))
        assert cache_of(output).get_seq_length() < length
        for image in run.images:
            assert int(torch.isin(image.views[0].rows, image.kept).sum()) == int(keep * 16)


@torch.no_grad()
@every
def test_keeping_everything_changes_no_bit(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    stock, stock_forward = model.generate(**inputs, max_new_tokens=3, **LOGITS), model(**inputs)
    with EvoViT(1.0)(model) as run:
        output, forward = model.generate(**inputs, max_new_tokens=3, **LOGITS), model(**inputs)
    assert all(map(torch.equal, output.logits, stock.logits))
    assert torch.equal(forward.logits, stock_forward.logits)
    assert [image.n_after for image in run.images] == [image.n_before for image in run.images]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "paligemma"])
def test_batch_of_n_equals_n_batches_of_one_and_the_same_again(name: str) -> None:
    family = MERGING[name]
    model, inputs = family.model(), family.inputs()
    with EvoViT(0.4)(model) as run:
        output = model.generate(**inputs, max_new_tokens=4, **LOGITS)
        again = model.generate(**inputs, max_new_tokens=4, **LOGITS)
        assert all(map(torch.equal, output.logits, again.logits))
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
    weight = next(p for n, p in tower.named_parameters() if n.endswith("encoder.layers.2.mlp.fc1.weight"))
    predicted, wanted = [], []
    prompts = merged_prompts(family, model, 0.4, inputs, tile=evolved_tile, dtype=torch.float32)
    for row, prompt in enumerate(prompts):
        predicted.append(text_logits(model, prompt)[:-1])
        wanted.append(labels[row][: len(prompt.kept)][prompt.kept][1:])
    loss = cross_entropy(torch.cat(predicted), torch.cat(wanted))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() > 1e-5
    with EvoViT(0.4)(model):
        output = model(**inputs, labels=labels, use_cache=False)
    torch.testing.assert_close(output.loss, loss, **close)
    torch.testing.assert_close(torch.autograd.grad(output.loss, weight)[0], gradient, **close)


@torch.no_grad()
def test_the_tower_narrows_after_a_third_of_its_layers() -> None:
    """To the class token, 4 of 16 patches and their representative."""
    model = MERGING["llava"].model()
    seen: list[int] = []
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for layer in model.base_model.vision_tower.encoder.layers
    ]
    with EvoViT(0.25)(model):
        model(**MERGING["llava"].inputs())
    for handle in handles:
        handle.remove()
    assert seen == [17, 17, *[6] * (LAYERS - 2)]


@torch.no_grad()
def test_layers_chosen_in_the_call() -> None:
    """In the first third of the layers it is class attention."""
    family = MERGING["llava"]
    model, inputs = family.model(), family.inputs()
    with EvoViT(0.25)(model) as run:
        model(**inputs, vision_feature_layer=1)
        kept = [image.kept.tolist() for image in run.images]
    with ClsAttention(0.25)(model) as run:
        model(**inputs, vision_feature_layer=1)
    assert [image.kept.tolist() for image in run.images] == kept


@torch.no_grad()
def test_a_projector_that_reads_several_layers() -> None:
    """The last of them tells which tokens are informative."""
    family = replace(MERGING["vipllava"], settings={**MERGING["vipllava"].settings, VIPLLAVA_LAYERS: [-3, -2]})
    model, inputs = family.model(), family.inputs()
    with EvoViT(0.25)(model) as run:
        model(**inputs)
    assert [image.n_after for image in run.images] == [4, 4, 4]


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
    with EvoViT(0.4)(model):
        assert model(**inputs).logits.shape != stock.shape
    assert hooks(model) == before
    assert torch.equal(model(**inputs).logits, stock)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in MERGING])
def test_families_whose_towers_need_all_tokens(name: str) -> None:
    model = FAMILIES[name].model()
    before = hooks(model)
    with pytest.raises(UnsupportedModel, match=rf"EvoViT leaves out.*{name}.*accepted are .*llava.*ClsAttention"):
        EvoViT(0.5).attach(model)
    assert hooks(model) == before


@pytest.mark.parametrize(
    ("name", "settings", "keep", "error", "message"),
    [
        ("llava", {"vision_feature_select_strategy": "full"}, 0.5, UnsupportedModel, '"full", and.* class token'),
        ("llava_next", {}, 7, UnfitSettings, "keep=7 tokens per image.*tiles.*ratio"),
        ("llava", {"vision_feature_layer": 0}, 0.5, ValueError, "before the first layer"),
    ],
)
def test_what_cannot_be_kept(name: str, settings: Any, keep: Any, error: Any, message: str) -> None:
    model = replace(MERGING[name], settings={**MERGING[name].settings, **settings}).model()
    with pytest.raises(error, match=message):
        EvoViT(keep).attach(model)


def test_what_belongs_together_is_said() -> None:
    with pytest.raises(BadValue, match=r'scope="image" with EvoViT.*"view".*ClsAttention'):
        EvoViT(scope="image")
    family = MERGING["llava"]
    model = copy.deepcopy(family.model()).train()
    model.gradient_checkpointing_enable()
    with EvoViT(0.5)(model), pytest.raises(ValueError, match=r"EvoViT with gradient checkpointing.*ClsAttention"):
        model(**family.inputs())


@torch.no_grad()
@pytest.mark.skipif(not FAMILIES["llava_next_video"].takes_videos, reason="a later transformers is needed for videos")
def test_videos_are_refused() -> None:
    family: Family = MERGING["llava_next_video"]
    with EvoViT(0.5)(family.model()), pytest.raises(ValueError, match=r"carries a video.*EvoViT.*detach"):
        family.model()(**family.video_inputs())


@torch.no_grad()
def test_half_precision_and_attention_that_is_all_zero() -> None:
    family = MERGING["llava_next"]
    half = copy.deepcopy(family.model()).to(torch.bfloat16)
    for name, weight in half.base_model.vision_tower.named_parameters():
        if "q_proj" in name:
            weight.zero_()  # all are attended to alike: the first are informative
    with EvoViT(0.5)(half) as run:
        assert half(**family.inputs()).logits.isfinite().all()
    for image in run.images:
        assert torch.equal(image.kept[torch.isin(image.kept, image.views[0].rows)], image.views[0].rows[:8])
