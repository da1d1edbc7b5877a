"""Views read back from packed features, against the closed form of the image's size."""

from __future__ import annotations

import random

import pytest
import torch
from families import FAMILIES
from reference import kept_rows

from gprune.attach.layouts import LAYOUTS
from gprune.attach.views import Item
from gprune.pruners import L2Norm


def test_every_family_of_the_matrix_has_a_layout_and_the_other_way_round() -> None:
    assert set(LAYOUTS) >= set(FAMILIES)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_views_of_random_sizes(name: str, dtype: torch.dtype) -> None:
    family, generator = FAMILIES[name], random.Random(0)
    model = family.model()
    sizes = [(generator.randint(1, 300), generator.randint(1, 300)) for _ in range(20)]
    sizes += [(2, 200), (200, 2), (1, 1), (4000, 40), (16, 16)]
    newline = getattr(model.model, "image_newline", None)
    for size in sizes:
        count, views = family.layout(size)
        features = torch.randn(count, 32).to(dtype)
        if newline is not None:
            features[family.tokens(features, size).fixed] = newline.to(dtype)
        found = LAYOUTS[name].views(Item(model, features, {}, (0, 0)))
        assert [(view.rows.tolist(), view.grid) for view in found] == views, size


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(2, 200), (200, 2)])
def test_image_without_high_resolution_rows_or_columns(name: str, size: tuple[int, int]) -> None:
    family, pruner = FAMILIES[name], L2Norm(keep=0.4)
    model, inputs = family.model(), family.inputs(((size,),))
    with pruner(model) as run:
        model(**inputs)
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
    assert run.images[0].grid == ((4, 4),)
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
        assert (report.n_before, report.n_after, report.grid) == (17, 9, ((4, 4),))
        assert report.kept[-1] == 16


@pytest.mark.parametrize("rows", [[3], [20], [20, 22], [20, 25, 29], []])
def test_features_laid_out_otherwise_are_refused(rows: list[int]) -> None:
    model = FAMILIES["llava_next"].model()
    features = torch.randn(30, 32)
    features[rows] = model.model.image_newline.detach()
    with pytest.raises(ValueError, match=r"30 visual tokens.*16 base tokens.*prefill_chunk_size"):
        LAYOUTS["llava_next"].views(Item(model, features, {}, (0, 0)))
