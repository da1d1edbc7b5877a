"""What vLLM reserves for an image and what fills it, without vLLM."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from families import FAMILIES, Size
from families.parts import IMAGE

from gprune import PRUNERS, GPrune
from gprune.serve.families import (
    EXPERIMENTAL,
    LLAVA_PIXTRAL,
    MODULES,
    ONE_AXIS_MODELS,
    SERVED,
    UNSERVED,
    WOVEN_MODELS,
    served_architecture,
    views,
    woven_views,
)
from gprune.serve.settings import keep_of, keep_tensor, pruner_of, served_pruner, unpacked

SIZES: tuple[Size, ...] = ((16, 16), (20, 40), (40, 40), (30, 18), (100, 3), (3, 100), (200, 170))
FEATURES_ALONE = ("gprune", "random", "uniform", "l2norm", "divprune", "graphcover", "graphvote", "mmr", "auto", "apet")
OF_TOWER = ("clsattention", "scope", "vispruner", "hiprune", "visionzip", "prumerge", "bat", "zerotprune")
WHY = {
    "foreground": "it needs a mask for every picture",
    "background": "it needs a mask for every picture",
    "cdpruner": "it needs the question, and vLLM encodes and keeps images without the prompts they stand in",
    "mmtok": "it needs the question",
    "learned": "it needs a scorer that was trained for the model",
    "evs": "it compares the frames of videos",
    "vidcom2": "it compares the frames of videos",
    "fastvid": "it compares the frames of videos",
    "llavascissor": "it compares the frames of videos",
    "pixeldedup": "how many tokens it keeps depends on what a picture shows",
    "tome": "it changes the vision tower",
    "evovit": "it changes the vision tower",
    "fastv": "it acts in the layers of the LLM, which in vLLM all get every token",
    "vtw": "it acts in the layers of the LLM",
    "pyramiddrop": "it acts in the layers of the LLM",
    "dart": "it acts in the layers of the LLM",
    "v2drop": "it acts in the layers of the LLM",
    "sparsevlm": "it acts in the layers of the LLM",
    "pumer": "it acts in the layers of the LLM",
}
"""Why a method cannot be served at all."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ONE_AXIS_MODELS)
def test_views_are_those_of_the_family(name: str, size: Size) -> None:
    family = FAMILIES[name]
    count, layout = family.image_layout(size)
    config, _ = family.build()
    found = views(config, count, size)
    assert [(view.rows.tolist(), view.grid) for view in found] == layout


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_a_view_has_the_grid_that_the_processor_tells(name: str, size: Size) -> None:
    family = FAMILIES[name]
    count, layout = family.image_layout(size)
    _, rows, columns = family.image_pixels(size, torch.Generator())["image_grid_thw"][0].tolist()
    found = views(family.build()[0], count, (rows, columns))
    assert [(view.rows.tolist(), view.grid) for view in found] == layout


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in WOVEN_MODELS if name in FAMILIES])
def test_views_between_which_there_is_text(name: str, size: Size) -> None:
    family = FAMILIES[name]
    _, layout = family.image_layout(size)
    ids = torch.tensor(family.image_ids(size, lambda count: [5] * count))
    visual = ids == IMAGE
    start, end = visual.nonzero()[[0, -1]].flatten().tolist()
    found = woven_views(family.build()[0], visual[start : end + 1])
    assert [(view.rows.tolist(), view.grid) for view in found] == layout


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl"])
def test_another_number_of_tokens_is_refused(name: str) -> None:
    family = FAMILIES[name]
    count, _ = family.image_layout((40, 40))
    with pytest.raises(ValueError, match=f"an image of 40 x 40 pixels .* has {count + 1} visual tokens"):
        views(family.build()[0], count + 1, (40, 40))


def test_models_that_vllm_cannot_prune() -> None:
    for name in set(FAMILIES) - set(SERVED) - set(EXPERIMENTAL):
        because = f": {UNSERVED[name]}" if name in UNSERVED else ""
        accepted = f"{because}; accepted are llava, llava_next, llava_onevision, internvl, mistral3"
        with pytest.raises(ValueError, match=re.escape(f"model_type {name!r} pruned{accepted}")):
            served_architecture(FAMILIES[name].build()[0], experimental=True)


@pytest.mark.parametrize("name", UNSERVED)
def test_a_reason_is_given_for_a_family_of_gprune(name: str) -> None:
    assert name in FAMILIES and name not in SERVED and name not in EXPERIMENTAL


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_an_experiment_is_asked_for(name: str) -> None:
    config, _ = FAMILIES[name].build()
    with pytest.raises(ValueError, match=f"'{name}' pruned only as an experiment; .* --experimental"):
        served_architecture(config)
    assert served_architecture(config, experimental=True) == EXPERIMENTAL[name]


def test_a_llava_with_line_breaks_has_an_architecture_of_its_own() -> None:
    config, _ = FAMILIES["llava"].build()
    assert served_architecture(config) == SERVED["llava"]
    config.vision_config.model_type = "pixtral"
    assert served_architecture(config) == LLAVA_PIXTRAL


def test_every_architecture_is_in_one_module() -> None:
    names = [name for architectures in MODULES.values() for name in architectures]
    assert sorted(names) == sorted({*SERVED.values(), *EXPERIMENTAL.values(), LLAVA_PIXTRAL})


@pytest.mark.parametrize("keep", [0.3, 1.0, 1e-9, 0.1, 1, 2, 128, 10**6])
def test_a_budget_arrives_as_it_was_sent(keep: float) -> None:
    arrived = unpacked(keep_tensor(keep))
    assert (arrived, type(arrived)) == (keep, type(keep))


def test_a_number_beyond_all_floats_keeps_all() -> None:
    assert unpacked(keep_tensor(10**400)) >= 2**50


@pytest.mark.parametrize("name", PRUNERS)
def test_methods(name: str) -> None:
    """By what they need: nothing but features, the vision tower, or what vLLM does not have."""
    llava, internvl = (FAMILIES[family].build()[0] for family in ("llava", "internvl"))
    for config in (None, llava, internvl):
        if name in FEATURES_ALONE or (name in OF_TOWER and config is llava):
            assert served_pruner(name, 0.3, config).name == name
            continue
        why = WHY.get(name, r"it needs the (attention|keys) of the vision tower, which is read in vLLM of llava")
        with pytest.raises(
            ValueError, match=f"method '{name}' cannot be served by vLLM: {why}.* accepted are gprune, "
        ):
            served_pruner(name, 0.3, config)


@pytest.mark.parametrize("tower", ["pixtral", "qwen2_vl"])
def test_towers_that_are_not_read(tower: str) -> None:
    config, _ = FAMILIES["llava"].build()
    config.vision_config.model_type = tower
    with pytest.raises(ValueError, match="with a CLIP or SigLIP tower alone"):
        served_pruner("clsattention", 0.3, config)


def test_merging_where_tokens_have_places() -> None:
    config, _ = FAMILIES["qwen2_vl"].build()
    with pytest.raises(ValueError, match=r"'apet' cannot .* merges tokens, which was not tried with places in a grid"):
        served_pruner("apet", 0.3, config)


def test_what_a_setting_needs_counts() -> None:
    with pytest.raises(ValueError, match=r"'gprune:shares=global' cannot be served by vLLM: .*which part of a picture"):
        served_pruner("gprune:shares=global", 0.3, FAMILIES["llava"].build()[0])
    with pytest.raises(ValueError, match="gprune_keep: keep=own depends on what the picture shows"):
        keep_of(None, {"gprune_keep": "own"})


def test_a_mask_is_not_opened() -> None:
    with pytest.raises(ValueError, match="cannot be served"):
        served_pruner("foreground:mask=/does/not/exist.png", 0.3)


class Config:
    """What `--hf-overrides` put beside the model's own settings."""

    model_type = "internvl"

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


def test_the_request_goes_before_the_server() -> None:
    assert keep_of(Config(), {}) == GPrune().keep
    assert keep_of(Config(gprune_keep=40), {}) == 40
    assert keep_of(Config(gprune_keep=40), {"gprune_keep": 0.5}) == 0.5


def test_the_server_has_a_method() -> None:
    assert pruner_of(Config(), 0.5) == GPrune(0.5)
    assert pruner_of(Config(gprune_method="gprune:init=ones:scope=image"), 7) == GPrune(7, init="ones", scope="image")


@pytest.mark.parametrize("keep", [0, 0.0, 1.5, -1, True, "0.3", None, [1], float("nan"), float("inf")])
def test_wrong_budgets(keep: Any) -> None:
    with pytest.raises(ValueError, match=r"gprune_keep: keep=.*a float in \(0, 1\], which is a ratio, or an int >= 1"):
        keep_of(Config(), {"gprune_keep": keep})


def test_other_settings_of_a_request() -> None:
    with pytest.raises(ValueError, match="mm_processor_kwargs has max_pixels, size; with gprune"):
        keep_of(Config(), {"size": 8, "gprune_keep": 0.5, "max_pixels": 9})


def test_views_can_be_made_where_the_features_are() -> None:
    family = FAMILIES["llava_next"]
    count, _ = family.image_layout((40, 40))
    assert all(view.rows.device == torch.device("meta") for view in views(family.build()[0], count, (40, 40), "meta"))
