"""What the page shows, without the page: previews, scores, patches and answers, against the model itself."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gprune import FastV, GPrune, GraphCover, Keep, Method, cover, kept_count, verify
from gprune.app.choice import MAX_METHODS, MAX_QUESTION, Choice
from gprune.app.examples import examples
from gprune.app.studio import KEEPS, MAX_NEW_TOKENS, Answer, Studio, Subject
from gprune.cost import Cost, measure
from gprune.cost import cost as cost_of
from gprune.graph import cosine_graph
from gprune.prompt import build_inputs
from gprune.scenes.model import build_config, build_processor
from gprune.scenes.vocabulary import CATEGORIES
from gprune.spec import parse_pruner

QUESTION = "what text is written?"
MERGING = ("tome", "visionzip", "prumerge", "bat", "apet", "sparsevlm", "pumer")


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio("embedded")


@pytest.fixture
def subject(studio: Studio) -> Subject:
    return Subject(examples()[0].picture, "a.png")


@pytest.fixture
def still(studio: Studio) -> Any:
    """The LLM must not run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the LLM was run")

    handle = studio.model.get_decoder().register_forward_pre_hook(refuse)
    yield
    handle.remove()


def inputs_of(studio: Studio, subject: Subject, question: str = QUESTION) -> Any:
    return build_inputs(studio.model, studio.processor, [([subject.picture], question)])


def chosen(methods: list[str], *keeps: Keep, question: str = QUESTION) -> Choice:
    return Choice(question, tuple(methods), keeps)


def last(studio: Studio, subject: Subject, methods: list[str], keep: float, question: str = QUESTION) -> list[Answer]:
    return list(studio.ask(subject, chosen(methods, keep, question=question)))[-1]


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and bool((np.asarray(a) == np.asarray(b)).all())


def test_methods_offered_are_those_that_go_on_the_model(studio: Studio) -> None:
    assert {"gprune", "tome", "fastv", "gprune:init=ones"} < set(studio.methods)
    assert "foreground" not in studio.methods  # needs a mask


def test_a_preview_is_what_a_call_keeps(studio: Studio, subject: Subject) -> None:
    for method in studio.methods:
        pruner = parse_pruner(method, 0.5)
        with torch.no_grad(), pruner(studio.model) as run:
            studio.model(**inputs_of(studio, subject), logits_to_keep=1)
        report = run.images[0]
        if pruner.acts == "in the LLM":
            last(studio, subject, [method], 0.5)
        [panel] = studio.preview(subject, chosen([method], 0.5))
        assert panel.note.startswith(f"{report.n_after} of {report.n_before} tokens kept"), method
        sheets = subject.sheets
        assert len(panel.pictures) == len(sheets) == 2
        merged = method.split(":")[0] in MERGING
        drawn = [sheet.kept(report, merged) for sheet in sheets]
        assert all(same(a.picture, b.picture) for a, b in zip(panel.pictures, drawn, strict=True)), method


def test_a_preview_runs_no_llm_and_encodes_once(
    studio: Studio, subject: Subject, still: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gprune.app.studio as room

    calls: list[str] = []
    encode = room.visual_tokens
    monkeypatch.setattr(room, "visual_tokens", lambda pruner, *a: calls.append(pruner.name) or encode(pruner, *a))
    for keep in (0.05, 0.3, 0.7, 1.0):
        panels = studio.preview(subject, chosen(["gprune", "random", "divprune"], keep))
        counts = sum(kept_count([64, 256], keep)) + 16
        assert all(panel.note.startswith(f"{counts} of 336") for panel in panels)
    studio.heat(subject, QUESTION, 3)
    studio.preview(subject, chosen(["gprune"], 0.3, question="is there a star?"))
    assert calls == ["gprune"]
    studio.preview(subject, chosen(["cdpruner"], 0.3))
    studio.preview(subject, chosen(["cdpruner"], 0.4))
    studio.preview(subject, chosen(["cdpruner"], 0.4, question="is there a star?"))
    assert calls == ["gprune", "cdpruner", "cdpruner"]


def test_a_question_that_counts(studio: Studio, subject: Subject) -> None:
    def shown(question: str) -> list[Image.Image]:
        return [
            each.picture for each in studio.preview(subject, chosen(["cdpruner"], 0.1, question=question))[0].pictures
        ]

    first, other, again = (shown(text) for text in ("is there a star?", "what color is the text?", "is there a star?"))
    assert not all(map(same, first, other)) and all(map(same, first, again))


def test_methods_inside_the_llm_wait_for_an_answer(studio: Studio, subject: Subject, still: None) -> None:
    [panel] = studio.preview(subject, chosen(["fastv"], 0.5))
    assert not panel.pictures and "ask" in panel.note


def test_answers_are_those_of_a_batch_without_a_cache(studio: Studio) -> None:
    """What the page answers picture by picture, a padded batch of all sizes gives too when each token is made anew."""
    shown = examples()[: len(CATEGORIES)]
    asked = [([example.picture], example.question) for example in shown]
    inputs = build_inputs(studio.model, studio.processor, asked)
    assert not inputs["attention_mask"].all()
    assert verify(studio.model, inputs) < 1e-5  # with contiguous positions
    with GPrune(0.5)(studio.model):
        output = studio.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, use_cache=False)
    texts = studio.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for example, text in zip(shown, texts, strict=True):
        answer = last(studio, Subject(example.picture, example.name), ["gprune"], 0.5, example.question)[-1]
        assert answer.text == text.strip()


def test_one_method_that_fails_leaves_the_others(studio: Studio, subject: Subject) -> None:
    whole, right, wrong = last(studio, subject, ["gprune", "fastv"], 0.1)
    assert whole.error is None and right.error is None and right.seconds is not None
    assert wrong.error is not None and "smallest keep" in wrong.error and wrong.cost is None


def test_answers_are_those_of_generate(studio: Studio, subject: Subject) -> None:
    question = "describe the picture."
    inputs = inputs_of(studio, subject, question)
    methods = ["gprune", "tome", "fastv"]
    for answer in last(studio, subject, methods, 0.6, question):
        with method_of(answer.method).attach(studio.model):
            output = studio.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = studio.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.text == text.strip() and len(text) > 20
        assert answer.cost == expected_cost(studio, subject, inputs, answer.method)
        assert answer.seconds is not None and answer.seconds > 0


def method_of(name: str) -> Method:
    return parse_pruner(name, 1.0 if name == "none" else 0.6)


def expected_cost(studio: Studio, subject: Subject, inputs: Any, method: str) -> Cost:
    pruner = method_of(method)
    if method in ("tome", "fastv"):
        return measure(studio.model, inputs, pruner)
    text = int((inputs["input_ids"] != studio.model.config.image_token_id).sum())
    return cost_of(studio.model.config, [subject.picture.size[::-1]], text, pruner)


def test_answers_come_word_by_word(studio: Studio, subject: Subject) -> None:
    steps = list(studio.ask(subject, chosen(["gprune"], 0.5, question="describe the picture.")))
    for i in (0, 1):
        texts = [step[i].text for step in steps]
        assert len(set(texts)) > 5
        assert all(after.startswith(before.strip()) for before, after in itertools.pairwise(texts))
    assert steps[2][0].text and not steps[2][1].text


def test_fidelity_says_whether_the_answers_are_the_same(studio: Studio, subject: Subject) -> None:
    methods = ["gprune", "random"]
    rows = {(row["method"], row["keep"]): row for row in studio.fidelity(subject, QUESTION, methods).rows}
    for keep in KEEPS:
        unpruned, *pruned = last(studio, subject, methods, keep)
        for answer in pruned:
            assert (rows[answer.method, keep]["exact"] == 1) == (answer.text == unpruned.text)
    assert {row["exact"] for row in rows.values()} == {0, 1}


@pytest.mark.parametrize("question", ["", "  \n", "x" * (MAX_QUESTION + 1)])
def test_no_question(studio: Studio, subject: Subject, question: str) -> None:
    with pytest.raises(ValueError, match="the question has"):
        next(studio.ask(subject, chosen(["gprune"], 0.5, question=question)))
    with pytest.raises(ValueError, match="the question has"):
        studio.fidelity(subject, question, ["gprune"])


@pytest.mark.parametrize(
    ("methods", "keeps", "match"),
    [
        ([], [0.5], "0 methods"),
        (["gprune"] * (MAX_METHODS + 1), [0.5], "4 methods"),
        (["gprune", "auto"], [0.5, 0.3], "2 methods with 2 budgets"),
        (["foreground:mask=/etc/passwd"], [0.5], "not offered"),
        (["gprune:iterations=999999999"], [0.5], "not offered"),
    ],
)
def test_choices_that_are_not_offered(
    studio: Studio, subject: Subject, methods: list[str], keeps: list[float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        studio.preview(subject, chosen(methods, *keeps))
    with pytest.raises(ValueError, match=match):
        list(studio.ask(subject, chosen(methods, *keeps)))


@pytest.mark.parametrize(
    ("keep", "match"), [(0.0, "not a ratio"), (2.0, "not a ratio"), (cover(0.9), "VisionZip has none")]
)
def test_a_budget_that_a_method_cannot_take(studio: Studio, subject: Subject, keep: Keep, match: str) -> None:
    """Its column says why, and so does its answer."""
    [panel] = studio.preview(subject, chosen(["visionzip"], keep))
    assert panel.failed and match in panel.note and not panel.pictures
    *_, (_, answer) = studio.ask(subject, chosen(["visionzip"], keep))
    assert answer.error is not None and match in answer.error


def test_two_budgets_of_one_method(studio: Studio, subject: Subject) -> None:
    """Each as if it were alone, also inside the LLM."""
    for method, keeps in (("graphcover", (0.3, 0.1)), ("graphcover", (cover(0.95), cover(0.8))), ("fastv", (0.6, 0.5))):
        *_, (_, *answers) = studio.ask(subject, chosen([method], *keeps))
        panels = studio.preview(subject, chosen([method], *keeps))
        assert [(each.method, each.keep) for each in panels] == [(each.method, each.keep) for each in answers]
        assert len({panel.note for panel in panels}) == 2
        for keep, panel, answer in zip(keeps, panels, answers, strict=True):
            with GraphCover(keep)(studio.model) if method == "graphcover" else FastV(keep)(studio.model) as run:
                output = studio.model.generate(**inputs_of(studio, subject), max_new_tokens=MAX_NEW_TOKENS)
            assert panel.note.startswith(run.images[0].summary)
            covered = run.images[0].coverage
            assert covered is None or f"they cover {covered:.1%}" in panel.note
            [text] = studio.processor.batch_decode(
                output[:, inputs_of(studio, subject)["input_ids"].shape[1] :], skip_special_tokens=True
            )
            assert answer.text == text.strip()


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_a_patch_in_the_graph(studio: Studio, subject: Subject, iterations: int) -> None:
    pruner = GPrune(iterations=iterations)
    with torch.no_grad(), pruner(studio.model) as run:
        studio.model(**inputs_of(studio, subject), logits_to_keep=1)
    features = studio.model.base_model.get_image_features(
        **{name: inputs_of(studio, subject)[name] for name in ("pixel_values", "image_sizes")}, return_dict=True
    ).pooler_output[0]
    report = run.images[0]
    assert report.scores is not None
    for number, view in enumerate(report.views):
        scores = report.scores[view.rows]
        order = scores.sort(descending=True, stable=True).indices.tolist()
        graph = cosine_graph(features[view.rows][None])
        unit = torch.nn.functional.normalize(features[view.rows].float(), dim=-1)
        sheet = studio.heat(subject, QUESTION, iterations)[number].picture
        for x, y in ((3, 35), (sheet.width // 2, sheet.height // 2), (sheet.width - 1, sheet.height - 1)):
            found = studio.look(subject, QUESTION, iterations, number, (x, y))
            assert found is not None and found.patch.view == number
            index = found.patch.index
            assert found.score == scores[index] and found.rank == order.index(index) + 1
            assert found.count == len(view) and found.degree == int(graph.degrees[0, index])
            cosine = unit @ unit[index]
            cosine[index] = -2
            best = cosine.topk(len(found.nearest))
            assert [c for _, c in found.nearest] == pytest.approx(best.values.tolist(), abs=1e-5)
            assert view.grid is not None
            assert all(p.index == p.row * view.grid[1] + p.column for p, _ in found.nearest)


def test_a_click_beside_the_patches(studio: Studio, subject: Subject) -> None:
    assert studio.look(subject, QUESTION, 5, 0, (0, -1)) is None


def test_heat_follows_the_iterations(studio: Studio, subject: Subject, still: None) -> None:
    heats = [studio.heat(subject, QUESTION, steps) for steps in range(11)]
    assert all(len(heat) == 2 for heat in heats) and not same(heats[0][1].picture, heats[5][1].picture)


def test_pictures_of_users_do_not_mix(studio: Studio) -> None:
    """Two users at once: each gets what they would get alone."""
    alone, together = {}, {}
    names = ("astronaut", "coffee")

    def look(name: str, into: dict[str, Any]) -> None:
        own = Subject(photo(name), name)
        answers = last(studio, own, ["gprune", "divprune"], 0.3)
        panels = studio.preview(own, chosen(["gprune", "divprune"], 0.3))
        into[name] = [answer.text for answer in answers], [np.asarray(p.pictures[1].picture).tobytes() for p in panels]

    for name in names:
        look(name, alone)
    threads = [threading.Thread(target=look, args=(name, together)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone and alone["astronaut"] != alone["coffee"]


def test_a_user_who_leaves_holds_nobody_up(studio: Studio, subject: Subject) -> None:
    answers = studio.ask(subject, chosen(["gprune"], 0.5, question="describe the picture."))
    next(answers)
    assert last(studio, Subject(photo("chelsea"), "b"), ["gprune"], 0.5)[1].error is None


def test_examples() -> None:
    found = examples()
    assert [each.name for each in found[-3:]] == ["astronaut.png", "coffee.png", "chelsea.png"]
    assert found[0].name == "scenes/000.png" and all(each.question and each.origin for each in found)


@pytest.mark.parametrize("number", [1, -1])
def test_the_command_of_an_example_makes_its_picture(number: int, tmp_path: Path) -> None:
    import shlex
    import subprocess
    import sys

    from gprune.images import open_image

    each = examples()[number]
    [program, *arguments] = shlex.split(each.origin)
    module = [] if program == "python" else ["-m", program]
    subprocess.run([sys.executable, *module, *arguments], cwd=tmp_path, check=True)
    assert same(open_image(tmp_path / each.name), each.picture)


def test_a_model_that_sees_one_view_of_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA 1.5: the picture is one view, cropped to its centre; what is cut off is no patch."""
    stock = build_config()
    config = LlavaConfig(
        vision_config=stock.vision_config,
        text_config=stock.text_config,
        image_token_index=stock.image_token_index,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    tiled = build_processor()
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        tiled.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiled.chat_template,
    )
    monkeypatch.setattr("gprune.app.studio.load", lambda name: (model, processor))
    studio, subject = Studio("other"), Subject(Image.new("RGB", (480, 240), "red"), "a.png")
    [panel] = studio.preview(subject, chosen(["gprune"], 0.25))
    assert panel.note.startswith("16 of 64") and len(panel.pictures) == 1
    for x, seen in ((119, False), (121, True), (359, True), (361, False)):
        found = studio.look(subject, QUESTION, 5, 0, (x, 120))
        assert (found is not None) == seen
    assert [answer.error for answer in last(studio, subject, ["gprune", "fastv"], 0.5)] == [None] * 3
