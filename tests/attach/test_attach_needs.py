"""Methods that need more than features, on models: against a full recompute, told by the long way."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, beam_search, cache_of, present, sample
from families import FAMILIES, VIDEOS, Family, is_video
from knowing import known_tokens, told_prompts
from reference import greedy

from gprune import (
    BAT,
    MMR,
    SCOPE,
    ApET,
    Background,
    CDPruner,
    ClsAttention,
    Foreground,
    GraphCover,
    HiPrune,
    L2Norm,
    MMTok,
    PruMerge,
    Pruner,
    UnsupportedModel,
    VisionZip,
    VisPruner,
    VisualTokens,
    ZeroTPrune,
)
from gprune.errors import BadValue
from gprune.families.table import FAMILIES as TABLE
from gprune.families.table import families_of, missing

WIDE = (((40, 40),), ((16, 48), (44, 30)), ((30, 41),))
STEPS = 9  # the prefill and 8 decode steps
LOGITS: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}

READ = [name for name in FAMILIES if TABLE[name].tower]
WHOLE = [name for name in READ if TABLE[name].joins is None]
MAIN = present("llava", "llava_next", "qwen2_5_vl", "smolvlm")

OBJECT = torch.zeros(40, 60, dtype=torch.bool)
OBJECT[10:30, 5:25] = True

BY_TOWER: dict[str, Pruner] = {
    "clsattention": ClsAttention(0.4),
    "visionzip": VisionZip(0.8),
    "bat": BAT(0.6, matched=0.5),
    "zerotprune": ZeroTPrune(0.4),
    "scope": SCOPE(0.4),
    "hiprune": HiPrune(0.6, alpha=0.3),
    "prumerge": PruMerge(0.6, neighbours=2),
    "vispruner": VisPruner(0.4),
}
CROSSED = [(name, pruner) for pruner in BY_TOWER.values() for name in READ]
CROSSED += [(name, pruner) for pruner in (CDPruner(0.4), MMTok(0.4), MMR(0.4)) for name in FAMILIES]
CROSSED += [(name, ApET(0.6)) for name in FAMILIES if missing(ApET(), name) is None]
CROSSED += [(name, pruner) for pruner in (Foreground(0.4, mask=OBJECT), Background(7, mask=OBJECT)) for name in WHOLE]


SHARED = ["llava_next", "llava_next_video", "llava_onevision"]
SHARING: dict[str, Pruner] = {
    "l2norm": L2Norm(0.4, shares="global"),
    "graphcover": GraphCover(20, shares="global"),
    "prumerge": PruMerge(0.6, neighbours=2, shares="global"),
}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def generated(family: Family, pruner: Pruner, attention: str = "sdpa") -> None:
    """Generation of a batch against the long way."""
    model, inputs = family.model(attention), family.inputs()
    length = inputs["input_ids"].shape[1]
    runs = [greedy(model, prompt, STEPS) for prompt in told_prompts(family, model, pruner, inputs)]
    with pruner(model):
        output = model.generate(**inputs, max_new_tokens=STEPS, **LOGITS)
    torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([logits for logits, _ in runs]), **close)
    assert torch.equal(output.sequences[:, length:], torch.stack([tokens for _, tokens in runs]))
    assert cache_of(output).get_seq_length() < length + STEPS - 1


@pytest.mark.parametrize("name", READ)
def test_merged_tokens_reach_the_llm(name: str) -> None:
    generated(FAMILIES[name], VisionZip(0.8, positions="contiguous" if name == "gemma3" else "original"))


@pytest.mark.parametrize("pruner", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("name", present(*SHARED))
def test_tiles_share_the_budget_of_their_image(name: str, pruner: Pruner) -> None:
    generated(FAMILIES[name], pruner)
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs(WIDE)
    known = known_tokens(family, model, pruner, inputs, WIDE)
    with pruner(model) as run:
        model(**inputs)
    for report, tokens in zip(run.images, known, strict=True):
        assert torch.equal(report.kept, pruner.select(tokens).kept)
        assert report.grids == tuple(view.grid for view in tokens.views)
        assert report.n_after == len(replace(pruner, shares="own").select(tokens).kept)
    assert any(tokens.views[-1].tiles != tokens.views[-1].grid for tokens in known)


@pytest.mark.parametrize("name", present(*SHARED))
def test_what_a_tile_keeps_follows_the_attention_of_the_base_view(name: str) -> None:
    """Larger weights in the tower's last layers, so that attention differs from tile to tile."""
    family, pruner = FAMILIES[name], L2Norm(0.4, shares="global")
    model, inputs = copy.deepcopy(family.model()), family.inputs(WIDE)
    for parameter in (p for n, p in model.named_parameters() if "vision" in n and n.endswith("q_proj.weight")):
        parameter.mul_(20)
    known = known_tokens(family, model, pruner, inputs, WIDE)
    with pruner(model) as run:
        model(**inputs)
    for report, tokens in zip(run.images, known, strict=True):
        assert torch.equal(report.kept, pruner.select(tokens).kept)
    assert any(
        not torch.equal(report.kept, even(pruner, tokens)) for report, tokens in zip(run.images, known, strict=True)
    )


def even(pruner: Pruner, tokens: VisualTokens) -> torch.Tensor:
    """What is kept where nothing stands out."""
    signals = {**tokens.signals, "attention": torch.ones_like(tokens.signals["attention"])}
    return pruner.select(replace(tokens, signals=signals)).kept


@pytest.mark.parametrize("name", [name for name in FAMILIES if TABLE[name].joins is not None])
def test_families_whose_tiles_have_no_known_place_are_refused(name: str) -> None:
    pruner, reason = L2Norm(shares="global"), "which part of the picture each of its tiles shows is not known to gprune"
    assert missing(pruner, name) == reason and name not in families_of(pruner)
    with pytest.raises(UnsupportedModel, match=rf'cannot go on {name} with shares="global": {reason}'):
        pruner(FAMILIES[name].model())


def test_images_of_one_view_have_nothing_to_share() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    kept = []
    for pruner in (L2Norm(0.4), L2Norm(0.4, shares="global")):
        with pruner(model) as run:
            model(**inputs)
        kept.append([report.kept.tolist() for report in run.images])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", present("llava_onevision"))
def test_videos_are_not_made_of_tiles(name: str) -> None:
    family = FAMILIES[name]
    with L2Norm(0.4, shares="global")(family.model()), pytest.raises(BadValue, match='shares="own" for videos'):
        family.model()(**family.inputs(VIDEOS))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_prompt_is_pruned_by_its_own_question(name: str) -> None:
    generated(FAMILIES[name], CDPruner(0.4))


@pytest.mark.parametrize("pruner", [*BY_TOWER.values(), Foreground(0.4, mask=OBJECT)], ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_generation_equals_full_recompute(name: str, pruner: Pruner) -> None:
    generated(FAMILIES[name], pruner, "eager")


@pytest.mark.parametrize(("name", "pruner"), CROSSED, ids=lambda value: getattr(value, "name", value))
def test_every_family_that_the_method_claims(name: str, pruner: Pruner) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    known = known_tokens(family, model, pruner, inputs)
    with pruner(model) as run:
        model(**inputs)
    assert len(run.images) == len(known)
    for report, tokens in zip(run.images, known, strict=True):
        expected = pruner.select(tokens)
        assert torch.equal(report.kept, expected.kept)
        assert (report.scores is None) == (expected.scores is None)
        if report.scores is not None:
            torch.testing.assert_close(report.scores, expected.scores, equal_nan=True, **close)


@pytest.mark.parametrize("name", [name for name in READ if FAMILIES[name].takes_videos])
def test_videos(name: str) -> None:
    family = FAMILIES[name]
    prompts = family.shown()
    model, inputs = family.model(), family.inputs(prompts)
    for pruner in (VisionZip(0.6), CDPruner(0.4)):
        known = known_tokens(family, model, pruner, inputs, prompts)
        with pruner(model) as run:
            model(**inputs)
        reports = {True: iter(run.videos), False: iter(run.images)}
        for one, tokens in zip((one for prompt in prompts for one in prompt), known, strict=True):
            assert torch.equal(next(reports[is_video(one)]).kept, pruner.select(tokens).kept)


@pytest.mark.parametrize("name", MAIN)
def test_keeping_everything_changes_no_bit(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    stock = model.generate(**inputs, max_new_tokens=4, **LOGITS)
    pruners = [*(replace(pruner, keep=1.0) for pruner in BY_TOWER.values()), CDPruner(1.0)]
    for pruner in pruners:
        with pruner(model):
            output = model.generate(**inputs, max_new_tokens=4, **LOGITS)
        assert all(map(torch.equal, output.logits, stock.logits))
        assert all(map(torch.equal, model.generate(**inputs, max_new_tokens=4, **LOGITS).logits, stock.logits))


@pytest.mark.parametrize("pruner", [VisionZip(0.8), CDPruner(0.4)], ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("name", MAIN)
def test_beams_sampling_and_a_static_cache(name: str, pruner: Pruner) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    prompts = told_prompts(family, model, pruner, inputs)
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
    length = inputs["input_ids"].shape[1]
    best = torch.cat([beam_search(model, prompt, 2, 4) for prompt in prompts])
    torch.manual_seed(0)
    drawn = sample(model, [prompt for prompt in prompts for _ in range(2)], 4)
    with pruner(model):
        beams = model.generate(**inputs, **settings, num_beams=2, num_return_sequences=2)
        static = model.generate(**inputs, **settings, cache_implementation="static", disable_compile=True)
        plain = model.generate(**inputs, **settings)
        torch.manual_seed(0)
        drawing = {**settings, "do_sample": True, "top_k": 0, "num_return_sequences": 2}
        sampled = model.generate(**inputs, **drawing)
    assert torch.equal(beams[:, length:], best)
    assert torch.equal(static, plain)
    assert torch.equal(sampled[:, length:], drawn)


def test_another_question_keeps_other_tokens() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -5:] = torch.tensor([3, 40, 41, 42, 7])
    with CDPruner(0.4)(model) as run:
        model(**inputs)
        before = [report.kept for report in run.images]
        model(**other)
    same = [torch.equal(one, report.kept) for one, report in zip(before, run.images, strict=True)]
    assert same == [False, True, True]


def test_a_mask_for_each_picture() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    quarters = torch.zeros(3, 8, 8, dtype=torch.bool)
    for image, (row, column) in enumerate([(0, 0), (0, 4), (4, 4)]):
        quarters[image, row : row + 4, column : column + 4] = True
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [10, 11, 14, 15]]
    with Foreground(0.25)(model) as run:
        with pytest.raises(BadValue, match="Foreground has no mask of image 0"):
            model(**inputs)
        for masks in (quarters, quarters.numpy(), quarters.tolist()):
            run.masks = masks
            model(**inputs)
            assert [report.kept.tolist() for report in run.images] == expected
            model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
            assert [report.kept.tolist() for report in run.images] == expected
        run.masks = quarters[:2]
        with pytest.raises(BadValue, match="masks has 2 entries for 3 images"):
            model(**inputs)


def test_masks_are_those_of_the_thread_that_gives_them() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs()
    top = torch.arange(4) < 2
    masks = [top[:, None].expand(4, 4), ~top[:, None].expand(4, 4), top[None].expand(4, 4)]
    barrier, kept = threading.Barrier(len(masks)), {}

    with Foreground(0.5)(model) as run:

        def asked(number: int) -> None:
            run.masks = [masks[number]] * 3
            barrier.wait()
            with torch.no_grad():
                model(**inputs)
            kept[number] = [report.kept.tolist() for report in run.images]

        threads = [threading.Thread(target=asked, args=(number,)) for number in range(len(masks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kept == {number: [mask.flatten().nonzero().squeeze(1).tolist()] * 3 for number, mask in enumerate(masks)}


@pytest.mark.parametrize("name", ["internvl", "idefics3", "aria", "lfm2_vl"])
def test_masks_are_refused_where_views_are_tiles(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"Foreground must know where .* for {name}"):
        Foreground(mask=OBJECT)(FAMILIES[name].model())


def test_an_image_without_a_question_is_refused() -> None:
    family = FAMILIES["paligemma"]
    model, inputs = family.model(), family.prompt_of(family.inputs(), 0)
    shown = inputs["input_ids"][0] == model.config.image_token_id
    call = {**inputs, **{name: inputs[name][:, shown] for name in ("input_ids", "attention_mask", "token_type_ids")}}
    with CDPruner(0.4)(model), pytest.raises(ValueError, match="needs the question"):
        model(**call)
