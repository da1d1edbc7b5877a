"""Scenes: the same from the same seed, never shared between splits, and drawn where they say."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from gprune.scenes.questions import caption_of, questions
from gprune.scenes.scene import BAR_CLASS, MAX_BAR, Scene, Split, Thing, make_scene, render, rng_of
from gprune.scenes.vocabulary import (
    BACKGROUNDS,
    CANVAS_WEIGHTS,
    CANVASES,
    CHARACTERS,
    COLORS,
    DIGITS,
    SHAPES,
    WORDS,
)

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_fixes_scene_and_pixels(split: Split) -> None:
    for index in range(12):
        first, second = make_scene(split, index), make_scene(split, index)
        assert first == second
        for one, other in zip(render(first), render(second), strict=True):
            assert one.tobytes() == other.tobytes()


def test_scenes_are_those_that_the_model_was_trained_on() -> None:
    """Whoever changes what a seed gives has to train the model in the package again."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for index in range(50):
            scene = make_scene(split, index)
            boxes = [tuple(round(float(side), 3) for side in item.box) for item in scene.items]
            asked = [question.question for question in questions(scene, rng_of(split, index, stream=2))]
            digest.update(repr((scene.size, boxes, caption_of(scene).answer, asked)).encode())
    assert digest.hexdigest() == "814c1bac5fac26e92431d411eff2101e9c6e4ba6feee143a6e6d27cc681f4051"


def test_splits_share_no_picture() -> None:
    pictures = [render(make_scene(split, index))[0].tobytes() for split in SPLITS for index in range(100)]
    assert len(set(pictures)) == len(pictures)


def test_an_index_gives_different_scenes_in_different_splits() -> None:
    for index in range(100):
        scenes = [make_scene(split, index) for split in SPLITS]
        assert len({(scene.size, scene.background, scene.items) for scene in scenes}) == 3


@pytest.mark.parametrize("size", CANVASES)
def test_items_lie_inside_the_picture_and_apart(size: tuple[int, int]) -> None:
    for index in range(40):
        scene = make_scene("train", index, size=size)
        assert scene.size == size and len(scene.items) >= 1
        for number, item in enumerate(scene.items):
            left, top, right, bottom = item.box
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            for other in scene.items[:number]:
                a, b, c, d = other.box
                assert right <= a or c <= left or bottom <= b or d <= top


def test_items_are_made_of_the_vocabulary() -> None:
    for index in range(300):
        scene = make_scene("train", index)
        assert scene.background in BACKGROUNDS and scene.size in CANVASES
        assert len(scene.of_kind("chart")) <= 1
        for item in scene.items:
            if item.kind == "shape":
                assert item.shape in SHAPES and item.color in COLORS
            elif item.kind == "text":
                assert item.text in WORDS or (set(item.text) <= set(DIGITS) and 2 <= len(item.text) <= 3)
                assert set(item.text) <= set(CHARACTERS)
            else:
                colors, heights = zip(*item.bars, strict=True)
                assert len(set(colors)) == len(colors) and set(colors) <= set(COLORS)
                assert len(set(heights)) == len(heights) and set(heights) <= set(range(1, MAX_BAR + 1))


@pytest.mark.parametrize("kind", ["text", "chart"])
def test_what_is_needed_is_there(kind: str) -> None:
    for size in CANVASES:
        assert all(make_scene("test", i, size=size, needs=kind).of_kind(kind) for i in range(20))  # type: ignore[arg-type]


def test_a_page_is_full_of_text() -> None:
    plain = [len(make_scene("train", i).of_kind("text")) for i in range(40)]
    pages = [len(make_scene("train", i, page=True).of_kind("text")) for i in range(40)]
    assert max(plain) == 1 and sum(pages) > 2 * sum(plain)


def test_canvases_are_drawn_as_often_as_their_weights_say() -> None:
    sizes = [make_scene("train", i).size for i in range(1500)]
    for size, weight in zip(CANVASES, CANVAS_WEIGHTS, strict=True):
        spread = (weight * (1 - weight) / len(sizes)) ** 0.5
        assert abs(sizes.count(size) / len(sizes) - weight) < 4 * spread


@pytest.mark.parametrize(
    ("center", "expected"),
    [((10, 10), "top left"), ((64, 64), "middle center"), ((120, 20), "top right"), ((60, 110), "bottom center")],
)
def test_place_is_where_the_middle_of_an_item_is(center: tuple[int, int], expected: str) -> None:
    x, y = center
    item = Thing("shape", (x - 5, y - 5, x + 5, y + 5), shape="star", color="red")
    assert Scene(("test", 0), (128, 128), "sky", (item,)).place(item) == expected


def test_items_are_in_reading_order() -> None:
    order = {"top": 0, "middle": 1, "bottom": 2}
    for index in range(200):
        scene = make_scene("train", index)
        keys = [(order[scene.place(item).split()[0]], item.center[0]) for item in scene.items]
        assert keys == sorted(keys)


def test_labels_name_what_is_drawn_there() -> None:
    """The middle of a shape has its class, its colour, and in the picture the colour itself."""
    colors = list(COLORS)
    for index in range(150):
        scene = make_scene("train", index)
        picture, labels = (np.asarray(image) for image in render(scene))
        for item in scene.of_kind("shape"):
            x, y = (round(side) for side in item.center)
            assert tuple(picture[y, x]) == COLORS[item.color]
            assert tuple(labels[y, x]) == (1 + SHAPES.index(item.shape), 1 + colors.index(item.color), 0)
        for item in scene.of_kind("text"):
            left, top, right, bottom = (round(side) for side in item.box)
            seen = labels[top:bottom, left:right, 2]
            columns = [set(column) - {0} for column in seen.T]
            read = [CHARACTERS[c.pop() - 1] for c in columns if len(c) == 1]
            assert "".join(a for a, b in zip(read, [None, *read], strict=False) if a != b) == _no_doubles(item.text)
        for item in scene.of_kind("chart"):
            left, top, right, bottom = (round(side) for side in item.box)
            bars = labels[top:bottom, left:right]
            assert set(np.unique(bars[..., 0])) == {0, BAR_CLASS}
            tall = {color: int((bars[..., 1] == 1 + colors.index(color)).any(1).sum()) for color, _ in item.bars}
            assert sorted(tall, key=tall.__getitem__) == [c for c, _ in sorted(item.bars, key=lambda bar: bar[1])]


def _no_doubles(text: str) -> str:
    return "".join(a for a, b in zip(text, " " + text, strict=False) if a != b)
