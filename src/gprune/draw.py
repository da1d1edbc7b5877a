"""Pictures: which patches were kept, and how the scores lie over the image (the paper's Fig. 6 and Fig. 5)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageOps

from .attach import ImageReport
from .families.table import FAMILIES

try:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("drawing needs matplotlib, which is not installed; pip install 'gprune[draw]'") from error

Titled = tuple[str, ImageReport]
Box = tuple[float, float, float, float]
_FADED = 0.85  # share of light grey in what was dropped
_STRIPES = 10, 2  # pixels from one stripe over what was dropped to the next, and its width: a page is light grey itself
_DROPPED = (150.0, 150.0, 150.0), (235.0, 235.0, 235.0)  # stripes, and the ground between them
_MERGED = (95.0, 130.0, 200.0), (222.0, 232.0, 247.0)
_HEAT = 0.65  # share of the heatmap's colour over the grey picture
_LONGEST = 480  # pixels of the longer side of a panel
_STEEPEST = 5.0  # sides of a panel in proportion to each other; a longer picture is drawn squeezed
_PANEL = 2.3  # inches: the side of a square panel
_WIDEST = 18.0  # inches: a row of panels


def draw(
    picture: Image.Image,
    kept: Sequence[Titled],
    scores: Sequence[Titled] = (),
    box: Box | None = None,
    tiles: Sequence[Image.Image] = (),
) -> Image.Image:
    """Draw reports of one picture side by side, each view of the picture in a row of its own.

    Args:
        picture: the picture as the processor got it, RGB.
        kept: title and report of every panel that greys out what was dropped. The picture stands beside them,
            ruled into the patches of the view.
        scores: title and report of every panel that shows the scores as a heatmap, bright where high. Its colours
            span the 2nd to the 98th percentile of the view's scores.
        box: (left, top, right, bottom) in pixels of what the views cover; the whole picture when None.
        tiles: the part of the picture that each view covers, where a model cuts it into tiles; those of other
            pictures may follow.

    Returns:
        An RGB picture.

    Raises:
        ValueError: nothing to draw, reports of different pictures, a view whose grid is unknown, a heatmap of a
            method without scores, or fewer tiles than views.
    """
    grids = checked_grids([report for _, report in (*kept, *scores)], [report for _, report in scores])
    views = len((*kept, *scores)[0][1].views)
    if tiles and len(tiles) < views:
        raise ValueError(f"there are {len(tiles)} tiles for {views} views; accepted is one for each; leave them out")
    if tiles:
        canvases = [on_canvas(tile, (0, 0, *tile.size)) for tile in tiles[:views]]
    else:
        canvases = [on_canvas(picture, box or (0, 0, *picture.size))] * views
    bands: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for i, grid in grids.items():
        canvas, area = canvases[i]
        panels = [("the picture", _ruled(canvas, grid, area))]
        for title, report in kept:
            mask = torch.isin(report.views[i].rows, report.kept).reshape(grid).numpy()
            where = "" if report.per_layer is None else " reach the LLM's last layer"
            panels.append((f"{title}\n{mask.sum()} of {mask.size}{where}", faded(canvas, mask, area)))
        bands += [(f"view of {grid[0]} x {grid[1]}", panels)] if kept else []
    for i, grid in grids.items():
        canvas, area = canvases[i]
        panels = []
        for title, report in scores:
            assert report.scores is not None
            panels.append((title, heated(canvas, report.scores[report.views[i].rows].reshape(grid).numpy(), area)))
        bands += [(f"view of {grid[0]} x {grid[1]}", panels)] if scores else []
    return put_together(bands, canvases[0][0].height / canvases[0][0].width)


def tiles_of(model: Any, inputs: Any) -> list[Image.Image]:
    """The tiles of all pictures of a prompt as the model's processor made them; none if the model does not tile.

    Args:
        model: of a family that can be pruned.
        inputs: with pixel_values, floating [..., 3, height, width] in any range of values.

    Raises:
        ValueError: the processor cut the tiles further, into flat patches.
    """
    if FAMILIES[model.config.model_type].joins is None:
        return []
    pixels = inputs["pixel_values"].float()
    if pixels.ndim < 4 or pixels.shape[-3] != 3:
        raise ValueError(
            f"the tiles of {model.config.model_type} come as flat patches, pixel values of shape "
            f"{tuple(pixels.shape)}, and cannot be drawn; accepted are [..., 3, height, width]; draw another model's"
        )
    low, high = pixels.amin((-3, -2, -1), keepdim=True), pixels.amax((-3, -2, -1), keepdim=True)
    scaled = 255 * (pixels - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return [
        Image.fromarray(tile.numpy()) for tile in scaled.flatten(0, -4).movedim(1, -1).round().to("cpu", torch.uint8)
    ]


def centre_crop(processor: Any, size: tuple[int, int]) -> Box | None:
    """What a processor that crops to the centre lets the model see of a picture of (width, height), else None."""
    images = processor.image_processor
    if not getattr(images, "do_center_crop", False) or hasattr(images, "image_grid_pinpoints"):
        return None
    width, height = size
    side = min(size)
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)


def checked_grids(reports: Sequence[ImageReport], scored: Sequence[ImageReport]) -> dict[int, tuple[int, int]]:
    """The grid of each view that has tokens, by its number."""
    if not reports:
        raise ValueError("there is nothing to draw; accepted is at least one report; pass one in `kept` or `scores`")
    views = reports[0].views
    if any(report.grids != reports[0].grids for report in reports):
        raise ValueError("the reports are of different pictures; accepted are reports of one; draw the others apart")
    if any(report.scores is None for report in scored):
        raise ValueError("this method gives no scores to draw; accepted are methods that score tokens, such as G-Prune")
    for view in views:
        if view.grid is None:
            raise ValueError(
                f"the layout of a view of {len(view)} tokens is unknown, so its patches have no place in the picture; "
                f"accepted are models whose vision tower makes a grid of patches"
            )
    return {i: view.grid for i, view in enumerate(views) if view.grid is not None and len(view)}


def on_canvas(picture: Image.Image, box: Box) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The picture at the size of a panel, and the whole pixels of it that `box` covers."""
    width, height = picture.size
    ratio = min(max(height / width, 1 / _STEEPEST), _STEEPEST)
    size = (_LONGEST, round(_LONGEST * ratio)) if ratio <= 1 else (round(_LONGEST / ratio), _LONGEST)
    left, right = (round(side * size[0] / width) for side in box[::2])
    top, bottom = (round(side * size[1] / height) for side in box[1::2])
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    area = (left, top, max(left + 1, right), max(top + 1, bottom))
    # Small pictures keep their pixels as squares, so that no smooth edge is drawn that the model never saw.
    smooth = Image.Resampling.NEAREST if max(picture.size) < _LONGEST / 4 else Image.Resampling.LANCZOS
    return picture.resize(size, smooth), area


def _placed(values: np.ndarray, size: tuple[int, int], area: tuple[int, int, int, int]) -> np.ndarray:
    """Spread a grid of numbers over its area of a picture of (width, height): float32 [height, width], NaN outside."""
    left, top, right, bottom = area
    canvas = np.full((size[1], size[0]), np.nan, dtype=np.float32)
    patches = Image.fromarray(values.astype(np.float32))
    canvas[top:bottom, left:right] = np.asarray(patches.resize((right - left, bottom - top), Image.Resampling.NEAREST))
    return canvas


def _blended(picture: np.ndarray, colour: np.ndarray | float, share: np.ndarray | float) -> Image.Image:
    return Image.fromarray(np.rint(picture * (1 - share) + colour * share).astype(np.uint8))


def faded(canvas: Image.Image, mask: np.ndarray, area: tuple[int, int, int, int], merged: bool = False) -> Image.Image:
    """The picture with all but the patches of bool [rows, columns] `mask` nearly gone, and striped.

    The stripes are grey and rise, or, where patches are `merged` into others, blue and fall.
    """
    kept = np.nan_to_num(_placed(mask, canvas.size, area))[..., None]
    down, across = np.indices(kept.shape[:2])
    striped = ((down - across if merged else down + across) % _STRIPES[0] < _STRIPES[1])[..., None]
    stripes, ground = _MERGED if merged else _DROPPED
    return _blended(np.asarray(canvas, dtype=np.float32), np.where(striped, stripes, ground), _FADED * (1 - kept))


def heated(canvas: Image.Image, values: np.ndarray, area: tuple[int, int, int, int]) -> Image.Image:
    """The picture in grey under the colours of the values [rows, columns]."""
    low, high = np.quantile(values, (0.02, 0.98))
    heat = _placed((values - low) / max(high - low, np.finfo(np.float32).tiny), canvas.size, area)
    colour = 255 * colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]
    grey = np.asarray(canvas.convert("L").convert("RGB"), dtype=np.float32)
    return _blended(grey, colour, _HEAT * np.isfinite(heat)[..., None])


def _ruled(canvas: Image.Image, grid: tuple[int, int], area: tuple[int, int, int, int]) -> Image.Image:
    """The picture under a thin raster of its patches."""
    lines = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(lines)
    left, top, right, bottom = area
    for x in np.linspace(left, right - 1, grid[1] + 1).round().tolist():
        pen.line((x, top, x, bottom - 1), fill=110)
    for y in np.linspace(top, bottom - 1, grid[0] + 1).round().tolist():
        pen.line((left, y, right - 1, y), fill=110)
    return Image.composite(Image.new("RGB", canvas.size, "white"), canvas, lines)


def put_together(bands: Sequence[tuple[str, list[tuple[str, Image.Image]]]], ratio: float) -> Image.Image:
    """Lay out titled panels of one size (height / width), a labelled row of them per band, or several of a long one."""
    width, height = _PANEL * ratio**-0.5, _PANEL * ratio**0.5
    most = max(2, int(_WIDEST / (width + 0.1)))
    bands = [(label, panels[start : start + most]) for label, panels in bands for start in range(0, len(panels), most)]
    columns = max(len(panels) for _, panels in bands)
    figure = Figure(figsize=((width + 0.1) * columns + 0.3, (height + 0.5) * len(bands)), layout="constrained", dpi=150)
    axes: Any = figure.subplots(len(bands), columns, squeeze=False)
    for row, (label, panels) in zip(axes, bands, strict=True):
        for axis in row:
            axis.set_axis_off()
        row[0].text(-0.04, 0.5, label, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=8)
        for axis, (title, pixels) in zip(row, panels, strict=False):
            axis.imshow(pixels)
            axis.set_title(
                "\n".join(textwrap.fill(line, max(14, round(12 * width))) for line in title.split("\n")), fontsize=8
            )
    painted = FigureCanvasAgg(figure)
    painted.draw()
    sheet = Image.fromarray(np.asarray(painted.buffer_rgba())).convert("RGB")
    inner = ImageChops.difference(sheet, Image.new("RGB", sheet.size, "white")).getbbox()
    return ImageOps.expand(sheet.crop(inner), 12, "white")
