"""Questions with one right answer, and the caption, of a scene."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from .scene import Scene, Thing
from .vocabulary import CATEGORIES, COLORS, SHAPES


@dataclass(frozen=True)
class Question:
    """One question about a picture, its category (one of `CATEGORIES`, or "caption") and its only right answer."""

    category: str
    question: str
    answer: str


CAPTION_PROMPT = "describe the picture."


def caption_of(scene: Scene) -> Question:
    """The whole scene in words: background, then each thing in reading order as place, kind and looks."""
    parts = [scene.background, *(f"{scene.place(item)} {_describe(item)}" for item in scene.items)]
    return Question("caption", CAPTION_PROMPT, ", ".join(parts))


def _describe(item: Thing) -> str:
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
    for kind in sorted({*rng.choice(SHAPES, size=2, replace=False), *kinds[:1]}):
        asked.append(Question("counting", f"how many {kind}s are there?", str(kinds.count(kind))))
    for color in sorted({rng.choice(list(COLORS)), *colors[:2]}):
        asked.append(Question("counting", f"how many {color} shapes are there?", str(colors.count(color))))
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


def _presence(shapes: tuple[Thing, ...], rng: Generator) -> list[Question]:
    """About every kind of shape, about some colours, and about as many coloured shapes that are there as are not.

    The first two are not balanced: how much there is in a picture then says something about the answer, which is
    where learning begins. `_balanced_presence` is what is measured.
    """
    kinds, colors = {item.shape for item in shapes}, {item.color for item in shapes}
    asked = [Question("presence", f"is there a {shape}?", _yes_or_no(shape in kinds)) for shape in SHAPES]
    for color in rng.choice(list(COLORS), size=3, replace=False):
        asked.append(Question("presence", f"is there a {color} shape?", _yes_or_no(color in colors)))
    pairs = [(item.color, item.shape) for item in shapes]
    others = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in pairs]
    for options in (pairs, others):
        if options:
            pair = options[rng.integers(len(options))]
            asked.append(Question("presence", f"is there a {pair[0]} {pair[1]}?", _yes_or_no(pair in pairs)))
    return asked


def _yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _balanced_presence(shapes: tuple[Thing, ...], rng: Generator) -> Question | None:
    """A presence question whose form says nothing about its answer: form first, then yes or no, then what is asked."""
    if not shapes:
        return None
    kinds, colors = {item.shape for item in shapes}, {item.color for item in shapes}
    pairs = {f"{item.color} {item.shape}" for item in shapes}
    forms = (
        (kinds, set(SHAPES)),
        ({f"{color} shape" for color in colors}, {f"{color} shape" for color in COLORS}),
        (pairs, {f"{color} {shape}" for color in COLORS for shape in SHAPES}),
    )
    answerable = [(present, known - present) for present, known in forms if known - present]
    present, absent = answerable[rng.integers(len(answerable))]
    truth = bool(rng.integers(2))
    return Question("presence", f"is there a {rng.choice(sorted(present if truth else absent))}?", _yes_or_no(truth))


def question_of(scene: Scene, category: str, rng: Generator) -> Question | None:
    """One question of the given category, or None when the scene gives none."""
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}; choose one of {', '.join(CATEGORIES)}")
    if category == "presence":
        return _balanced_presence(scene.of_kind("shape"), rng)
    options = [question for question in questions(scene, rng) if question.category == category]
    return options[rng.integers(len(options))] if options else None
