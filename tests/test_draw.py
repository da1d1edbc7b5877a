"""What was kept is drawn where it lies in the picture, every view of it, and nothing is drawn that is unknown."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import BLUE, RED, halves
from PIL import Image

import gprune.draw
from gprune.attach import ImageReport
from gprune.draw import centre_crop, draw, tiles_of
from gprune.tokens import View

COLOR = (10, 200, 90)


def report(
    kept: list[int], *grids: tuple[int, int] | None, size: int = 0, scores: torch.Tensor | None = None
) -> ImageReport:
    """Views in order, with one fixed row between them; a view of unknown grid has `size` tokens."""
    views, start = [], 0
    for grid in grids:
        count = size if grid is None else grid[0] * grid[1]
        views.append(View(torch.arange(start, start + count), grid))
        start += count + 1
    return ImageReport(torch.tensor(kept), tuple(views), scores, start, len(kept), None)


def panels(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> list[list[tuple[str, np.ndarray]]]:
    """The titles and pixels of the panels of `draw`, band by band."""
    seen: list[Any] = []
    sheet = gprune.draw.put_together

    def spy(bands: Any, ratio: float) -> Image.Image:
        seen.extend(bands)
        return sheet(bands, ratio)

    with monkeypatch.context() as patch:
        patch.setattr(gprune.draw, "put_together", spy)
        assert draw(*args, **kwargs).mode == "RGB"
    return [[(title, np.asarray(pixels)) for title, pixels in band] for _, band in seen]


def patch_centres(pixels: np.ndarray, grid: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """The colours in the middle of the patches of a grid over `box`, given as shares of the panel."""
    left, top, right, bottom = box
    xs = (left + (np.arange(grid[1]) + 0.5) / grid[1] * (right - left)) * pixels.shape[1]
    ys = (top + (np.arange(grid[0]) + 0.5) / grid[0] * (bottom - top)) * pixels.shape[0]
    return pixels[ys.astype(int)][:, xs.astype(int)]


@settings(max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    data=st.data(),
)
def test_only_the_kept_patches_keep_their_colour(grid: tuple[int, int], size: tuple[int, int], data: Any) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1])))
    canvas, area = gprune.draw.on_canvas(Image.new("RGB", size, COLOR), (0, 0, *size))
    pixels = np.asarray(gprune.draw.faded(canvas, mask.reshape(grid), area))
    centres = patch_centres(pixels, grid, (0, 0, 1, 1))
    np.testing.assert_array_equal((centres == COLOR).all(-1), mask.reshape(grid))
    assert (centres[~mask.reshape(grid)].min(initial=255)) > 120


def test_panels_of_two_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base view of 2 x 2, a fixed row, a grid of 3 x 4: two reports side by side, a band for each view."""
    first = report([0, 3, 4, 5, 16, 17], (2, 2), (3, 4))
    second = report([1, 4, 8], (2, 2), (3, 4))
    (base, grid) = panels(monkeypatch, Image.new("RGB", (80, 60), COLOR), [("a", first), ("b", second)])
    assert [title for title, _ in base] == ["the picture", "a\n2 of 4", "b\n1 of 4"]
    assert [title for title, _ in grid] == ["the picture", "a\n2 of 12", "b\n1 of 12"]
    whole = (0.0, 0.0, 1.0, 1.0)
    for (_, pixels), kept in zip(base[1:], ([[1, 0], [0, 1]], [[0, 1], [0, 0]]), strict=True):
        np.testing.assert_array_equal((patch_centres(pixels, (2, 2), whole) == COLOR).all(-1), np.array(kept, bool))
    for (_, pixels), kept in zip(grid[1:], ({0, 11}, {3}), strict=True):
        expected = np.isin(np.arange(12), list(kept)).reshape(3, 4)
        np.testing.assert_array_equal((patch_centres(pixels, (3, 4), whole) == COLOR).all(-1), expected)


def test_only_the_seen_part_of_a_cropped_picture_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=True))
    picture = Image.new("RGB", (200, 100), COLOR)
    box = centre_crop(processor, picture.size)
    assert box == (50, 0, 150, 100)
    [[_, (_, pixels)]] = panels(monkeypatch, picture, [("all", report([0, 1, 2, 3], (2, 2)))], box=box)
    colored = (pixels == COLOR).all(-1)
    quarter = pixels.shape[1] // 4
    assert colored[:, quarter : 3 * quarter].all()
    assert not colored[:, :quarter].any() and not colored[:, 3 * quarter :].any()


def test_an_uncropped_or_tiled_picture_is_seen_whole() -> None:
    whole = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False))
    tiled = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=True, image_grid_pinpoints=[[1, 2]]))
    assert centre_crop(whole, (30, 20)) is None
    assert centre_crop(tiled, (30, 20)) is None


def test_heatmap_is_bright_where_the_score_is_high(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.tensor([5.0, 1, 2, 3, 4, 6])
    grey = Image.new("RGB", (90, 60), (128,) * 3)
    [[(title, pixels)]] = panels(monkeypatch, grey, [], [("s", report([0], (2, 3), scores=scores))])
    assert title == "s"
    brightness = patch_centres(pixels, (2, 3), (0, 0, 1, 1)).astype(float).sum(-1).ravel()
    assert (brightness.argsort() == scores.numpy().argsort()).all()


def test_equal_scores_give_one_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = report([0], (2, 3), scores=torch.full((6,), 2.5))
    [[(_, pixels)]] = panels(monkeypatch, Image.new("RGB", (90, 60), (128,) * 3), [], [("s", flat)])
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1


def test_bands_of_kept_and_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = report([0, 5], (2, 2), (2, 3), scores=torch.arange(12.0))
    bands = panels(monkeypatch, halves(), [("k", scored)], [("s", scored), ("t", scored)])
    assert [[title.split("\n")[0] for title, _ in band] for band in bands] == [
        ["the picture", "k"],
        ["the picture", "k"],
        ["s", "t"],
        ["s", "t"],
    ]


def test_a_view_without_tokens_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(panels(monkeypatch, halves(), [("k", report([0], (2, 2), (0, 0)))])) == 1


def test_the_picture_stands_beside_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    [[(_, pixels), _]] = panels(monkeypatch, halves(), [("k", report([0], (2, 2)))])
    left, right = pixels[60, 60], pixels[60, -60]
    np.testing.assert_array_equal(left, RED)
    np.testing.assert_array_equal(right, BLUE)


@pytest.mark.parametrize("size", [(1, 1), (4000, 40), (40, 4000), (1, 900), (900, 1), (500, 500)])
def test_any_shape_gives_a_sheet_of_usable_size(size: tuple[int, int]) -> None:
    sheet = draw(Image.new("RGB", size, COLOR), [("a", report([0, 1], (2, 2))), ("b", report([2], (2, 2)))])
    assert sheet.mode == "RGB"
    assert 200 < sheet.width < 3000 and 100 < sheet.height < 3000
    share = (np.asarray(sheet) == COLOR).all(-1).mean()  # of 3 panels, 1 whole, 1 half, 1 quarter is coloured
    assert share > 0.2


def test_unknown_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="a view of 5 tokens is unknown"):
        draw(halves(), [("k", report([0], None, size=5))])


def test_method_without_scores_has_no_heatmap() -> None:
    with pytest.raises(ValueError, match="no scores to draw"):
        draw(halves(), [], [("s", report([0], (2, 2)))])


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(halves(), [])


def test_a_tiny_crop_at_the_edge_is_drawn() -> None:
    draw(Image.new("RGB", (10_000, 2), COLOR), [("a", report([0], (2, 2)))], box=(9_999, 0, 10_000, 2))


def test_reports_of_different_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="different pictures"):
        draw(halves(), [("a", report([0], (2, 2))), ("b", report([0], (2, 3)))])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gprune.draw")
    with pytest.raises(ImportError, match=r"pip install 'gprune\[draw\]'"):
        importlib.import_module("gprune.draw")


def test_drawing_leaves_pyplot_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyplot keeps figures alive and looks for a display."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw(halves(), [("k", report([0], (2, 2)))])
    assert "matplotlib.pyplot" not in sys.modules


def test_every_tile_is_drawn_with_what_was_kept_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    both = report([0, 1, 2, 3, 5], (2, 2), (2, 2))  # all of the first tile, the first patch of the second
    tiles = [Image.new("RGB", (16, 16), BLUE), Image.new("RGB", (16, 16), COLOR)]
    first, second = panels(monkeypatch, Image.new("RGB", (32, 16), RED), [("kept", both)], tiles=tiles)
    whole = (0.0, 0.0, 1.0, 1.0)
    assert (patch_centres(first[1][1], (2, 2), whole) == BLUE).all()
    shown = patch_centres(second[1][1], (2, 2), whole)
    assert (shown[0, 0] == COLOR).all() and (shown.reshape(4, 3)[1:] != COLOR).any(-1).all()
    with pytest.raises(ValueError, match="1 tiles for 2 views"):
        draw(Image.new("RGB", (32, 16)), [("kept", both)], tiles=tiles[:1])


def test_tiles_as_the_processor_made_them_become_pictures() -> None:
    pixels = torch.zeros(1, 2, 3, 4, 6)
    pixels[0, 0] = torch.linspace(-2, 3, 24).view(4, 6)  # normalised: any range
    ramp, flat = tiles_of(FAMILIES["idefics3"].model(), {"pixel_values": pixels})
    assert ramp.size == flat.size == (6, 4)
    assert np.abs(np.asarray(ramp)[..., 1] - np.linspace(0, 255, 24).reshape(4, 6)).max() <= 0.5
    assert not np.asarray(flat).any()
    assert tiles_of(FAMILIES["qwen2_vl"].model(), {}) == []
    with pytest.raises(ValueError, match=r"lfm2_vl.*\(2, 9, 48\)"):
        tiles_of(FAMILIES["lfm2_vl"].model(), {"pixel_values": torch.zeros(2, 9, 48)})


@pytest.mark.parametrize("color", ["white", (250, 250, 245), (205, 225, 250)])
def test_what_was_dropped_of_a_light_picture_can_be_told(color: Any) -> None:
    """A page or a sky is as light as the grey over what was dropped: stripes tell them apart."""
    canvas, area = gprune.draw.on_canvas(Image.new("RGB", (60, 60), color), (0, 0, 60, 60))
    pixels = np.asarray(gprune.draw.faded(canvas, np.array([[True, False]]), area)).astype(int)
    kept, dropped = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert not np.ptp(kept, axis=(0, 1)).any()
    for edge in range(0, dropped.shape[1] - 12, 12):  # within every patch-sized piece
        assert (np.abs(dropped[:12, edge : edge + 12] - kept[0, 0]).max(-1) > 60).any()


@pytest.mark.parametrize("size", [(100, 100), (192, 64), (64, 192), (500, 100)])
def test_many_panels_are_wrapped_into_rows(size: tuple[int, int]) -> None:
    few, many = (
        draw(Image.new("RGB", size, COLOR), [(str(i), report([0, 1, 2, 3], (2, 2))) for i in range(count)])
        for count in (1, 35)
    )
    assert many.width < 3000 and many.height > 2 * few.height
    colored = [(np.asarray(sheet) == COLOR).all(-1).sum() for sheet in (few, many)]
    assert 16 < colored[1] / colored[0] < 20  # 36 panels for 2, but for the raster of the first


def test_panels_say_what_acts_inside_the_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = replace(report([1], (2, 2)), per_layer=(4, 2, 1))
    [[_, (title, _)]] = panels(monkeypatch, halves(), [("fastv", inside)])
    assert title == "fastv\n1 of 4 reach the LLM's last layer"
