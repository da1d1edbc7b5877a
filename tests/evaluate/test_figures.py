"""Figures show the cells: every point where it was measured, told apart by colour and marker, nothing covered."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gprune.evaluate.figures as figures
from gprune.evaluate.cells import Cell, Key
from gprune.evaluate.figures import binned, curves, histogram, points, stacked


def cell(method: str, keep: float, seed: int | None = None, flops: float | None = 1e9, **scores: float) -> Cell:
    return Cell(Key("embedded", "scenes", method, keep, seed), scores, 7, 200.0, 200.0 * min(keep, 1), flops, 0.1)


CELLS = [
    cell("none", 1.0, flops=2e9, overall=0.9, text=1.0),
    cell("random", 0.5, 0, flops=1e9, overall=0.6, text=0.5),
    cell("random", 0.5, 1, flops=1e9, overall=0.8, text=0.5),
    cell("random", 0.1, 0, flops=5e8, overall=0.2, text=0.0),
    cell("random", 0.1, 1, flops=5e8, overall=0.3, text=0.1),
    cell("gprune", 0.1, flops=6e8, overall=0.4, text=0.2),
    cell("gprune", 0.5, flops=1.1e9, overall=0.7, text=0.9),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were painted."""
    seen: list[Any] = []
    paint = figures._painted
    monkeypatch.setattr(figures, "_painted", lambda figure: (seen.append(figure), paint(figure))[1])
    return seen


def curve(axis: Any, label: str) -> Any:
    [container] = [each for each in axis.containers if each.get_label() == label]
    return container


@pytest.mark.parametrize(
    ("across", "random_at", "gprune_at"), [("keep", [10, 50], [10, 50]), ("flops", [0.5, 1], [0.6, 1.1])]
)
def test_curves_go_through_the_cells(
    drawn: list[Any], across: str, random_at: list[float], gprune_at: list[float]
) -> None:
    picture = curves(CELLS, ["overall", "text"], across)
    assert picture.mode == "RGB" and 700 < picture.width < 1400
    overall, text = drawn[0].axes
    assert (overall.get_title(), text.get_title()) == ("overall", "text")
    line, _, bars = curve(overall, "random")
    np.testing.assert_allclose(line.get_xydata().astype(float), np.c_[random_at, [25, 70]])
    spread = [100 * statistics.stdev(each) for each in ((0.2, 0.3), (0.6, 0.8))]
    np.testing.assert_allclose([(s[1, 1] - s[0, 1]) / 2 for s in bars[0].get_segments()], spread)
    np.testing.assert_allclose(curve(overall, "gprune")[0].get_xydata().astype(float), np.c_[gprune_at, [40, 70]])
    assert list(curve(text, "gprune")[0].get_ydata()) == pytest.approx([20, 90])
    [dashed] = [each for each in text.lines if each.get_label() == "unpruned"]
    assert set(dashed.get_ydata()) == {100} and dashed.get_linestyle() == "--"
    assert ("FLOPs" in overall.get_xlabel()) == (across == "flops") and "%" in overall.get_ylabel()


def test_many_methods_differ_in_colour_and_in_marker(drawn: list[Any]) -> None:
    methods = ["random", "tome", "fastv", "gprune", "l2norm", "uniform", "divprune"]
    curves([cell(method, 0.5, overall=0.5) for method in methods], ["overall"], "keep")
    lines = [curve(drawn[0].axes[0], method)[0] for method in methods]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == len(methods)


def test_gprune_looks_the_same_in_every_figure(drawn: list[Any]) -> None:
    for methods in (["random", "gprune"], ["gprune", "tome", "fastv"]):
        curves([cell(method, 0.5, overall=0.5) for method in methods], ["overall"], "keep")
    first, second = (curve(figure.axes[0], "gprune")[0] for figure in drawn)
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())


@pytest.mark.parametrize("columns", [["overall"], ["overall", "text"], ["overall", "text", "chart"]])
def test_the_legend_covers_nothing(drawn: list[Any], columns: list[str]) -> None:
    cells = [Cell(c.key, {**c.scores, "chart": 0.5}, c.n, 200.0, 100.0, c.flops, 0.1) for c in CELLS]
    curves(cells, columns, "keep")
    [figure] = drawn
    [legend] = figure.legends
    box = legend.get_window_extent()
    for axis in figure.axes:
        if axis.axison:
            assert not box.overlaps(axis.get_tightbbox())
    assert {text.get_text() for text in legend.get_texts()} == {"random", "gprune", "unpruned"}
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


def test_scores_that_are_no_shares_are_not_percent(drawn: list[Any]) -> None:
    curves([cell("none", 1.0, mme=1600.0), cell("gprune", 0.5, mme=0.5)], ["mme"], "keep")
    [axis] = drawn[0].axes
    assert axis.get_ylabel() == "score" and curve(axis, "gprune")[0].get_ydata() == [0.5]


def test_a_number_of_tokens_stands_at_its_share() -> None:
    few = Cell(Key("m", "gqa", "gprune", 50), {"exact": 0.4}, 7, 200.0, 50.0, None, 0.1)
    half = Cell(Key("m", "gqa", "gprune", 0.5), {"exact": 0.6}, 7, 200.0, 104.0, None, 0.1)
    assert [point.keep for point in points([half, few], "gqa")["gprune"]] == [25, 50]


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="none of chart was measured"):
        curves(CELLS, ["chart"], "keep")
    with pytest.raises(ValueError, match="FLOPs of some cells were not counted"):
        curves([*CELLS, cell("tome", 0.5, flops=None, overall=0.5)], ["overall"], "flops")


def test_histogram_shares_are_of_each_set() -> None:
    norms = {"all": np.array([0, 1, 2, 3, 9.0], np.float32), "some": np.array([9.5, 10], np.float32)}
    shares, edges = binned(norms, 10)
    assert edges == pytest.approx(list(range(11)))
    assert shares["all"] == pytest.approx([20, 20, 20, 20, 0, 0, 0, 0, 0, 20])
    assert shares["some"] == pytest.approx([0] * 9 + [100])


def test_histogram_draws_every_set(drawn: list[Any]) -> None:
    shares = {"whole image": [10.0, 90.0], "foreground": [0.0, 100.0], "background": [50.0, 50.0]}
    histogram(shares, [0.0, 1.0, 2.0])
    [axis] = drawn[0].axes
    assert [list(patch.get_data().values) for patch in axis.patches] == list(shares.values())
    assert len({patch.get_edgecolor() for patch in axis.patches}) == 3
    assert len({patch.get_linestyle() for patch in axis.patches}) == 3


def test_an_empty_set_has_no_share() -> None:
    shares, _ = binned({"all": np.array([1, 2], np.float32), "none": np.array([], np.float32)}, 2)
    assert shares["none"] == [0, 0]


def test_pictures_below_one_another() -> None:
    red, blue = Image.new("RGB", (30, 10), "red"), Image.new("RGB", (20, 40), "blue")
    sheet = stacked([red, blue])
    assert sheet.size == (30, 50)
    assert sheet.getpixel((0, 9)) == (255, 0, 0) and sheet.getpixel((0, 10)) == (0, 0, 255)
    assert sheet.getpixel((29, 9)) == (255, 0, 0) and sheet.getpixel((19, 49)) == (0, 0, 255)
    assert sheet.getpixel((25, 30)) == (255, 255, 255)
    assert stacked([Image.new("RGB", (4000, 100))]).size == (1200, 30)
