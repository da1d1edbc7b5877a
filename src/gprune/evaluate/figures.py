"""Figures of measured cells and of norms, and pictures below one another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cells import BASELINE, Cell
from .tables import scale, scores_of

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("figures need matplotlib, which is not installed; pip install 'gprune[draw]'") from error

_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by people of every kind of colour vision (Okabe and Ito)."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STROKES = ("-", "--", ":")
_DPI = 150
_KEY, _CHARACTER = 0.55, 0.075  # inches of an entry of the legend: what stands before its text, and each character
_WIDEST = 1200  # pixels of pictures below one another


@dataclass(frozen=True)
class Point:
    """What a method reached at one ratio on one panel.

    Args:
        keep: share of the visual tokens, in percent.
        gflops: per document up to the first new token; None where not counted.
        values: the score, of every seed.
    """

    keep: float
    gflops: float | None
    values: tuple[float, ...]


def points(cells: Sequence[Cell], column: str) -> dict[str, list[Point]]:
    """The points of every method in a column of the table, from the smallest ratio up; the unpruned model is one.

    A budget in tokens stands where the share is that it comes to.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if column in scores_of(cell):
            groups.setdefault((cell.key.method, str(cell.key.keep)), []).append(cell)
    found: dict[str, list[Point]] = {}
    for (method, _), group in groups.items():
        keep, flops = group[0].key.keep, group[0].flops
        point = Point(
            100 * (keep if isinstance(keep, float) else group[0].kept_tokens / group[0].visual_tokens),
            None if flops is None else flops / 1e9,
            tuple(scores_of(cell)[column] for cell in group),
        )
        found.setdefault(method, []).append(point)
    return {method: sorted(each, key=lambda point: point.keep) for method, each in found.items()}


def curves(cells: Sequence[Cell], columns: Sequence[str], across: str) -> Image.Image:
    """Score over ratio or FLOPs, a panel per column and a curve per method; the unpruned model is a dashed line.

    Args:
        cells: of one model and limit.
        columns: as in the table; those without a cell are left out.
        across: "keep" or "flops".

    Raises:
        ValueError: no column was measured, or no FLOPs were counted.
    """
    panels = {column: found for column in columns if (found := points(cells, column))}
    if not panels:
        raise ValueError(f"none of {', '.join(columns)} was measured; there is nothing to draw; raise the limit")
    if across == "flops" and any(
        p.gflops is None for found in panels.values() for each in found.values() for p in each
    ):
        raise ValueError('FLOPs of some cells were not counted; draw over keep instead: across = "keep"')
    methods = list(dict.fromkeys(method for found in panels.values() for method in found if method != BASELINE))
    # The same colour for G-Prune in every figure, wherever it stands.
    methods.sort(key=lambda method: method.split(":")[0] != "gprune")
    across_columns = min(len(panels), 2)
    rows = -(-len(panels) // across_columns)
    figure = Figure(figsize=(3.7 * across_columns, 2.9 * rows + 0.4), layout="constrained", dpi=_DPI)
    axes = figure.subplots(rows, across_columns, squeeze=False).ravel()
    for axis, (column, found) in zip(axes, panels.items(), strict=False):
        _panel(axis, column, found, methods, across)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    fitting = int(figure.get_figwidth() / (_KEY + _CHARACTER * max(map(len, labels))))
    legend_columns = max(1, min(len(labels), fitting, 5))
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9)
    return _painted(figure)


def histogram(shares: Mapping[str, Sequence[float]], edges: Sequence[float]) -> Image.Image:
    """The distribution of L2 norms of several sets of tokens, each in percent of its own tokens.

    Args:
        shares, edges: see `binned`.
    """
    figure = Figure(figsize=(6.2, 3.4), layout="constrained", dpi=_DPI)
    axis: Any = figure.subplots()
    for i, (name, values) in enumerate(shares.items()):
        color = _COLORS[(len(_COLORS) - 1 + i) % len(_COLORS)]
        axis.stairs(values, edges, label=name, color=color, linewidth=1.8, linestyle=_STROKES[i % len(_STROKES)])
    axis.set_xlabel("L2 norm of a visual token")
    axis.set_ylabel("tokens of the set (%)")
    axis.set_ylim(bottom=0)
    _plain(axis)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return _painted(figure)


def binned(norms: Mapping[str, NDArray[np.float32]], bins: int = 50) -> tuple[dict[str, list[float]], list[float]]:
    """The percent of each set, float [n] by its name, in every bin, and the bins' edges, one more than those.

    The bins are equally wide and span all sets. An empty set has 0 in all of them.
    """
    every = np.concatenate(list(norms.values()))
    edges = np.linspace(every.min(), every.max(), bins + 1)
    shares = {
        name: (100 * np.histogram(values, edges)[0] / max(1, len(values))).tolist() for name, values in norms.items()
    }
    return shares, edges.tolist()


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below one another on white, flush left, shrunk to what a page of documentation can show."""
    sheet = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), "white")
    top = 0
    for each in pictures:
        sheet.paste(each, (0, top))
        top += each.height
    sheet.thumbnail((_WIDEST, sheet.height), Image.Resampling.LANCZOS)
    return sheet


def _panel(axis: Any, column: str, found: Mapping[str, Sequence[Point]], methods: Sequence[str], across: str) -> None:
    factor = scale(value for each in found.values() for point in each for value in point.values)
    for i, method in enumerate(methods):
        each = found.get(method, ())
        axis.errorbar(
            [point.gflops if across == "flops" else point.keep for point in each],
            [factor * statistics.fmean(point.values) for point in each],
            _spread(each, factor),
            label=method,
            color=_COLORS[i % len(_COLORS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5.5,
            linewidth=1.6,
            capsize=3,
            zorder=3 + len(methods) - i,
        )
    for point in found.get(BASELINE, ()):
        axis.axhline(factor * point.values[0], color="#555555", linestyle="--", linewidth=1.2, label="unpruned")
        if across == "flops":
            axis.plot([point.gflops], [factor * point.values[0]], color="#555555", marker="*", markersize=10)
    if factor == 100:
        axis.set_ylim(-3, 103)
    if across == "keep":
        axis.set_xticks(sorted({point.keep for method in methods for point in found.get(method, ())}))
    axis.set_title(column, fontsize=10)
    axis.set_xlabel("visual tokens kept (%)" if across == "keep" else "GFLOPs up to the first new token")
    axis.set_ylabel("score (%)" if factor == 100 else "score")
    _plain(axis)


def _spread(each: Sequence[Point], factor: float) -> list[float] | None:
    """Standard deviations over the seeds; None for a method without."""
    if all(len(point.values) == 1 for point in each):
        return None
    return [factor * statistics.stdev(point.values) if len(point.values) > 1 else 0 for point in each]


def _plain(axis: Any) -> None:
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _painted(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
