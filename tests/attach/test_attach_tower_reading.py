"""What is read in the vision tower: the right layer, in full, and brought to the right tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoding import present
from families import BATCH, FAMILIES, Family
from knowing import Curious, encoder_output, signals
from torch import Tensor
from torch.nn import Module
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from gprune.attach import UnsupportedModel, tower_reading
from gprune.attach.tower_reading import attention_received, layer_index, middle_index
from gprune.families.table import FAMILIES as TABLE
from gprune.families.table import FROM_TOWER, MIDDLE

COVERED = [name for name in FAMILIES if TABLE[name].tower]
WITH_VIDEO = [name for name in COVERED if FAMILIES[name].takes_videos]
LAST_OF_A_LAYER = {"out_proj", "o_proj", "proj", "projection_layer", "fc2", "down_proj", "linear_fc2"}
close: dict[str, Any] = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def blind(family: Family) -> Any:
    """The model with a vision tower in which no patch knows of another: its layers change nothing."""
    model = copy.deepcopy(family.model())
    tower = getattr(model.base_model, TABLE[family.name].tower.name)
    for name, parameter in tower.named_parameters():
        part = name.split(".")
        if part[-2] in LAST_OF_A_LAYER and {"layers", "layer", "blocks"} & set(part):
            parameter.zero_()
    return model


def changed(before: Tensor, after: Tensor) -> set[int]:
    """Rows that are not equal."""
    return set((before.nan_to_num(0) != after.nan_to_num(0)).any(-1).nonzero().squeeze(1).tolist())


def features(output: Any) -> Tensor:
    return torch.cat([item.flatten(0, -2) for item in output.pooler_output])


@pytest.mark.parametrize(
    ("name", "modality"), [(name, "image") for name in COVERED] + [(name, "video") for name in WITH_VIDEO]
)
def test_a_token_has_the_keys_of_the_patches_it_is_made_of(name: str, modality: str) -> None:
    """In a blind tower, both change for the same pixels."""
    family = FAMILIES[name]
    model = blind(family)
    inputs = family.inputs() if modality == "image" else family.video_inputs()
    pixels = "pixel_values" if modality == "image" else "pixel_values_videos"
    generator = torch.Generator().manual_seed(0)
    with Curious(1.0)(model):
        before = encoder_output(model, inputs, modality)
        assert len(signals(before, "keys")) == len(features(before)) == len(signals(before, "attention"))
        seen: set[int] = set()
        for place in torch.randint(inputs[pixels].numel(), (25,), generator=generator).tolist():
            if inputs[pixels].flatten()[place] == 0:  # padding
                continue
            other = {**inputs, pixels: inputs[pixels].clone()}
            other[pixels].view(-1)[place] += 3
            after = encoder_output(model, other, modality)
            rows = changed(features(before), features(after))
            assert changed(signals(before, "keys"), signals(after, "keys")) == rows
            seen |= rows
        assert len(seen) >= 5


def weights(model: Any, inputs: dict[str, Tensor], index: int) -> Tensor:
    """[B, n, n]: what one layer of the stock vision tower attends to, by its own eager attention, over its heads."""
    tower = getattr(model.base_model, TABLE[model.config.model_type].tower.name)
    layers = [module for module in tower.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]
    found: list[Tensor] = []
    handle = layers[index].register_forward_hook(lambda module, args, output: found.append(output[1].mean(1)))
    encoder_output(model, inputs)
    handle.remove()
    assert len(found) == 1
    return found[0]


def square_means(values: Tensor) -> Tensor:
    """[B, 36] -> [B, 9]: of squares of 2 x 2."""
    return values.view(-1, 3, 2, 3, 2).mean((2, 4)).flatten(1)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "vipllava", "paligemma", "internvl", "idefics3", "gemma3"])
def test_attention_is_that_of_the_stock_tower(name: str, backend: str) -> None:
    """That of the class token in the layer that gives the features; without one, what a patch receives."""
    family = FAMILIES[name]
    inputs = family.inputs()
    own = weights(family.model("eager"), inputs, 0 if name == "llava" else 1)
    expected = own[:, 0, 1:] if name in ("llava", "vipllava", "internvl") else own.mean(1)
    if name in ("internvl", "idefics3"):
        expected = square_means(expected)
    if name == "gemma3":
        expected = expected.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    model = family.model(backend)
    with Curious(1.0)(model):
        torch.testing.assert_close(signals(encoder_output(model, inputs), "attention"), expected.flatten(), **close)


@pytest.mark.parametrize("name", ["vipllava", "paligemma"])
def test_middle_attention_is_that_of_the_stock_tower(name: str) -> None:
    """Of two layers the first."""
    family = FAMILIES[name]
    inputs = family.inputs()
    own = weights(family.model("eager"), inputs, 0)
    expected = own[:, 0, 1:] if name == "vipllava" else own.mean(1)
    model = family.model()
    with Curious(1.0)(model):
        torch.testing.assert_close(signals(encoder_output(model, inputs), MIDDLE), expected.flatten(), **close)


def test_the_middle_is_three_eighths_of_the_way_and_sees_the_whole_image() -> None:
    clip = FAMILIES["llava"].model().base_model.vision_tower
    assert [middle_index(clip, last) for last in (0, 1)] == [0, 0]
    qwen = copy.deepcopy(FAMILIES["qwen2_5_vl"].model().base_model.visual)
    assert middle_index(qwen, 1) in qwen.config.fullatt_block_indexes


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_keys_are_those_of_the_stock_tower(name: str) -> None:
    """Of the layer that gives the features, averaged over heads."""
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    encoder = model.base_model.vision_tower.encoder
    layer = encoder.layers[0 if name == "llava" else 1].self_attn
    found: list[Tensor] = []
    handle = layer.k_proj.register_forward_hook(lambda module, args, output: found.append(output))
    encoder_output(model, inputs)
    handle.remove()
    expected = found[0].unflatten(-1, (layer.num_heads, -1)).mean(-2)[:, 1 if name == "llava" else 0 :]
    with Curious(1.0)(model):
        torch.testing.assert_close(signals(encoder_output(model, inputs), "keys"), expected.flatten(0, 1), **close)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "mistral3", "lfm2_vl"])
def test_images_do_not_see_each_other(name: str) -> None:
    """Where the tower takes images of any shape at once, each is as if it were alone, and padding is nothing."""
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    with Curious(1.0)(model):
        together = encoder_output(model, inputs)
        alone = [encoder_output(model, family.prompt_of(inputs, row)) for row in (0, 1)]
    for need in FROM_TOWER:
        torch.testing.assert_close(signals(together, need), torch.cat([signals(each, need) for each in alone]), **close)
    # Every patch gives away 1, and a token has the mean of four.
    views = [len(rows) for media in BATCH for one in media for rows, _ in family.image_layout(one)[1]]
    sums = torch.stack([values.sum() for values in signals(together, "attention").split(views)])
    torch.testing.assert_close(sums, torch.full_like(sums, 0.25), **close)


def rotated_attention(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the patches of Qwen2-VL receive in its last layer, an image at a time, in float64."""
    layer = model.base_model.visual.blocks[-1].attn
    given: list[Any] = []
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    encoder_output(model, inputs)
    handle.remove()
    ((hidden,), settings) = given[0]
    query, key, _ = layer.qkv(hidden).reshape(len(hidden), 3, layer.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *settings["position_embeddings"])
    sizes = inputs["image_grid_thw"].prod(-1).tolist()
    received = []
    for q, k in zip(query.double().split(sizes), key.double().split(sizes), strict=True):
        logits = torch.einsum("ihd,jhd->hij", q, k) / layer.head_dim**0.5
        received.append(logits.softmax(-1).mean((0, 1)))
    return torch.cat(received).view(-1, 4).mean(1).float()


def test_attention_of_rotated_keys() -> None:
    family = FAMILIES["qwen2_vl"]
    model, inputs = family.model(), family.inputs()
    expected = rotated_attention(model, inputs)
    with Curious(1.0)(model):
        torch.testing.assert_close(signals(encoder_output(model, inputs), "attention"), expected, **close)


@pytest.mark.parametrize("name", present("llava_next", "llava_onevision", "qwen2_5_vl", "smolvlm"))
def test_the_tower_computes_what_it_did(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    stock = encoder_output(model, inputs)
    before = hooks_and_configs(model)
    with Curious(1.0)(model):
        output = encoder_output(model, inputs)
    assert torch.equal(features(output), features(stock))
    assert hooks_and_configs(model) == before


def hooks_and_configs(model: Module) -> list[Any]:
    return [(list(module._forward_hooks), id(getattr(module, "config", None))) for module in model.modules()]


def test_newline_rows_know_nothing() -> None:
    family = FAMILIES["llava_next"]
    model, inputs = family.model(), family.inputs()
    with Curious(1.0)(model):
        output = encoder_output(model, inputs)
    newline = (features(output) == model.base_model.image_newline).all(-1)
    assert newline.any()
    assert torch.equal(signals(output, "attention").isnan(), newline)


@pytest.mark.parametrize("kind", ["none", "bool", "additive", "padding"])
@pytest.mark.parametrize("at_once", [1, 10**6])
def test_received_attention_by_the_book(kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_reading, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 2, 3, 7, 4, generator=generator).unbind(0)
    allowed = torch.ones(2, 7, 7, dtype=torch.bool)
    if kind == "padding":
        allowed[1, :, 5:] = False
    elif kind != "none":
        allowed[:, :3, 3:] = allowed[:, 3:, :3] = False
    mask = {
        "none": None,
        "bool": allowed[:, None],
        "additive": torch.zeros(2, 1, 7, 7).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min),
        "padding": allowed[:, 0],
    }[kind]
    expected = torch.zeros(2, 7, dtype=torch.float64)
    for image in range(2):
        lookers = [i for i in range(7) if allowed[image, :, i].any()]
        for j in lookers:
            seeing = [i for i in lookers if allowed[image, i, j]]
            for i in seeing:
                for head in range(3):
                    logits = query[image, head, i].double() @ key[image, head].double().T / 2
                    share = logits.masked_fill(~allowed[image, i], -torch.inf).softmax(-1)[j]
                    expected[image, j] += share / 3 / len(seeing)
    torch.testing.assert_close(attention_received(query, key, mask, 0.5).double(), expected, **close)


@pytest.mark.parametrize(("chosen", "index"), [(-2, 0), (-1, 1), (1, 0), (2, 1), ([1, 2], 1), ([-2, -2], 0)])
def test_layer_whose_output_becomes_the_features(chosen: int | list[int], index: int) -> None:
    base = FAMILIES["llava"].model().base_model
    assert layer_index(base, base.vision_tower, {"vision_feature_layer": chosen}) == index


def test_features_from_before_the_first_layer_are_refused() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    with Curious(0.5)(model), pytest.raises(ValueError, match="before the first layer"):
        model(**inputs, vision_feature_layer=0)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not TABLE[name].tower])
def test_towers_that_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"Curious needs the attention .* cannot read for {name}; it can for .*"):
        Curious(0.5)(FAMILIES[name].model())


def test_features_made_elsewhere_are_refused() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    output = encoder_output(model, inputs)
    call = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with Curious(0.5)(model), pytest.raises(ValueError, match="encoded while it was not attached"):
        model(**call, mm_encoder_outputs={"image": output})


def test_features_of_an_earlier_encoding_are_pruned() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    call = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with Curious(0.5)(model):
        expected = model(**inputs).logits
        output = encoder_output(model, inputs)
        assert torch.equal(model(**call, mm_encoder_outputs={"image": output}).logits, expected)


def test_a_copy_of_the_model_reads_its_own_tower() -> None:
    family = FAMILIES["llava"]
    model, inputs = copy.deepcopy(family.model()), family.inputs()
    with Curious(1.0)(model):
        other = copy.deepcopy(model)
        for parameter in other.base_model.vision_tower.parameters():
            parameter.mul_(1.5)
        own, copied = (signals(encoder_output(each, inputs), "keys") for each in (model, other))
    assert not torch.allclose(own, copied)
