"""Questions: every answer recomputed from the scene by other means, and every word known to the tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from gprune.scenes.model import UNK, build_tokenizer
from gprune.scenes.questions import CAPTION_PROMPT, Question, caption_of, question_of, questions
from gprune.scenes.scene import Scene, Thing, make_scene, rng_of
from gprune.scenes.vocabulary import CATEGORIES, COLORS, SHAPES

SCENES = [make_scene("train", index) for index in range(400)]


def asked(scene: Scene) -> list[Question]:
    return questions(scene, rng_of(*scene.seed, stream=2))


def only(values: list[str]) -> str:
    assert len(values) == 1, values
    return values[0]


def where(scene: Scene, item: Thing) -> str:
    across = (item.box[0] + item.box[2]) / 2 / scene.size[0]
    down = (item.box[1] + item.box[3]) / 2 / scene.size[1]
    row = "top" if down < 0.36 else "bottom" if down > 0.64 else "middle"
    return f"{row} {'left' if across < 0.36 else 'right' if across > 0.64 else 'center'}"


def answer(scene: Scene, question: str) -> tuple[str, str]:
    """Category and answer, worked out from the words of the question."""
    shapes = [item for item in scene.items if item.kind == "shape"]
    texts = [item for item in scene.items if item.kind == "text"]
    charts = [item for item in scene.items if item.kind == "chart"]
    if question == "what is the background?":
        return "background", scene.background
    if question == "what text is written?":
        return "text", only([item.text.lower() for item in texts])
    if match := re.fullmatch(r"which bar is (tallest|shortest)\?", question):
        heights = {height: color for item in charts for color, height in item.bars}
        assert len(charts) == 1
        return "chart", heights[max(heights) if match[1] == "tallest" else min(heights)]
    if match := re.fullmatch(r"what color is the (\w+)\?", question):
        return "attribute", only([item.color for item in shapes if item.shape == match[1]])
    if match := re.fullmatch(r"what shape is (\w+)\?", question):
        return "attribute", only([item.shape for item in shapes if item.color == match[1]])
    if match := re.fullmatch(r"where is the (\w+)\?", question):
        named = {"text": texts, "chart": charts}.get(match[1], [item for item in shapes if item.shape == match[1]])
        return "position", only([where(scene, item) for item in named])
    match = re.fullmatch(r"(how many|is there a) (?:(\w+) )?(\w+?)(?:s are there)?\?", question)
    assert match is not None and match[2] in (None, *COLORS) and match[3] in ("shape", *SHAPES), question
    count = sum(match[2] in (None, item.color) and match[3] in ("shape", item.shape) for item in shapes)
    return ("counting", str(count)) if match[1] == "how many" else ("presence", "yes" if count else "no")


def test_every_answer_is_right() -> None:
    for scene in SCENES:
        for question in asked(scene):
            assert (question.category, question.answer) == answer(scene, question.question)


def test_every_category_comes_up_and_a_seed_fixes_the_questions() -> None:
    seen = Counter(question.category for scene in SCENES for question in asked(scene))
    assert set(seen) == set(CATEGORIES)
    assert all(asked(scene) == asked(scene) for scene in SCENES[:50])


def test_no_question_is_asked_twice_of_a_scene() -> None:
    for scene in SCENES:
        texts = [question.question for question in asked(scene)]
        assert len(set(texts)) == len(texts)


def test_yes_and_no_are_balanced_where_it_is_measured() -> None:
    drawn = Counter(question.answer for question in measured_presence())
    assert abs(drawn["yes"] - drawn["no"]) < 4 * sum(drawn.values()) ** 0.5


def test_the_form_of_a_presence_question_does_not_give_the_answer_away() -> None:
    """Else a model that does not look scores more than half: of kinds, of colours, and of coloured kinds."""
    for form in (r"is there a \w+\?", r"is there a \w+ shape\?", r"is there a \w+ (?!shape)\w+\?"):
        answers = [question.answer for question in measured_presence() if re.fullmatch(form, question.question)]
        assert abs(answers.count("yes") - answers.count("no")) < 4 * len(answers) ** 0.5, form


@cache
def measured_presence() -> list[Question]:
    drawn = (_of(make_scene("test", index), "presence", index) for index in range(1500))
    return [question for question in drawn if question is not None]


def _of(scene: Scene, category: str, index: int) -> Question | None:
    return question_of(scene, category, rng_of("test", index, stream=2))


@pytest.mark.parametrize("category", CATEGORIES)
def test_question_of_a_category(category: str) -> None:
    found = [_of(scene, category, i) for i, scene in enumerate(SCENES)]
    for scene, question in zip(SCENES, found, strict=True):
        if question is None and category == "presence":  # the answer is drawn first, and nothing is there to say yes to
            assert not scene.of_kind("shape")
        elif question is None:
            assert category not in {q.category for q in asked(scene)}
        else:
            assert question.category == category
            assert question.answer == answer(scene, question.question)[1]
    assert sum(question is not None for question in found) > 50


def test_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown category 'sound'"):
        question_of(SCENES[0], "sound", rng_of("test", 0))


def test_caption_tells_every_thing_once() -> None:
    for scene in SCENES:
        told = caption_of(scene)
        background, *parts = told.answer.split(", ")
        assert (told.question, background, len(parts)) == (CAPTION_PROMPT, scene.background, len(scene.items))
        for item, part in zip(scene.items, parts, strict=True):
            looks = {
                "shape": f"{item.color} {item.shape}",
                "text": f"text {item.text.lower()}",
                "chart": "chart " + " ".join(f"{color} {height}" for color, height in item.bars),
            }[item.kind]
            assert part == f"{where(scene, item)} {looks}"


def test_every_word_is_known_to_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    texts = {text for s in SCENES for q in (*asked(s), caption_of(s)) for text in (q.question, q.answer)}
    for text in texts:
        ids = tokenizer(text).input_ids
        assert UNK not in ids
        assert tokenizer.decode(ids) == text


def test_words_of_questions_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for text in {q.question for s in SCENES for q in (*asked(s), caption_of(s))}:
        assert len(tokenizer(text).input_ids) == len(re.findall(r"\w+|[^\w\s]", text)), text
    for scene in SCENES:
        for question in asked(scene):
            if question.category not in ("text", "counting"):  # those answers are spelled
                assert len(tokenizer(question.answer).input_ids) == len(question.answer.split())
