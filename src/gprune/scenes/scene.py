"""A scene: what is in a picture and where, drawn from a seed, and its rendering with a label for every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .vocabulary import (
    BACKGROUNDS,
    CANVAS_WEIGHTS,
    CANVASES,
    CHARACTERS,
    COLORS,
    DIGITS,
    SHAPES,
    WORDS,
)

Split = Literal["train", "validation", "test"]
Kind = Literal["shape", "text", "chart"]
Rectangle = tuple[float, float, float, float]
_SPLITS: dict[str, int] = {"train": 0, "validation": 1, "test": 2}
_FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")
_CELL = 44  # pixels a shape needs
_WIDE = 60  # pixels that a word or a chart needs
MAX_BAR = 5  # height of the tallest possible bar, in units
BAR_CLASS = len(SHAPES) + 1  # label of a bar's pixels in the shape channel


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. `box` is (left, top, right, bottom) in pixels; which other fields count is up to `kind`."""

    kind: Kind
    box: Rectangle
    shape: str = ""
    color: str = ""
    text: str = ""
    bars: tuple[tuple[str, int], ...] = ()

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of its middle, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """The content of one picture, in reading order. `seed` = (split, index) fixes every pixel of it."""

    seed: tuple[Split, int]
    size: tuple[int, int]
    background: str
    items: tuple[Thing, ...]

    def of_kind(self, kind: Kind) -> tuple[Thing, ...]:
        """Its things of one kind, in their order."""
        return tuple(item for item in self.items if item.kind == kind)

    def place(self, item: Thing) -> str:
        """Where an item is, as two words: 'top left', 'middle center', 'bottom right', ..."""
        x, y = item.center
        across = ("left", "center", "right")[_third(x / self.size[0])]
        down = ("top", "middle", "bottom")[_third(y / self.size[1])]
        return f"{down} {across}"


def _third(share: float) -> int:
    return 0 if share < 0.36 else 2 if share > 0.64 else 1


def rng_of(split: Split, index: int, stream: int = 0) -> Generator:
    """The random generator of one scene: splits can never meet, since the split is part of the seed."""
    return np.random.default_rng([_SPLITS[split], index, stream])


def make_scene(
    split: Split,
    index: int,
    *,
    size: tuple[int, int] | None = None,
    needs: Kind | None = None,
    page: bool = False,
) -> Scene:
    """Draw the scene of (split, index).

    Args:
        split: "train", "validation" or "test"; the three never share a seed.
        index: any non-negative integer.
        size: (width, height) in pixels; drawn when None.
        needs: a kind of item that must be present, for a question about it.
        page: text wherever it fits, which teaches reading sooner.
    """
    rng = rng_of(split, index)
    canvas = CANVASES[rng.choice(len(CANVASES), p=CANVAS_WEIGHTS)] if size is None else size
    grid = _Cells(canvas)
    background = str(rng.choice(BACKGROUNDS))
    items: list[Thing] = []
    wanted = {"text": needs == "text" or rng.random() < 0.7, "chart": needs == "chart" or rng.random() < 0.35}
    for kind in sorted(wanted, key=lambda k: k != needs):  # what is needed is placed first, while there is room
        box = grid.take(rng, wide=True, tall=kind == "chart") if wanted[kind] else None
        if box is not None:
            items.append(_make_chart(rng, box) if kind == "chart" else _make_text(rng, box))
    while page and (box := grid.take(rng, wide=True)) is not None:
        items.append(_make_text(rng, box))
    for _ in range(int(rng.integers(1, 6))):
        if (box := grid.take(rng)) is not None:
            items.append(_make_shape(rng, box))
    items.sort(key=lambda item: (_third(item.center[1] / canvas[1]), item.center[0]))
    return Scene((split, index), canvas, background, tuple(items))


class _Cells:
    """A coarse grid over the canvas in which every item gets cells of its own."""

    def __init__(self, canvas: tuple[int, int]) -> None:
        self.cols, self.rows = (max(1, round(side / _CELL)) for side in canvas)
        self.width, self.height = canvas[0] / self.cols, canvas[1] / self.rows
        self.used = np.zeros((self.rows, self.cols), dtype=bool)

    def take(self, rng: Generator, wide: bool = False, tall: bool = False) -> Rectangle | None:
        across = 2 if wide and self.width < _WIDE else 1
        down = 2 if tall and self.height < _WIDE else 1
        spots = [
            (r, c)
            for r in range(self.rows - down + 1)
            for c in range(self.cols - across + 1)
            if not self.used[r : r + down, c : c + across].any()
        ]
        if not spots:
            return None
        r, c = spots[rng.integers(len(spots))]
        self.used[r : r + down, c : c + across] = True
        return (c * self.width, r * self.height, (c + across) * self.width, (r + down) * self.height)


def _make_shape(rng: Generator, cell: Rectangle) -> Thing:
    left, top, right, bottom = cell
    radius = rng.integers(11, 17)
    x = (left + right) / 2 + rng.integers(-3, 4)
    y = (top + bottom) / 2 + rng.integers(-3, 4)
    box = (x - radius, y - radius, x + radius, y + radius)
    return Thing("shape", box, shape=str(rng.choice(SHAPES)), color=str(rng.choice(list(COLORS))))


def _make_text(rng: Generator, cell: Rectangle) -> Thing:
    narrow = cell[2] - cell[0] < 70
    words = [w for w in WORDS if len(w) == 3] if narrow else WORDS
    number = "".join(rng.choice(list(DIGITS), size=int(rng.integers(2, 4))))
    return Thing("text", cell, text=str(rng.choice(words)) if rng.random() < 0.5 else number)


def _make_chart(rng: Generator, cell: Rectangle) -> Thing:
    count = int(rng.integers(2, 4))
    colors = rng.choice(list(COLORS), size=count, replace=False)
    heights = rng.choice(np.arange(1, MAX_BAR + 1), size=count, replace=False)
    return Thing("chart", cell, bars=tuple((str(c), int(h)) for c, h in zip(colors, heights, strict=True)))


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = files("gprune.scenes") / "fonts" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def render(scene: Scene) -> tuple[Image.Image, Image.Image]:
    """Draw a scene.

    Returns:
        The RGB picture, and a picture of the same size whose channels label each pixel: shape (0 none, 1.. `SHAPES`,
        `BAR_CLASS` a bar), colour (0 none, 1.. `COLORS`), character (0 none, 1.. `CHARACTERS`).
    """
    rng = rng_of(*scene.seed, stream=1)
    picture = _background(scene.background, scene.size, rng)
    labels = Image.new("RGB", scene.size)
    draw, label = ImageDraw.Draw(picture), ImageDraw.Draw(labels)
    for item in scene.items:
        if item.kind == "shape":
            _draw_shape(draw, item, COLORS[item.color], outline=(30, 30, 30))
            _draw_shape(label, item, (1 + SHAPES.index(item.shape), _color_class(item.color), 0))
        elif item.kind == "text":
            _draw_text(draw, label, item, scene.background, rng)
        else:
            _draw_chart(draw, label, item)
    return picture, labels


def foreground(labels: Image.Image) -> NDArray[np.bool_]:
    """Which pixels of a picture are a shape, a bar or text, from its labels: bool [height, width]."""
    return np.asarray(labels).max(-1) > 0


def _color_class(color: str) -> int:
    return 1 + list(COLORS).index(color)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    item: Thing,
    fill: tuple[int, int, int],
    outline: tuple[int, int, int] | None = None,
) -> None:
    left, top, right, bottom = item.box
    (x, y), radius = item.center, (right - left) / 2
    if item.shape == "circle":
        draw.ellipse(item.box, fill=fill, outline=outline)
    elif item.shape == "square":
        draw.rectangle(item.box, fill=fill, outline=outline)
    elif item.shape == "triangle":
        draw.polygon([(x, top), (left, bottom), (right, bottom)], fill=fill, outline=outline)
    else:
        angles = [k * math.pi / 5 for k in range(10)]
        reach = [radius if k % 2 == 0 else radius * 0.45 for k in range(10)]
        points = [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]
        draw.polygon(points, fill=fill, outline=outline)


def _draw_text(
    draw: ImageDraw.ImageDraw, label: ImageDraw.ImageDraw, item: Thing, background: str, rng: Generator
) -> None:
    left, top, right, bottom = item.box
    name = str(rng.choice(_FONTS))
    size = int(rng.integers(28, 34))
    while _font(name, size).getlength(item.text) > right - left - 4:
        size -= 1
    font = _font(name, size)
    width = font.getlength(item.text)
    x = (left + right - width) / 2 + rng.uniform(-1, 1) * max(0.0, min(4.0, (right - left - width) / 2 - 2))
    y = (top + bottom) / 2 + rng.integers(-3, 4)
    ink = "black" if background in ("sky", "sand") else "white"
    for character in item.text:
        advance = font.getlength(character)
        draw.text((x, y), character, fill=COLORS[ink], font=font, anchor="lm")
        box = (x, y - size * 0.4, x + advance - 1, y + size * 0.4)
        label.rectangle(box, fill=(0, 0, 1 + CHARACTERS.index(character)))
        x += advance


def _draw_chart(draw: ImageDraw.ImageDraw, label: ImageDraw.ImageDraw, item: Thing) -> None:
    left, top, right, bottom = (item.box[0] + 3, item.box[1] + 3, item.box[2] - 3, item.box[3] - 3)
    draw.rectangle((left, top, right, bottom), fill=(228, 228, 222), outline=(90, 90, 90))
    unit = (bottom - top - 6) / MAX_BAR
    slot = (right - left - 4) / len(item.bars)
    for level in range(1, MAX_BAR + 1):
        y = bottom - 2 - level * unit
        draw.line((left + 1, y, right - 1, y), fill=(185, 185, 180))
    for i, (color, height) in enumerate(item.bars):
        x = left + 2 + i * slot
        box = (x + slot * 0.12, bottom - 2 - height * unit, x + slot * 0.88, bottom - 2)
        draw.rectangle(box, fill=COLORS[color], outline=(30, 30, 30))
        label.rectangle(box, fill=(BAR_CLASS, _color_class(color), 0))


def _background(kind: str, size: tuple[int, int], rng: Generator) -> Image.Image:
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "sky":
        down = (y / height)[..., None]
        pixels = np.array([110, 165, 230]) + down * np.array([80, 50, 15]) + rng.normal(0, 2, (height, width, 1))
    elif kind == "grass":
        pixels = np.array([80, 130, 60]) + rng.normal(0, 15, (height, width, 1))
    elif kind == "sand":
        pixels = np.array([218, 198, 150]) + rng.normal(0, 8, (height, width, 1))
    elif kind == "brick":
        row = y // 12
        mortar = (y % 12 < 1) | ((x + 12 * (row % 2)) % 24 < 1)
        pixels = np.where(mortar[..., None], 185.0, np.array([150, 80, 65]) + rng.normal(0, 5, (height, width, 1)))
    else:
        grain = 14 * np.sin(x / 2.5 + 3 * np.sin(y / 23 + rng.uniform(0, 6)))
        pixels = np.array([120, 80, 45]) + grain[..., None] + rng.normal(0, 3, (height, width, 1))
    pixels = pixels + rng.uniform(-10, 10)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
