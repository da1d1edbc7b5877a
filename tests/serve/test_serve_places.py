"""Positions of the tokens that are left equal those that transformers gives them in the unpruned prompt."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, Size
from families.base import Layout
from families.parts import IMAGE
from torch import Tensor

from gprune.serve.families import EXPERIMENTAL, ONE_AXIS_MODELS
from gprune.serve.places import PLACE_DIGITS, Shrunk, pruned_positions, split_places, unpruned_prompt, with_places

PROMPTS: tuple[tuple[Size, ...], ...] = (
    (),
    ((40, 40),),
    ((8, 100),),
    ((100, 8),),
    ((20, 40), (40, 20), (8, 8), (200, 170)),
)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_places_travel_exactly(dtype: torch.dtype, axes: int) -> None:
    places = torch.tensor([0, 1, 255, 256, 257, 3000, 65535])[:, None] - torch.arange(axes)
    places = places.clamp(min=0)
    features = torch.randn(len(places), 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    sent = with_places(features, places)
    assert (sent.shape, sent.dtype) == ((len(places), 8 + PLACE_DIGITS * axes), dtype)
    received, found = split_places(sent[2:], axes)
    assert torch.equal(received, features[2:])
    assert torch.equal(found, places[2:])


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sizes", PROMPTS, ids=str)
@pytest.mark.parametrize("name", [*ONE_AXIS_MODELS, *EXPERIMENTAL])
def test_positions_are_those_of_the_unpruned_prompt(name: str, sizes: tuple[Size, ...], ratio: float) -> None:
    """Those of text before any image is encoded, those of visual tokens with their places."""
    family = FAMILIES[name]
    prompt = family.inputs([sizes])
    ids = prompt["input_ids"][0]
    unpruned = family.positions(family.model(), prompt)[-3:].reshape(-1, len(ids))
    keep, images, places = _cut(ids, [family.image_layout(size) for size in sizes], ratio, len(unpruned))

    assert unpruned_prompt(ids[keep].tolist(), images) == ids.tolist()
    positions = pruned_positions(unpruned, images)
    visual = ids[keep] == IMAGE
    assert torch.equal(positions[:, ~visual], unpruned[:, keep][:, ~visual])
    positions[:, visual] += places
    assert torch.equal(positions, unpruned[:, keep])


def _cut(ids: Tensor, layouts: list[Layout], ratio: float, axes: int) -> tuple[Tensor, list[Shrunk], Tensor]:
    """Indices of the tokens that are left, the images among them, and places int64 [axes, n] of visual tokens."""
    generator = torch.Generator().manual_seed(1)
    keep, images, places = torch.ones(len(ids), dtype=torch.bool), [], [torch.empty(axes, 0, dtype=torch.long)]
    index = torch.nonzero(ids == IMAGE).flatten()
    for count, views in layouts:
        rows, index = index[:count], index[count:]
        left = torch.randperm(count, generator=generator)[: max(1, round(ratio * count))].sort().values
        keep[rows] = False
        first = int(keep[: rows[0]].sum())
        keep[rows[left]] = True
        images.append(Shrunk(first, len(left), count))
        columns = views[0][1][1] if axes == 3 and views[0][1] else 1
        places.append(left[None] if axes == 1 else torch.stack([0 * left, left // columns, left % columns]))
    return keep.nonzero().flatten(), images, torch.cat(places, dim=1)
