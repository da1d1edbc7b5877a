"""Pictures: which patches were kept, and how the scores lie over the image (the paper's Fig. 6 and Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gprune.attach import ImageReport
from gprune.tokens import View

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("drawing needs matplotlib, which is not installed; pip install 'gprune[draw]'") from error

Titled = tuple[str, ImageReport]
Box = tuple[float, float, float, float]
_GREY = np.array([235, 235, 235], dtype=np.float32)
_LONGEST = 480  # pixels that the longer side of a panel is drawn with, at least


def draw(
    picture: Image.Image, kept: Sequence[Titled], scores: Sequence[Titled] = (), box: Box | None = None
) -> Image.Image:
    """Draw reports of one picture side by side, each view of the picture in a row of its own.

    Args:
        picture: the picture as the processor got it.
        kept: title and report of every panel that greys out what was dropped.
        scores: title and report of every panel that shows the scores as a heatmap.
        box: (left, top, right, bottom) in pixels of what the views cover; the whole picture when None.

    Raises:
        ValueError: nothing to draw, a view whose grid is unknown, or a heatmap of a method without scores.
    """
    if not kept and not scores:
        raise ValueError("there is nothing to draw; accepted is at least one report; pass one in `kept` or `scores`")
    views = [view for view in (kept or scores)[0][1].views if len(view)]
    rows = [(view, kept, False) for view in views if kept] + [(view, scores, True) for view in views if scores]
    width = 1 + max(len(kept), len(scores))
    panel = 2.6
    height = panel * max(0.45, min(2.2, picture.height / picture.width))
    figure = Figure(figsize=(panel * width, (height + 0.45) * len(rows)), layout="constrained", dpi=110)
    axes: Any = figure.subplots(len(rows), width, squeeze=False)
    large = _enlarged(picture)
    zoom = large.width / picture.width
    area = tuple(side * zoom for side in (box or (0, 0, *picture.size)))
    for row, (view, panels, heat) in enumerate(rows):
        for axis in axes[row]:
            axis.set_axis_off()
        _label(axes[row][0], large, view, first=row == 0)
        for axis, (title, report) in zip(axes[row][1:], panels, strict=False):
            own = next(v for v in report.views if torch.equal(v.rows, view.rows))
            grid = _grid(own)
            if heat:
                _draw_scores(axis, large, report, own, grid, area)
                axis.set_title(title, fontsize=9)
            else:
                mask = torch.isin(own.rows, report.kept).reshape(grid)
                axis.imshow(_greyed(large, mask, area))
                axis.set_title(f"{title}\n{int(mask.sum())} of {mask.numel()}", fontsize=9)
    return _rendered(figure)


def centre_crop(processor: Any, size: tuple[int, int]) -> Box | None:
    """What a processor that crops to the centre lets the model see of a picture of (width, height), else None."""
    images = processor.image_processor
    if not getattr(images, "do_center_crop", False) or hasattr(images, "image_grid_pinpoints"):
        return None
    width, height = size
    side = min(size)
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)


def _grid(view: View) -> tuple[int, int]:
    if view.grid is None:
        raise ValueError(
            f"the layout of a view of {len(view)} tokens is unknown, so its patches have no place to be drawn"
        )
    return view.grid


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, round(_LONGEST / max(picture.size)))
    if factor == 1:
        small = picture.copy()
        small.thumbnail((2 * _LONGEST, 2 * _LONGEST))
        return small
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def _label(axis: Axes, picture: Image.Image, view: View, first: bool) -> None:
    rows, cols = _grid(view)
    if first:
        axis.imshow(picture)
        axis.set_title("picture", fontsize=9)
        axis.text(0.5, -0.06, f"view {rows} x {cols}", transform=axis.transAxes, ha="center", va="top", fontsize=9)
    else:
        axis.text(0.5, 0.5, f"view {rows} x {cols}", transform=axis.transAxes, ha="center", va="center", fontsize=9)


def _placed(values: np.ndarray, size: tuple[int, int], area: Sequence[float], outside: float) -> np.ndarray:
    """Spread a grid of values over its area of a picture of (width, height)."""
    left, top, right, bottom = (round(side) for side in area)
    canvas = np.full((size[1], size[0]), outside, dtype=np.float32)
    patch = Image.fromarray(values.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    canvas[top:bottom, left:right] = np.asarray(patch)
    return canvas


def _greyed(picture: Image.Image, mask: Tensor, area: Sequence[float]) -> np.ndarray:
    pixels = np.asarray(picture, dtype=np.float32)
    kept = _placed(mask.numpy(), picture.size, area, outside=0.0)[..., None]
    faded = 0.12 * pixels + 0.88 * _GREY
    return (kept * pixels + (1 - kept) * faded).astype(np.uint8)


def _draw_scores(
    axis: Axes,
    picture: Image.Image,
    report: ImageReport,
    view: View,
    grid: tuple[int, int],
    area: Sequence[float],
) -> None:
    if report.scores is None:
        raise ValueError("this method gives no scores to draw; accepted are methods that score tokens, such as G-Prune")
    values = report.scores[view.rows].reshape(grid).numpy()
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    axis.imshow(picture.convert("L"), cmap="gray")
    heat = _placed(values, picture.size, area, outside=np.nan)
    axis.imshow(heat, cmap="inferno", alpha=0.7, vmin=0, vmax=1)


def _rendered(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    picture = Image.open(buffer)
    picture.load()
    return picture.convert("RGB")
