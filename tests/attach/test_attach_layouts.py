"""Views read back from packed features, against the closed form of the image's size."""

from __future__ import annotations

import inspect
import random

import pytest
import torch
from decoding import present
from families import BROKEN, FAMILIES, IMAGE, SINCE
from reference import kept_rows
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from gprune.attach.choosing import marked_rows
from gprune.families.table import FAMILIES as TABLE
from gprune.families.table import families_of
from gprune.families.tiles import adjacent, grouped, overview_first, overview_last, spans_of
from gprune.families.views import Item, base_and_lines, lines_then_base, placed_frames, scaled
from gprune.pruners import L2Norm

NEWLINES = [name for name in FAMILIES if TABLE[name].views in (base_and_lines, lines_then_base)]


def test_every_family_of_the_matrix_has_a_row_and_the_other_way_round() -> None:
    absent = {name for name in (*SINCE, *BROKEN) if name not in FAMILIES}
    assert set(families_of(L2Norm())) & set(CONFIG_MAPPING_NAMES) - absent == set(FAMILIES)
    assert {name: row.since for name, row in TABLE.items() if row.since != "5.19"} == SINCE
    assert {name: row.broken for name, row in TABLE.items() if row.broken} == BROKEN


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NEWLINES)
def test_views_are_read_back_from_newlines(name: str, dtype: torch.dtype) -> None:
    family, generator = FAMILIES[name], random.Random(0)
    model = family.model()
    sizes = [(generator.randint(1, 300), generator.randint(1, 300)) for _ in range(20)]
    sizes += [(2, 200), (200, 2), (1, 1), (4000, 40), (16, 16)]
    for size in sizes:
        count, views = family.layout(size)
        features = torch.randn(count, 32).to(dtype)
        fixed = family.tokens(features, size).fixed
        fixed[-1] &= TABLE[name].views is not lines_then_base  # whose last row is a separator
        features[fixed] = model.model.image_newline.to(dtype)
        (marked,) = marked_rows([features], model.model.image_newline)
        found = TABLE[name].views(Item(model, features, {}, (0, 0), marked=marked))
        assert [(view.rows.tolist(), view.grid) for view in found] == views, size


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_views_of_random_sizes(name: str) -> None:
    """Three images in two prompts of one call, as the stock encoder and the family's prompts lay them out."""
    family, generator = FAMILIES[name], random.Random(0)
    model = family.model()
    for _ in range(5):
        sizes = [(generator.randint(8, 60), generator.randint(8, 60)) for _ in range(3)]
        images = (tuple(sizes[:1]), tuple(sizes[1:]))
        with L2Norm(keep=0.5)(model) as run:
            model(**family.inputs(images), use_cache=False)
        found = [[(view.rows.tolist(), view.grid) for view in report.views] for report in run.images]
        assert found == [family.layout(size)[1] for size in sizes], sizes


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.takes_videos])
def test_frames_of_random_videos(name: str) -> None:
    family, generator = FAMILIES[name], random.Random(0)
    model = family.model()
    for _ in range(5):
        video = (2 * generator.randint(1, 4), (generator.randint(8, 60), generator.randint(8, 60)))
        with L2Norm(keep=0.5)(model) as run:
            model(**family.video_inputs(((video,),)), use_cache=False)
        (report,) = run.videos
        assert run.images == []
        assert [(view.rows.tolist(), view.grid) for view in report.views] == family.layout(video)[1], video


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral3", "qwen2_vl", "lfm2_vl", "kimi_k25", "molmo2", "step3p7"])
def test_features_made_elsewhere_have_views_without_a_grid(name: str) -> None:
    """The encoder ran before the pruner was attached: what it was told of the images is lost, not the budget."""
    if name not in FAMILIES:
        pytest.skip(f"this transformers has no {name}")
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs((((20, 40),),))
    encoder = model.base_model.get_image_features
    told = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
    encoded = encoder(**told, return_dict=True)
    pixels = inputs.pop("pixel_values")
    with L2Norm(keep=0.5)(model) as run:
        model(**inputs, mm_encoder_outputs={"image": encoded}, use_cache=False)
        (without,) = run.images
        model(**inputs, pixel_values=pixels, use_cache=False)
        (report,) = run.images
    assert set(report.grids) - set(without.grids)
    assert without.n_before == report.n_before
    assert abs(without.n_after - report.n_after) < len(report.views)


@torch.no_grad()
def test_queries_made_elsewhere_are_one_view_and_their_separator_stays() -> None:
    family = FAMILIES["deepseek_ocr2"]
    count, _ = family.layout((20, 40))
    views = TABLE["deepseek_ocr2"].views(Item(family.model(), torch.randn(count, 32), {}, (0, 0)))
    assert [(view.rows.tolist(), view.grid) for view in views] == [(list(range(count - 1)), None)]


@torch.no_grad()
def test_large_pictures_have_more_queries() -> None:
    """As released: 256 for the whole in 1024 pixels, 144 for a tile in 768."""
    family = FAMILIES["deepseek_ocr2"]
    side = 16 * 4 * family.settings["vision_config"]["sam_config"]["patch_size"]
    told = {"pixel_values": torch.zeros(3, side, side), "num_local_patches": torch.tensor(2)}
    views = TABLE["deepseek_ocr2"].views(Item(family.model(), torch.randn(2 * 144 + 256 + 1, 32), told, (0, 0)))
    assert [view.rows.tolist() for view in views] == [[*range(144)], [*range(144, 288)], [*range(288, 544)]]


@torch.no_grad()
@pytest.mark.parametrize("name", present("step3p7", "deepseek_ocr2"))
def test_numbers_of_tiles_in_a_list(name: str) -> None:
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs()
    with L2Norm(keep=0.5)(model) as run:
        expected = model(**inputs).logits
        reports = run.images
        listed = model(**inputs | {"num_local_patches": inputs["num_local_patches"].tolist()}).logits
        assert [each.grids for each in run.images] == [each.grids for each in reports]
    assert torch.equal(listed, expected)


def test_tiles_of_one_image_stand_close_together() -> None:
    spans = [(0, 4, 7), (0, 8, 11), (0, 13, 16), (1, 13, 16)]  # no token between them, one, another prompt
    ids = torch.zeros(2, 20, dtype=torch.long)
    assert adjacent(ids, spans) == [True, False, False]
    assert adjacent(ids, spans, gap=1) == [True, True, False]


def test_overview_comes_last() -> None:
    tile, overview, image = 70, 71, 90
    prompt = [5, tile, image, image, tile, image, image, overview, image, image, 6, overview, image, image, 7]
    ids = torch.tensor(
        [prompt, [5, *[image] * 2, *[3] * 12]]
    )  # two tiles and an overview, an overview; no introduction
    placeholders = ids == image
    spans = spans_of(placeholders, [2] * 5)
    assert spans == [(0, 2, 3), (0, 5, 6), (0, 8, 9), (0, 12, 13), (1, 1, 2)]
    assert overview_last(ids, spans) == [True, True, False, False]
    assert grouped(5, overview_last(ids, spans)) == [[0, 1, 2], [3], [4]]
    assert overview_last(ids[:, 1:], [(1, 0, 1)]) == []
    assert grouped(0, []) == []


def test_overview_comes_first() -> None:
    tile, overview, image = 70, 71, 90
    prompt = [5, overview, image, image, tile, image, image, tile, image, image, 6, overview, image, image, 7]
    ids = torch.tensor([prompt, [5, 8, overview, *[image] * 2, *[3] * 10]])
    spans = spans_of(ids == image, [2] * 5)
    assert overview_first(ids, spans) == [True, True, False, False]
    assert grouped(5, overview_first(ids, spans)) == [[0, 1, 2], [3], [4]]
    assert overview_first(ids, spans[:1]) == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(2, 200), (200, 2)])
def test_image_without_high_resolution_rows_or_columns(name: str, size: tuple[int, int]) -> None:
    family, pruner = FAMILIES[name], L2Norm(keep=0.4)
    model, inputs = family.model(), family.inputs(((size,),))
    with pruner(model) as run:
        model(**inputs)
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
    assert run.images[0].grids == ((4, 4),)
    with pytest.warns(DeprecationWarning, match="ImageReport.grids"):
        assert run.images[0].grid == run.images[0].grids
    assert torch.equal(run.images[0].kept, kept_rows(family, pruner, features, size))
    assert run.images[0].n_after == 6 + (run.images[0].n_before - 16)  # what is no base token is a newline row


@torch.no_grad()
def test_several_images_of_one_onevision_prompt() -> None:
    """They are not tiled: each is a base view and one newline row."""
    model = FAMILIES["llava_onevision"].model()
    pixels = torch.randn(2, 3, 1, 3, 16, 16)[:, 0]
    ids = torch.tensor([[5, *[90] * 17, 6, *[90] * 17, 7]])
    arguments = {"image_sizes": torch.tensor([[40, 40], [20, 40]]), "batch_num_images": torch.tensor([2])}
    with L2Norm(keep=0.5)(model) as run:
        output = model.generate(ids, pixel_values=pixels, **arguments, max_new_tokens=2, do_sample=False)
    assert output.shape[1] == ids.shape[1] + 2
    for report in run.images:
        assert (report.n_before, report.n_after, report.grids) == (17, 9, ((4, 4),))
        assert report.kept[-1] == 16


@pytest.mark.parametrize("rows", [[3], [20], [20, 22], [20, 25, 29], []])
def test_features_laid_out_otherwise_are_refused(rows: list[int]) -> None:
    model = FAMILIES["llava_next"].model()
    with pytest.raises(ValueError, match=r"30 visual tokens.*16 base tokens.*prefill_chunk_size"):
        TABLE["llava_next"].views(Item(model, torch.randn(30, 32), {}, (0, 0), marked=rows))


@pytest.mark.skipif("unlimited_ocr" not in FAMILIES, reason="this transformers has no Unlimited-OCR")
@pytest.mark.parametrize("rows", [[3, 7], [2, 5, 9], [28], [2, 7, 14, 21, 28], []])
def test_lines_and_a_square_laid_out_otherwise_are_refused(rows: list[int]) -> None:
    model = FAMILIES["unlimited_ocr"].model()
    with pytest.raises(ValueError, match=r"30 visual tokens.*then a square.*prefill_chunk_size"):
        TABLE["unlimited_ocr"].views(Item(model, torch.randn(30, 32), {}, (0, 0), marked=rows))


def test_grid_in_the_proportions_of_the_picture() -> None:
    for rows in range(1, 30):
        for columns in range(1, 30):
            assert scaled((rows, columns), rows * columns) == (rows, columns)
            assert scaled((28 * rows, 28 * columns), rows * columns) == (rows, columns)
    assert scaled((1, 1), 576) == (24, 24)
    assert scaled((1, 1), 577) is None  # a class token: no grid
    assert scaled((480, 640), 600) is None


@torch.no_grad()
@pytest.mark.parametrize("name", present("granite_docling"))
def test_tiles_of_the_fine_route_have_four_times_the_tokens(name: str) -> None:
    """Two prompts of an image of one tile, and of one that is cut into two and shown whole."""
    family = FAMILIES[name]
    model = family.model()
    for size, tiles in (((20, 20), 1), ((20, 40), 3)):
        inputs = family.inputs(((size,),))
        ids = inputs["input_ids"][0]
        ids = ids.repeat_interleave(torch.where(ids == IMAGE, 4, 1))[None]
        told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "tile_fine_mask": torch.tensor([True])}
        with L2Norm(keep=0.5)(model) as run:
            model(**{**inputs, **told})
        (report,) = run.images
        assert report.grids == ((6, 6),) * tiles
        assert [view.rows.tolist() for view in report.views] == [[*range(36 * i, 36 * i + 36)] for i in range(tiles)]
        assert report.n_after == 18 * tiles


def test_a_first_tile_begins_an_image() -> None:
    """Token 10 introduces first tiles: an image of one, one of two and its overview, one of one; then a prompt more."""
    ids = torch.tensor([[5, 10, 90, 10, 90, 11, 90, 12, 90, 10, 90], [0, 0, 0, 0, 0, 0, 0, 0, 5, 10, 90]])
    spans = spans_of(ids == IMAGE, [1] * 6)
    assert grouped(6, overview_first(ids, spans)) == [[0], [1, 2, 3], [4], [5]]


def test_frames_of_one_clip_may_differ_in_size() -> None:
    """A processor makes them alike; whoever makes the places of patches by hand need not."""
    places = torch.full((2, 16, 2), -1)
    places[0] = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1)
    places[1, :8] = torch.cartesian_prod(torch.arange(4), torch.arange(2)).flip(1)
    told = {"video_position_ids": places, "num_frames_per_video": torch.tensor(2)}
    views = placed_frames(Item(FAMILIES["gemma4"].model(), torch.zeros(6, 8), told, (0, 0)))
    assert [(view.rows.tolist(), view.grid) for view in views] == [([0, 1, 2, 3], (2, 2)), ([4, 5], (2, 1))]
