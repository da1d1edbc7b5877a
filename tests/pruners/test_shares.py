"""`shares="global"`: the tiles of an image share what its grid keeps by how much they stand out in the base view."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from towered import features, known

from gprune import (
    EVS,
    PRUNERS,
    Chain,
    FastV,
    Foreground,
    GPrune,
    GraphCover,
    L2Norm,
    PruMerge,
    Pruner,
    ToMe,
    View,
    VisualTokens,
    cover,
    kept_count,
)
from gprune.errors import BadValue
from gprune.pruners.shares import apportion

Lines = tuple[int, ...]
TILES: tuple[Lines, Lines] = ((3, 4), (4, 4, 2))


def tiled(tiles: tuple[Lines, Lines] = TILES, side: int = 4, seed: int = 0, spread: float = 12.0) -> VisualTokens:
    """An image of side x side base tokens and a grid of these tiles, a fixed row after each of its lines."""
    height, width = map(sum, tiles)
    base = View(torch.arange(side**2), (side, side))
    grid = side**2 + torch.arange(height * (width + 1)).view(height, width + 1)[:, :-1].flatten()
    tokens = features(side**2 + height * (width + 1), seed=seed)
    image = known(tokens, seed, (base, View(grid, (height, width), tiles=tiles)))
    logits = spread * torch.randn(side**2, generator=torch.Generator().manual_seed(seed + 7))
    image.signals["attention"][: side**2] = logits.softmax(0)
    return image


def rows_of_tiles(image: VisualTokens) -> list[list[int]]:
    """The rows of each tile of the grid, cell by cell."""
    grid = image.views[1]
    assert grid.grid is not None and grid.tiles is not None
    found: dict[tuple[int, int], list[int]] = {}
    down, across = ([tile for tile, lines in enumerate(each) for _ in range(lines)] for each in grid.tiles)
    for place, row in enumerate(grid.rows.tolist()):
        line, column = divmod(place, grid.grid[1])
        found.setdefault((down[line], across[column]), []).append(row)
    return [found[tile] for tile in sorted(found)]


def paper(image: VisualTokens, k: int) -> list[int]:
    """The equations, a token of the base view at a time in float64, and k shared by largest remainder within bounds."""
    base, grid = image.views
    assert base.grid is not None and grid.tiles is not None
    attention = image.signals["attention"][base.rows].double().numpy().reshape(base.grid)
    logs = np.log(np.maximum(attention, np.finfo(np.float32).tiny))
    logs -= logs.mean()
    bounds = [np.cumsum([0, *lines]) / sum(lines) for lines in grid.tiles]
    s = []
    for top, bottom in zip(bounds[0], bounds[0][1:], strict=False):
        for left, right in zip(bounds[1], bounds[1][1:], strict=False):
            inside = 0.0
            for (line, column), value in np.ndenumerate(logs):
                high = min(bottom * base.grid[0], line + 1) - max(top * base.grid[0], line)
                wide = min(right * base.grid[1], column + 1) - max(left * base.grid[1], column)
                inside += value * max(high, 0) * max(wide, 0)
            s.append(inside)
    sigma = np.exp((np.array(s) - max(s)) / 10)
    ratio = 1 + sigma / sigma.sum() - 1 / len(s)
    sizes = np.array([len(rows) for rows in rows_of_tiles(image)])
    return shared(k, sizes * ratio, sizes)


def shared(k: int, weights: np.ndarray, sizes: np.ndarray) -> list[int]:
    """k in proportion to weights within 1 (0 where k is too small) and sizes: the scale by bisection."""
    least, low, high = int(k >= len(sizes)), 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * weights, least, sizes).sum() < k else (low, middle)
    ideal = np.clip(high * weights, least, sizes)
    counts = np.floor(ideal + 1e-9).astype(int)
    for i in np.argsort(counts - ideal, kind="stable")[: k - counts.sum()]:
        counts[i] += 1
    return counts.tolist()


def kept_of_tiles(image: VisualTokens, pruner: Pruner) -> list[int]:
    """How many tokens of each tile are kept."""
    kept = set(pruner.select(image).kept.tolist())
    return [len(kept.intersection(rows)) for rows in rows_of_tiles(image)]


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.6, 0.9, 1.0, 5, 40])
@pytest.mark.parametrize("tiles", [TILES, ((4, 4), (4, 4)), ((5,), (1, 5, 1)), ((2, 4, 4, 2), (4,))])
def test_equals_the_paper(keep, tiles):
    for seed in range(5):
        image = tiled(tiles, seed=seed)
        base, grid = kept_count([len(view) for view in image.views], keep)
        assert kept_of_tiles(image, L2Norm(keep, shares="global")) == paper(image, grid)
        kept = L2Norm(keep, shares="global").select(image).kept
        assert int((kept < 16).sum()) == base


def test_a_tile_that_stands_out_keeps_more_and_takes_it_from_the_others():
    image = tiled(((4, 4), (4, 4)))
    attention = torch.full((4, 4), 1e-20)
    attention[:2, 2:] = 0.2
    image.signals["attention"][:16] = attention.flatten()
    few, most = 1 - 1 / 4, 1 + 1 - 1 / 4
    assert kept_of_tiles(image, GraphCover(0.5, shares="global")) == [6, 14, 6, 6]
    assert [round(8 * ratio) for ratio in (few, most)] == [6, 14]
    assert kept_of_tiles(image, GraphCover(0.5)) != [6, 14, 6, 6]


def test_what_the_base_view_sees_evenly_is_shared_by_size_whatever_the_size():
    image = tiled(((2, 4, 4, 2), (4, 1)), spread=0.0)
    assert kept_of_tiles(image, L2Norm(0.5, shares="global")) == [4, 1, 8, 2, 8, 2, 4, 1]


lines = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
keeps = st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, 150))


@settings(max_examples=80, deadline=None)
@given(down=lines, across=lines, keep=keeps, seed=st.integers(0, 99), spread=st.sampled_from([0.0, 1.0, 30.0]))
def test_the_number_of_an_image_is_that_without_shares(down, across, keep, seed, spread):
    image = tiled((down, across), seed=seed, spread=spread)
    base, grid = kept_count([len(view) for view in image.views], keep)
    counts, sizes = kept_of_tiles(image, L2Norm(keep, shares="global")), [len(rows) for rows in rows_of_tiles(image)]
    assert sum(counts) == grid
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    assert min(counts) >= 1 or grid < len(sizes)
    assert len(L2Norm(keep, shares="global").select(image).kept) == base + grid + sum(down)


@given(st.data())
def test_shares_are_exact_within_bounds_and_follow_the_weights(data):
    most = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    weights = [data.draw(st.floats(0.01, 10)) for _ in most]
    total = data.draw(st.integers(0, sum(most)))
    shares = apportion(total, weights, most)
    assert sum(shares) == total and all(0 <= share <= bound for share, bound in zip(shares, most, strict=True))
    assert min(shares) >= 1 or total < len(most)
    for one in range(len(most)):
        for other in range(len(most)):
            if weights[one] >= weights[other] and shares[one] < most[one]:
                assert shares[one] >= shares[other] - 1


@pytest.mark.parametrize(
    "name", [name for name, kind in PRUNERS.items() if issubclass(kind, Pruner) and "scorer" not in kind.needs]
)
def test_every_method_ranks_tiles_as_views_of_their_own(name):
    kind = PRUNERS[name]
    if name in ("tome", "evovit", "foreground", "background") or "frames" in kind.needs:
        with pytest.raises(BadValue, match=r'shares="global" does not go with .*pass shares="own"'):
            kind(0.4, shares="global")
        return
    pruner, image = kind(0.4, shares="global"), tiled()
    kept = pruner.select(image).kept
    assert kept_of_tiles(image, pruner) == paper(image, kept_count(70, 0.4))
    batch = pruner.select(VisualTokens.cat([image, tiled(seed=3), image]))
    second = len(image.features) + pruner.select(tiled(seed=3)).kept
    third = 2 * len(image.features) + kept
    assert batch.kept.tolist() == [*kept.tolist(), *second.tolist(), *third.tolist()]


@pytest.mark.parametrize("name", ["gprune", "graphcover", "divprune", "visionzip"])
def test_a_tile_keeps_what_it_keeps_alone(name):
    image = tiled()
    kept = set(PRUNERS[name](0.4, shares="global").select(image).kept.tolist())
    for tile in image.per_tile().views[1:]:
        own = set(tile.rows.tolist())
        signals = {signal: values[tile.rows] for signal, values in image.signals.items()}
        alone = replace(VisualTokens.of(image.features[tile.rows], tile.grid), signals=signals)
        count = len(kept & own)
        assert set(tile.rows[PRUNERS[name](count).select(alone).kept].tolist()) == kept & own


def test_tokens_are_taken_apart_tile_by_tile():
    image = tiled()
    base, *tiles = image.per_tile().views
    assert base is image.views[0]
    assert [tile.grid for tile in tiles] == [(3, 4), (3, 4), (3, 2), (4, 4), (4, 4), (4, 2)]
    assert [tile.rows.tolist() for tile in tiles] == rows_of_tiles(image)
    assert torch.equal(image.per_tile().fixed, image.fixed)


def test_an_image_of_one_view_keeps_its_ratio():
    image = known(features(30))
    for pruner in (GPrune(0.3), GPrune(7)):
        assert torch.equal(replace(pruner, shares="global").select(image).kept, pruner.select(image).kept)
    batch = VisualTokens.cat([image, tiled()])
    assert len(GPrune(0.3, shares="global").select(batch).kept) == len(GPrune(0.3).select(batch).kept)


def test_what_is_kept_whole_is_kept_whole():
    assert GPrune(1.0, shares="global").select(tiled()).kept.tolist() == list(range(16 + 7 * 11))


def test_it_needs_the_attention_of_the_tower_and_only_then():
    assert GPrune(shares="global").needs == ("attention", "tiles") and GPrune().needs == GPrune.needs == ()
    assert PruMerge(shares="global").needs == ("attention", "keys", "tiles")
    with pytest.raises(BadValue, match="GPrune needs the attention of the vision tower"):
        GPrune(0.3, shares="global").select(features(9))


def test_views_that_do_not_say_which_part_they_show_are_refused():
    image = tiled()
    base, grid = image.views
    other = known(features(len(image.features)), views=(base, replace(grid, tiles=None)))
    with pytest.raises(BadValue, match=r"image 0, .* has 2 views, of which none says which tiles"):
        L2Norm(0.3, shares="global").select(other)
    for views in ((grid,), (replace(base, grid=None), grid)):
        with pytest.raises(BadValue, match=r'shares="global" goes by one that shows the whole picture'):
            L2Norm(0.3, shares="global").select(replace(image, views=views))


@pytest.mark.parametrize("tiles", [((3, 3), (4, 4, 2)), ((7,), (10, 0)), ((), (10,)), ((4, 3), (4, 4))])
def test_tiles_that_are_not_those_of_the_grid_are_refused(tiles):
    with pytest.raises(BadValue, match=r"do not make up a grid of \(7, 10\)"):
        View(torch.arange(70), (7, 10), tiles=tiles)
    with pytest.raises(BadValue, match="do not make up a grid of None"):
        View(torch.arange(70), tiles=TILES)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: GPrune(cover(0.9), shares="global"), "leaves nothing to share"),
        (lambda: PruMerge("own", shares="global"), "leaves nothing to share"),
        (lambda: GPrune(scope="image", shares="global"), "its tiles have no budgets"),
        (lambda: ToMe(shares="global"), "as much of every tile"),
        (lambda: EVS(scope="view", shares="global"), "it goes by whole pictures"),
        (lambda: Foreground(shares="global"), "it goes by whole pictures"),
        (lambda: GPrune(shares="all"), "shares='all' is unknown; accepted is 'own' or 'global'"),
    ],
)
def test_where_there_is_nothing_to_share_it_is_refused(make, reason):
    with pytest.raises(BadValue, match=reason):
        make()


def test_the_first_of_a_chain_may_share():
    chain = Chain(GPrune(0.5, shares="global"), FastV(0.4))
    assert math.isclose(chain.keep, 0.2) and chain.parts[0].needs == ("attention", "tiles")
