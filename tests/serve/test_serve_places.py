"""Positions of the tokens that are left equal those that transformers gives them in the unpruned prompt."""

from __future__ import annotations

import math

import pytest
import torch
from families import FAMILIES, Size
from families.parts import IMAGE
from torch import Tensor

from gprune.serve.families import EXPERIMENTAL
from gprune.serve.places import COLUMNS, Placed, fill_in, prompt_positions, split_places, with_places

PROMPTS: tuple[tuple[Size, ...], ...] = (
    (),
    ((40, 40),),
    ((8, 100),),
    ((100, 8),),
    ((20, 40), (40, 20), (8, 8), (200, 170)),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_places_travel_exactly(dtype: torch.dtype) -> None:
    columns = 3001
    kept = torch.tensor([0, 1, 255, 256, 257, 3000, 3001, 300 * columns + 2999, 65535 * columns])
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).to(dtype).expand(int(kept.max()) + 1, 8)
    sent = with_places(features, kept, columns)
    assert (sent.shape, sent.dtype) == ((len(kept), 8 + COLUMNS), dtype)
    received, places = split_places(sent)
    assert torch.equal(received, features[kept])
    assert (places[:, 0] * columns + places[:, 1]).tolist() == kept.tolist()
    assert places[:, 1].max() < columns


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sizes", PROMPTS, ids=str)
@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_positions_are_those_of_the_unpruned_prompt(
    name: str, sizes: tuple[Size, ...], ratio: float, chunk: int
) -> None:
    """Prefilled in parts, from the first token on and from one in the middle, as after a hit in the cache."""
    family = FAMILIES[name]
    model = family.model()
    prompt = family.inputs([sizes])
    ids = prompt["input_ids"][0]
    unpruned = family.positions(model, prompt)[1:, 0]
    following = int(unpruned.max()) + 1
    keep, images, places = _cut(ids, [_grid(name, size) for size in sizes], ratio)
    visual = ids[keep] == IMAGE

    positions, lead = prompt_positions(len(keep), images)
    assert torch.equal(positions[:, ~visual], unpruned[:, keep][:, ~visual])
    assert lead == following - len(keep)
    for cached in (0, len(keep) // 2):
        filled = positions
        for start in range(cached, len(keep), chunk):
            seen = int(visual[:start].sum()), int(visual[: start + chunk].sum())
            filled = fill_in(filled, visual, start, [places[slice(*seen)]])
        assert torch.equal(filled[:, cached:], unpruned[:, keep][:, cached:])
        assert torch.equal(positions[1:, visual], positions[:1, visual].expand(2, -1))


def _grid(name: str, size: Size) -> Size:
    _, ((_, grid),) = FAMILIES[name].image_layout(size)
    assert grid is not None
    return grid


def _cut(ids: Tensor, grids: list[Size], ratio: float) -> tuple[Tensor, list[Placed], Tensor]:
    """Indices of the tokens that are left, the images among them, and the places of all visual tokens that are left."""
    generator = torch.Generator().manual_seed(1)
    keep, images, places = torch.ones(len(ids), dtype=torch.bool), [], [torch.empty(0, 2, dtype=torch.long)]
    first, index = 0, torch.nonzero(ids == IMAGE).flatten()
    for grid in grids:
        count = math.prod(grid)
        rows, index = index[:count], index[count:]
        left = torch.randperm(count, generator=generator)[: max(1, round(ratio * count))].sort().values
        keep[rows] = False
        first = int(keep[: rows[0]].sum())
        keep[rows[left]] = True
        images.append(Placed(first, len(left), grid))
        places.append(torch.stack([left // grid[1], left % grid[1]], dim=1))
    return keep.nonzero().flatten(), images, torch.cat(places)
