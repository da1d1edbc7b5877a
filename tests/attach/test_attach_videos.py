"""Videos, alone and beside images, against the long way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decoding import PLACEHOLDERS, beam_search, cache_of, since, with_cache
from families import FAMILIES, VIDEOS, Family, Media, is_video
from knowing import known_tokens, told_prompts
from reference import encode, kept_prompts, kept_rows

from gprune import EVS, FastVID, GraphCover, LLaVAScissor, Pruner, UnsupportedModel, VidCom2
from gprune.errors import BadValue
from gprune.families.table import missing
from gprune.pruners import GPrune, Uniform
from gprune.pruners.base import Positions, Scope

STEPS = 4
SETTINGS: dict[str, Any] = {"do_sample": False, "suppress_tokens": PLACEHOLDERS, "max_new_tokens": STEPS}
MIXED: tuple[tuple[Media, ...], ...] = ((), ((4, (30, 18)), (40, 40), (4, (20, 40))), ((20, 40),))


BEAMS = dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp", "muse_glimmer", "muse_spark"), "5.20")
RIGHT_SINCE = {"llava_next_video": "5.20"} | BEAMS
"""Before, stock lays the frames out otherwise, which is refused, or mixes beams up."""

TAKE_VIDEOS = [
    family for family in FAMILIES.values() if family.takes_videos and since(RIGHT_SINCE.get(family.name, "5"))
]


@pytest.fixture(params=TAKE_VIDEOS, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("prompts", [VIDEOS, MIXED], ids=["videos", "videos around an image"])
@pytest.mark.parametrize(("positions", "scope"), [("original", "image"), ("contiguous", "view")])
def test_generation_equals_the_long_way(
    family: Family, positions: Positions, scope: Scope, prompts: Sequence[Sequence[Media]]
) -> None:
    model, inputs = family.model(), family.inputs(prompts)
    pruner = GPrune(keep=0.4, positions=positions, scope=scope)
    kept = kept_prompts(family, model, pruner, inputs, prompts)
    for beams in (1, 2):
        expected = torch.cat([beam_search(model, prompt, beams, STEPS)[:1] for prompt in kept])
        with pruner(model):
            output = model.generate(**inputs, **SETTINGS, num_beams=beams)
        assert torch.equal(output[:, -STEPS:], expected)


CLIPS: tuple[tuple[Media, ...], ...] = (((4, (30, 18)),), (), ((4, (40, 40)), (4, (20, 40))))


OVER_FRAMES: tuple[Pruner, ...] = (
    EVS(0.6),
    VidCom2(0.4),
    FastVID(0.6, segments=2, similarity=-1, step=2),
    LLaVAScissor(0.4),
    GraphCover(0.4, scope="image"),
)


@pytest.mark.parametrize("pruner", OVER_FRAMES, ids=lambda pruner: pruner.name)
def test_frames_are_looked_at_together(family: Family, pruner: Pruner) -> None:
    if missing(pruner, family.name) is not None:
        with pytest.raises(UnsupportedModel):
            pruner.attach(family.model())
        return
    model, inputs = family.model(), family.inputs(CLIPS)
    kept = told_prompts(family, model, pruner, inputs, CLIPS)
    expected = torch.cat([beam_search(model, prompt, 1, STEPS)[:1] for prompt in kept])
    with pruner(model) as run:
        output = model.generate(**inputs, **SETTINGS)
    assert torch.equal(output[:, -STEPS:], expected)
    for tokens, report in zip(known_tokens(family, model, pruner, inputs, CLIPS), run.videos, strict=True):
        assert torch.equal(report.kept, pruner.select(tokens).kept)


@pytest.mark.parametrize("pruner", OVER_FRAMES[:-1], ids=lambda pruner: pruner.name)
def test_images_have_no_frames_to_compare(pruner: Pruner) -> None:
    model, inputs = FAMILIES["qwen2_vl"].model(), FAMILIES["qwen2_vl"].inputs()
    with (
        pruner(model),
        pytest.raises(BadValue, match=f"{type(pruner).__name__} compares the frames of videos, and these"),
    ):
        model(**inputs)


def test_a_family_whose_videos_are_not_pruned() -> None:
    with pytest.raises(UnsupportedModel, match=r"EVS compares the frames .* for paligemma; use one of .*qwen2_vl"):
        EVS(0.5).attach(FAMILIES["paligemma"].model())


@pytest.mark.parametrize("scope", ["view", "image"])
@pytest.mark.parametrize("keep", [0.4, 7])
def test_report_of_every_clip(family: Family, keep: float, scope: Scope) -> None:
    """An int is the number of tokens of a whole clip, or of a whole image; fixed rows come on top."""
    model, inputs, pruner = family.model(), family.inputs(MIXED), GPrune(keep=keep, scope=scope)
    with pruner(model) as run:
        model(**inputs)
    media = [one for prompt in MIXED for one in prompt]
    reports = {True: iter(run.videos), False: iter(run.images)}
    assert [len(run.videos), len(run.images)] == [2, 2]
    for features, one in zip(encode(model, inputs, MIXED), media, strict=True):
        report = next(reports[is_video(one)])
        count, views = family.layout(one)
        assert torch.equal(report.kept, kept_rows(family, pruner, features, one))
        assert report.n_before == count
        assert report.grids == tuple(grid for _, grid in views)
        assert [view.rows.tolist() for view in report.views] == [rows for rows, _ in views]
        fixed = count - sum(len(rows) for rows, _ in views)
        assert report.n_after - fixed == (7 if keep == 7 else pytest.approx(0.4 * (count - fixed), abs=len(views)))


def test_clip_of_one_frame(family: Family) -> None:
    model, prompts = family.model(), (((1, (20, 40)),),)
    inputs = family.inputs(prompts)
    with Uniform(keep=3)(model) as run:
        model(**inputs)
    count, views = family.layout(prompts[0][0])
    assert len(views) == 1
    assert [view.rows.tolist() for view in run.videos[0].views] == [rows for rows, _ in views]
    assert run.videos[0].n_after == 3 + count - len(views[0][0])


def test_video_goes_on_in_a_second_turn(family: Family) -> None:
    model, pruner = family.model(), Uniform(keep=0.4)
    prompts = VIDEOS[:1]
    inputs = family.inputs(prompts)
    kept = kept_prompts(family, model, pruner, inputs, prompts)[0]
    with pruner(model):
        turn = model.generate(**inputs, **SETTINGS, return_dict_in_generate=True)
        ids = torch.cat([turn.sequences, torch.tensor([[7, 8, 9]])], dim=1)
        output = model.generate(ids, **with_cache(cache_of(turn)), **SETTINGS)
    for token in ids[0, inputs["input_ids"].shape[1] :]:
        kept = kept.followed_by(model, token)
    assert torch.equal(output[:, -STEPS:], beam_search(model, kept, 1, STEPS))


@pytest.mark.parametrize("name", ["glm4v", "internvl"])
def test_videos_of_families_without_a_layout_for_them(name: str) -> None:
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs()
    with Uniform(keep=0.4)(model), pytest.raises(ValueError, match=rf"video.*{name}.*detach"):
        model(**inputs, pixel_values_videos=inputs["pixel_values"])
