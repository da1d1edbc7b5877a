"""G-Prune's scores on a CUDA device, for views of different sizes at once, as Triton kernels.

Cosines are products of the features as they are, accumulated in float32 and divided by float32 norms: half-precision
features lose nothing to rounded directions, and float32 features are multiplied as three TF32 products, which are as
accurate as float32. Weights stay float32: with the 8 or 11 bits of a half precision, tokens would change places.

Every sum has one owner and a fixed order: equal features give equal bits, whatever other views are in the launch.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import BadValue
from .ragged import owners_and_places, upload

TILE = 128
"""Rows and columns of a block of the product."""

ROWS, COLUMNS = 16, 512
"""Rows and columns of a block of what is only read once: few rows, so that a single view still fills the device."""

ROW_MULTIPLE = tl.constexpr(16)
"""A row of stored weights takes a multiple of so many places, so that it is read 16 bytes at a time."""

SHORTEST = tl.constexpr(1e-19)
"""Norm below which the product of two inverse norms may leave float32."""

NO_EDGE = tl.constexpr(-1.0)
"""What stands for the weight where there is no edge. It is not 0: exp can give that on an edge."""


@torch.library.custom_op("gprune::representativeness", mutates_args=())
def representativeness(
    features: Tensor,
    sizes: Sequence[int],
    similarity: float,
    iterations: int,
    temperature: float,
    init: str,
    max_memory: int = 2**30,
) -> tuple[Tensor, Tensor]:
    """Scores S(t) / D (Eq. 5) and degrees D (Eq. 4), as `gprune.graph.representativeness` gives them, of ragged views.

    A token whose norm is below 1e-19 counts as a zero token.

    Args:
        features: floating [T, d], finite, T = sum(sizes): views one after the other, which exchange nothing.
        sizes: tokens of each view, >= 0.
        similarity, iterations, temperature, init: see `gprune.graph.representativeness`.
        max_memory: bytes of weights stored at a time. Views are taken together as far as theirs fit; those of a view
            that does not fit alone are computed anew in every iteration, in memory proportional to its tokens.

    Returns:
        Scores, float32 [T], and degrees, int64 [T].

    Raises:
        BadValue: `sizes` does not add up to T.
    """
    if sum(sizes) != features.shape[0]:
        raise BadValue(
            f"sizes={list(sizes)} adds up to {sum(sizes)} tokens but features has {features.shape[0]} rows; "
            f"give the size of every view"
        )
    if features.dtype not in (torch.float16, torch.bfloat16):
        features = features.float()
    features = features.contiguous()
    count, width = features.shape
    norms, inverse, totals, spare = features.new_empty((4, count), dtype=torch.float32)
    degrees = features.new_empty(count, dtype=torch.int64)
    states = norms, spare  # S: a step reads one and writes the other
    if count:
        with torch.cuda.device_of(features):
            _norms[(triton.cdiv(count, ROWS),)](features, norms, inverse, count, width, ROWS=ROWS, WIDTH=COLUMNS)
            if init == "ones":
                norms.fill_(1)
            graph = features, inverse, width, similarity, temperature
            for views in _together(sizes, max_memory):
                gather = _prepare(graph, sizes, views, max_memory)
                gather(totals, degrees, *states, FIRST=True)
                for step in range(iterations):
                    gather(totals, degrees, states[step % 2], states[(step + 1) % 2], FIRST=False)
    return states[iterations % 2] / degrees, degrees


@representativeness.register_fake
def _(features: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    count = features.shape[0]
    return features.new_empty(count, dtype=torch.float32), features.new_empty(count, dtype=torch.int64)


def _prepare(
    graph: tuple[Tensor, Tensor, int, float, float], sizes: Sequence[int], views: Sequence[int], max_memory: int
) -> Callable[..., object]:
    """The launch of `_gather` over some views: over weights stored here, if they fit, or over none."""
    features = graph[0]
    # 128 bytes of each of 128 + 128 tokens, three stages deep, is 96 KiB of shared memory.
    shape = {"WIDTH": 128 // features.element_size(), "num_warps": 8, "num_stages": 3}
    places = sum(_places(sizes[view]) for view in views)
    if 4 * places > max_memory:
        blocks = upload(_blocks(sizes, views, TILE), features.device)
        shape |= {"ROWS": TILE, "COLUMNS": TILE, "STORED": False}
        return partial(_gather[(len(blocks),)], blocks, None, *graph, **shape)
    weights = features.new_empty(places, dtype=torch.float32)
    tiles = upload(_tiles(sizes, views), features.device)
    _store[(len(tiles),)](tiles, weights, *graph, TILE=TILE, **shape)
    blocks = upload(_blocks(sizes, views, ROWS), features.device)
    shape |= {"ROWS": ROWS, "COLUMNS": COLUMNS, "STORED": True}
    return partial(_gather[(len(blocks),)], blocks, weights, *graph, **shape)


def _together(sizes: Sequence[int], max_memory: int) -> Iterator[list[int]]:
    """Views that have tokens, in order, as many at a time as have weights that fit; at least one."""
    views: list[int] = []
    free = max_memory
    for view, size in enumerate(sizes):
        need = 4 * _places(size)
        if views and need > free:
            yield views
            views, free = [], max_memory
        if size:
            views.append(view)
            free -= need
    if views:
        yield views


def _places(size: int) -> int:
    """Places that the stored weights of a view take."""
    return size * triton.cdiv(size, ROW_MULTIPLE.value) * ROW_MULTIPLE.value


def _blocks(sizes: Sequence[int], views: Sequence[int], rows: int) -> Tensor:
    """Blocks of rows of some views: int64 [n, 4], first token and size of the view, its first weight, its first row."""
    length = torch.tensor(sizes)
    size, begin = length[views], (length.cumsum(0) - length)[views]
    places = torch.tensor([_places(sizes[view]) for view in views])
    count = (size + rows - 1) // rows
    view, block = owners_and_places(count, int(count.sum()))
    return torch.stack([begin[view], size[view], (places.cumsum(0) - places)[view], block * rows], 1)


def _tiles(sizes: Sequence[int], views: Sequence[int]) -> Tensor:
    """Blocks of pairs on and right of the diagonal: int64 [n, 5], a row of `_blocks` and the first column."""
    blocks = _blocks(sizes, views, TILE)
    reach = (blocks[:, 1] - blocks[:, 3] + TILE - 1) // TILE
    row, step = owners_and_places(reach, int(reach.sum()))
    return torch.cat([blocks[row], blocks[row, 3:] + step[:, None] * TILE], 1)


@triton.jit
def _norms(
    features: tl.tensor,
    norms: tl.tensor,
    inverse: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """L2 norms (Eq. 2) of a block of tokens, and their inverses; NaN for a token that points nowhere."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros((ROWS,), tl.float32)
    for first in range(0, width, WIDTH):
        places = first + tl.arange(0, WIDTH)
        inside = (rows < count)[:, None] & (places < width)[None, :]
        values = tl.load(features + rows[:, None] * width + places[None, :], inside, 0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    norm = tl.sqrt_rn(squares)
    tl.store(norms + rows, norm, rows < count)
    tl.store(inverse + rows, tl.where(norm < SHORTEST, float("nan"), tl.div_rn(1.0, norm)), rows < count)


@triton.jit
def _weights(
    features: tl.tensor,
    inverse: tl.tensor,
    width: tl.tensor,
    similarity: tl.tensor,
    temperature: tl.tensor,
    begin: tl.tensor,
    size: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Weights of a block of pairs of a view (Eq. 1), or `NO_EDGE`; what lies outside the view points nowhere."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row_inside, column_inside = row + rows < size, column + columns < size
    left = features + (begin + row) * width + rows[:, None] * width
    right = features + (begin + column) * width + columns[None, :] * width
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, WIDTH):
        places = first + tl.arange(0, WIDTH)
        a = tl.load(left + places[None, :], row_inside[:, None] & (places < width)[None, :], 0)
        b = tl.load(right + places[:, None], column_inside[None, :] & (places < width)[:, None], 0)
        product = tl.dot(a, b, product, input_precision="tf32x3")
    scale = tl.load(inverse + begin + row + rows, row_inside, float("nan"))[:, None]
    scale *= tl.load(inverse + begin + column + columns, column_inside, float("nan"))[None, :]
    cosine = product * scale  # NaN where a token points nowhere, and NaN >= similarity is false at every threshold
    weights = tl.exp((tl.minimum(cosine, 1.0) - 1.0) / temperature)
    own = (row + rows)[:, None] == (column + columns)[None, :]
    return tl.where(own, 1.0, tl.where(cosine >= similarity, weights, NO_EDGE))


@triton.jit
def _store(
    tiles: tl.tensor,
    weights: tl.tensor,
    features: tl.tensor,
    inverse: tl.tensor,
    width: tl.tensor,
    similarity: tl.tensor,
    temperature: tl.tensor,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Store the weights of a tile and those of its mirror image: every pair of tokens is compared once."""
    tile = tiles + tl.program_id(0) * 5
    begin, size = tl.load(tile), tl.load(tile + 1).to(tl.int32)
    row, column = tl.multiple_of(tl.load(tile + 3), TILE), tl.multiple_of(tl.load(tile + 4), TILE)
    found = _weights(features, inverse, width, similarity, temperature, begin, size, row, column, TILE, TILE, WIDTH)
    view = weights + tl.multiple_of(tl.load(tile + 2), ROW_MULTIPLE)
    pitch = tl.cdiv(size, ROW_MULTIPLE) * ROW_MULTIPLE
    rows, columns = tl.arange(0, TILE), tl.arange(0, TILE)
    inside = (row + rows < size)[:, None] & (column + columns < pitch)[None, :]
    tl.store(view + row * pitch + column + rows[:, None] * pitch + columns[None, :], found, inside)
    if row != column:  # left of another tile, all rows of this one lie in the view
        mirrored = view + column * pitch + row + columns[None, :] * pitch + rows[:, None]
        tl.store(mirrored, found, (column + columns < size)[None, :])


@triton.jit
def _gather(
    blocks: tl.tensor,
    weights: tl.tensor,
    features: tl.tensor,
    inverse: tl.tensor,
    width: tl.tensor,
    similarity: tl.tensor,
    temperature: tl.tensor,
    totals: tl.tensor,
    degrees: tl.tensor,
    source: tl.tensor,
    target: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    STORED: tl.constexpr,
    FIRST: tl.constexpr,
) -> None:
    """A step S <- (S / row sums) E (Eq. 3) for a block of rows; E is symmetric, so a row of it serves as a column.

    `FIRST`: the row sums and the degrees (Eq. 4) instead.
    """
    block = blocks + tl.program_id(0) * 4
    begin, size, row = tl.load(block), tl.load(block + 1).to(tl.int32), tl.load(block + 3)
    rows = tl.arange(0, ROWS)
    inside = row + rows < size
    received = tl.zeros((ROWS,), tl.float32)
    edges = tl.zeros((ROWS,), tl.int32)
    if STORED:
        pitch = tl.cdiv(size, ROW_MULTIPLE) * ROW_MULTIPLE
        view = weights + tl.multiple_of(tl.load(block + 2), ROW_MULTIPLE) + row * pitch
    for column in range(0, size, COLUMNS):
        columns = column + tl.arange(0, COLUMNS)
        if STORED:
            within = inside[:, None] & (columns < pitch)[None, :]
            found = tl.load(view + rows[:, None] * pitch + columns[None, :], within, NO_EDGE)
        else:
            found = _weights(
                features, inverse, width, similarity, temperature, begin, size, row, column, ROWS, COLUMNS, WIDTH
            )
        if FIRST:
            received += tl.sum(tl.maximum(found, 0.0), 1)
            edges += tl.sum((found >= 0).to(tl.int32), 1)
        else:
            share = tl.load(source + begin + columns, columns < size, 0)
            share /= tl.load(totals + begin + columns, columns < size, 1)
            received += tl.sum(tl.maximum(found, 0.0) * share[None, :], 1)
    if FIRST:
        tl.store(totals + begin + row + rows, received, inside)
        tl.store(degrees + begin + row + rows, edges, inside)
    else:
        tl.store(target + begin + row + rows, received, inside)
