"""The pictures of the page: what is greyed out, and which patch a click hits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from gprune.app.panels import Patch, Sheet, sheets
from gprune.attach import ImageReport
from gprune.tokens import View

COLOR = (200, 40, 90)


def report(kept: list[int], *grids: tuple[int, int] | None, sizes: tuple[int, ...] = ()) -> ImageReport:
    """A report of views one after the other."""
    lengths = sizes or tuple(rows * columns for rows, columns in (grid for grid in grids if grid))
    starts = itertools.accumulate(lengths, initial=0)
    views = tuple(View(torch.arange(s, s + n), grid) for s, n, grid in zip(starts, lengths, grids, strict=False))
    count = sum(lengths)
    return ImageReport(torch.tensor(kept), views, torch.arange(count).float(), count, len(kept), None)


def plain(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, COLOR)


def clean(sheet: Sheet, drawn: Image.Image) -> dict[int, set[int]]:
    """Of each view, the patches that have the picture's colour in all pixels, found by asking for every pixel."""
    pixels = (np.asarray(drawn) == COLOR).all(-1)
    found: dict[int, set[int]] = {}
    touched: dict[int, set[int]] = {}
    for y, x in np.ndindex(*pixels.shape):
        patch = sheet.locate(x, y)
        if patch is not None:
            found.setdefault(patch.view, set()).add(patch.index)
            if not pixels[y, x]:
                touched.setdefault(patch.view, set()).add(patch.index)
    return {view: patches - touched.get(view, set()) for view, patches in found.items()}


@pytest.mark.parametrize("size", [(64, 64), (30, 97), (500, 200), (2000, 10)])
def test_a_click_hits_the_patch_that_is_seen(size: tuple[int, int]) -> None:
    """Every pixel belongs to the patch whose state it shows."""
    seen = report([0, 5, 6, 11, 14, 20], (3, 4), (2, 7))
    for sheet, view, kept in zip(
        sheets(plain(size), seen, None, ()), (0, 1), ({0, 5, 6, 11}, {14 - 12, 20 - 12}), strict=True
    ):
        assert clean(sheet, sheet.kept(seen).picture) == {view: kept}


def test_tiles_share_a_picture() -> None:
    seen = report([0, 4, 9, 15], (2, 2), (2, 2), (2, 2), (2, 2))
    [sheet] = sheets(plain((300, 300)), seen, None, [plain((60, 60))] * 4)
    assert clean(sheet, sheet.kept(seen).picture) == {0: {0}, 1: {0}, 2: {1}, 3: {3}}


def test_what_the_model_does_not_see_is_no_patch() -> None:
    seen = report([0, 1, 2, 3], (2, 2))
    [sheet] = sheets(plain((400, 200)), seen, (100, 0, 300, 200), ())
    [canvas] = [canvas for canvas, _ in sheet.canvases.values()]
    assert sheet.kept(seen).picture.size == canvas.size  # no strip of words above it
    assert sheet.locate(canvas.width * 0.25 - 1, 5) is None and sheet.locate(2, 2) is None
    assert sheet.locate(canvas.width * 0.25 + 1, 5) == Patch(0, 0, 0, 0)
    assert sheet.locate(canvas.width * 0.75 - 1, canvas.height - 1) == Patch(0, 1, 1, 3)
    assert sheet.locate(canvas.width * 0.75 + 1, 5) is None and sheet.locate(1e9, -1e9) is None


def test_names() -> None:
    two = sheets(plain((40, 40)), report([0], (1, 2), (2, 3)), None, ())
    assert [sheet.name(i) for i, sheet in enumerate(two)] == ["base view, 1 x 2", "high-resolution grid, 2 x 3"]
    [one] = sheets(plain((40, 40)), report([0], (1, 2)), None, ())
    assert one.name(0) == "view 1, 1 x 2"


def test_captions_say_what_is_kept() -> None:
    seen = report([0, 4, 9, 10, 11], (2, 2), (2, 2), (2, 2))
    [sheet] = sheets(plain((300, 300)), seen, None, [plain((60, 60))] * 3)
    assert sheet.kept(seen).caption == "3 views, row by row: 1 of 4, 1 of 4, 3 of 4"
    base, grid = sheets(plain((40, 40)), report([0, 3], (1, 2), (2, 3)), None, ())
    assert base.kept(report([0, 3], (1, 2), (2, 3))).caption == "base view, 1 x 2: 1 of 2"
    assert grid.heat(report([], (1, 2), (2, 3))).caption == "high-resolution grid, 2 x 3"


def test_merged_patches_look_other_than_dropped_ones() -> None:
    """Blue, not grey; what is kept looks the same."""
    seen = report([1], (1, 2))
    [sheet] = sheets(plain((80, 40)), seen, None, ())
    dropped, merged = (np.asarray(sheet.kept(seen, flag).picture).astype(int) for flag in (False, True))
    half = dropped.shape[1] // 2
    assert (dropped[:, half:] == merged[:, half:]).all()
    blueness = [(drawn[:, :half, 2] - drawn[:, :half, 0]).min() for drawn in (merged, dropped)]
    assert blueness[0] > 0 > blueness[1]


def test_neighbours_and_frames() -> None:
    seen = report([], (2, 5))
    [sheet] = sheets(plain((500, 200)), seen, None, ())
    near = np.zeros(10, dtype=bool)
    near[[2, 3, 9]] = True
    pixels = np.asarray(sheet.around(Patch(0, 0, 2, 2), near, [9]).picture).astype(int)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 5
    middle = pixels[height // 2 :: height, width // 2 :: width]
    assert ((middle == COLOR).all(-1).ravel() == near).all()
    assert tuple(pixels[height // 2, 2 * width]) == (230, 0, 60)
    assert tuple(pixels[height + height // 2, 4 * width]) == (255, 150, 0)


def test_heat_is_brightest_where_the_score_is_highest() -> None:
    seen = report([], (1, 8))
    [sheet] = sheets(plain((480, 60)), seen, None, ())
    heat = np.asarray(sheet.heat(seen).picture).astype(int).sum(-1)[-5]
    assert (np.diff(heat[30::60]) > 0).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="layout of a view of 4 tokens is unknown"):
        sheets(plain((9, 9)), report([0], None, sizes=(4,)), None, ())
    with pytest.raises(ValueError, match="1 tiles for 2 views"):
        sheets(plain((9, 9)), report([0], (1, 2), (1, 2)), None, [plain((9, 9))])
