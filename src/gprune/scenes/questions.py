"""Questions with one right answer, and the caption, of a scene."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from .scene import Item, Scene
from .vocabulary import CATEGORIES, COLORS, SHAPES


@dataclass(frozen=True)
class Question:
    """One question about a picture, its category (one of `CATEGORIES`, or "caption") and its only right answer."""

    category: str
    question: str
    answer: str


CAPTION_PROMPT = "describe the picture."


def caption(scene: Scene) -> Question:
    """The whole scene in words: background, then each thing in reading order as place, kind and looks."""
    parts = [scene.background, *(f"{scene.place(item)} {_describe(item)}" for item in scene.items)]
    return Question("caption", CAPTION_PROMPT, ", ".join(parts))


def _describe(item: Item) -> str:
    if item.kind == "shape":
        return f"{item.color} {item.shape}"
    if item.kind == "text":
        return f"text {item.text.lower()}"
    return "chart " + " ".join(f"{color} {height}" for color, height in item.bars)


def questions(scene: Scene, rng: Generator) -> list[Question]:
    """Every kind of question that the scene has one right answer to, several of some kinds, in random order."""
    asked = [Question("background", "what is the background?", scene.background)]
    shapes = scene.of_kind("shape")
    kinds = [item.shape for item in shapes]
    colors = [item.color for item in shapes]
    for item in shapes:
        if kinds.count(item.shape) == 1:
            asked.append(Question("attribute", f"what color is the {item.shape}?", item.color))
            asked.append(Question("position", f"where is the {item.shape}?", scene.place(item)))
        if colors.count(item.color) == 1:
            asked.append(Question("attribute", f"what shape is {item.color}?", item.shape))
    asked.append(Question("counting", "how many shapes are there?", str(len(shapes))))
    counted = set(rng.choice(SHAPES, size=2, replace=False)) | set(kinds[:1])
    asked += [Question("counting", f"how many {kind}s are there?", str(kinds.count(kind))) for kind in sorted(counted)]
    asked += _presence(shapes, rng)
    texts = scene.of_kind("text")
    for item in texts if len(texts) == 1 else ():
        asked.append(Question("text", "what text is written?", item.text.lower()))
        asked.append(Question("position", "where is the text?", scene.place(item)))
    for item in scene.of_kind("chart"):
        ranked = sorted(item.bars, key=lambda bar: bar[1])
        asked.append(Question("chart", "which bar is tallest?", ranked[-1][0]))
        asked.append(Question("chart", "which bar is shortest?", ranked[0][0]))
        asked.append(Question("position", "where is the chart?", scene.place(item)))
    order = rng.permutation(len(asked))
    return [asked[i] for i in order]


def _presence(shapes: tuple[Item, ...], rng: Generator) -> list[Question]:
    """As many questions answered yes as no, about a shape alone and about a coloured shape."""
    if not shapes:
        return []
    asked = []
    kinds = sorted({item.shape for item in shapes})
    absent = [shape for shape in SHAPES if shape not in kinds]
    if absent:
        asked.append(Question("presence", f"is there a {rng.choice(kinds)}?", "yes"))
        asked.append(Question("presence", f"is there a {rng.choice(absent)}?", "no"))
    pairs = sorted({(item.color, item.shape) for item in shapes})
    others = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in pairs]
    for answer, options in (("yes", pairs), ("no", others)):
        color, shape = options[rng.integers(len(options))]
        asked.append(Question("presence", f"is there a {color} {shape}?", answer))
    return asked


def question_of(scene: Scene, category: str, rng: Generator) -> Question | None:
    """One question of the given category, or None when the scene gives none."""
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; choose one of {', '.join(CATEGORIES)}")
    options = [q for q in questions(scene, rng) if q.category == category]
    if category == "presence" and options:  # the answer is drawn first, so that yes and no stay balanced
        answer = ("yes", "no")[rng.integers(2)]
        options = [q for q in options if q.answer == answer]
    return options[rng.integers(len(options))] if options else None
