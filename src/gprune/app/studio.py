"""What the page does, without the page: one model that many users look at pictures with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from PIL import Image
from transformers import TextIteratorStreamer

from ..answering import Reply, reply
from ..attach import ImageReport, refusal, reports_of, visual_tokens
from ..cost import Cost, cost_of_prompt
from ..draw import centre_crop, tiles_of
from ..errors import BadValue, GpruneError
from ..evaluate.fidelity import fidelity
from ..evaluate.fidelity_table import Fidelity
from ..kernels.blocks import directions
from ..models import load
from ..prompt import build_inputs
from ..pruners import DecoderMerger, GPrune, Method, Pruner, ToMe, Unpruned, every_method, get_pruner
from ..pruners.base import Need
from ..scenes.questions import CAPTION_PROMPT
from ..spec import parse_pruner
from ..tokens import Keep, VisualTokens
from .choice import MAX_QUESTION, Choice
from .panels import Drawing, Patch, Sheet, sheets

MAX_NEW_TOKENS = 128
NEAREST = 5
KEEPS = (0.5, 0.3, 0.1)
"""Ratios at which fidelity is measured."""
UNSEEN = {
    "in the LLM": (
        "drops tokens inside the LLM: ask, to see which reach its last layer",
        "shown is what reaches that layer",
    ),
    "before the tower": (
        "looks at pixels alone: ask, to see which patches it leaves out",
        "what the vision tower was given",
    ),
}
"""Of methods that choose while the model answers: what is said before and after, by where they act."""

VARIANTS = ("gprune:init=ones", "tome:where=tokens")
"""Settings that are offered as methods of their own."""


@dataclass(eq=False)
class Subject:
    """A picture that one user looks at, and what was worked out for it; no other user has it.

    Args:
        picture: upright RGB.
        name: the file's.
        origin: the command that makes the file; None: the user has it.
        example: its number among the examples; None: it is none of them.
        tokens: what methods that need the same are given, and the question it belongs to.
        answered: by method and ratio, what a method of `UNSEEN` left in an answer.
        sheets: how its views are drawn.
    """

    picture: Image.Image
    name: str
    origin: str | None = None
    example: int | None = None
    tokens: dict[tuple[Need, ...], tuple[str, VisualTokens]] = field(default_factory=dict)
    answered: dict[tuple[str, Keep], ImageReport] = field(default_factory=dict)
    sheets: list[Sheet] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """What the page shows of a method with a budget.

    Args:
        method: its name.
        keep: the budget.
        pictures: what is kept of every sheet; none where that is not known.
        note: about it, or why there are no pictures.
        failed: whether they cannot be.
    """

    method: str
    keep: Keep
    pictures: list[Drawing]
    note: str
    failed: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer as far as it has come, and what it cost.

    Args:
        method: its name; "none" is the unpruned model.
        keep: the budget; 1.0 of the unpruned model.
        text: so far.
        cost: of the prompt; None until the answer is complete.
        seconds: of the whole answer, None until then.
        error: why there is none.
    """

    method: str
    keep: Keep = 1.0
    text: str = ""
    cost: Cost | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Neighbourhood:
    """A patch in G-Prune's graph of its view.

    Args:
        patch: which.
        name: of its view.
        score, rank: S(t) / D, and its place among those of the view, from 1.
        degree: edges, the one to itself included.
        count: patches of the view.
        nearest: the most similar other neighbours, with their cosine similarity.
        drawing: the view with all but the neighbours striped.
    """

    patch: Patch
    name: str
    score: float
    rank: int
    degree: int
    count: int
    nearest: list[tuple[Patch, float]]
    drawing: Drawing


class Studio:
    """A model and its processor; everything that runs the model waits for whoever else does.

    Args:
        name: see `gprune.models.load`.

    Attributes:
        methods: that go on this model.

    Raises:
        UnusableModel: see there.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.processor = load(name)
        self.methods = [method for method in (*every_method(), *VARIANTS) if self._goes_on(method)]
        self._lock = Lock()
        self._warm: set[str] = set()

    def check(self, methods: Sequence[str]) -> None:
        """Refuse methods that are not offered.

        Raises:
            ValueError: one is not.
        """
        for name in methods:
            if name not in self.methods:
                raise ValueError(f"method {name!r} is not offered; accepted are {', '.join(self.methods)}")

    def preview(self, subject: Subject, choice: Choice) -> list[Panel]:
        """What every method keeps, without running the LLM; of one that cannot take its budget, why.

        Raises:
            ValueError: no or too many columns, or a method that is not offered.
        """
        columns = choice.columns
        self.check(choice.methods)
        return [self._panel(subject, choice.question, *column) for column in columns]

    def heat(self, subject: Subject, question: str, iterations: int) -> list[Drawing]:
        """The picture under G-Prune's scores after so many iterations, every sheet of it."""
        report, _ = self._select(subject, question, GPrune(iterations=iterations))
        return [sheet.heat(report) for sheet in self._sheets(subject, report)]

    def look(
        self, subject: Subject, question: str, iterations: int, number: int, place: tuple[float, float]
    ) -> Neighbourhood | None:
        """The graph around the patch at a pixel of a picture of `preview` or `heat`; None beside all patches.

        Args:
            number: of the picture among those of the method.
            place: (x, y) in its pixels.

        Raises:
            BadValue: there is no such picture, or the place is not finite.
        """
        if not all(map(math.isfinite, place)):
            raise BadValue(f"the place {place} is none in a picture; accepted are two numbers; click a patch")
        pruner = GPrune(iterations=iterations)
        report, _ = self._select(subject, question, pruner)
        shown = self._sheets(subject, report)
        if number not in range(len(shown)):
            raise BadValue(f"picture {number} is not shown; accepted are 0 to {len(shown) - 1}; click one of them")
        sheet = shown[number]
        patch = sheet.locate(*place)
        if patch is None:
            return None
        view = report.views[patch.view]
        assert report.scores is not None
        scores = report.scores[view.rows]
        tokens = self._tokens(subject, question, pruner)
        similarity = _cosines(tokens.features[view.rows.to(tokens.features.device)], patch.index)
        neighbours = similarity >= pruner.similarity
        order = similarity.argsort(descending=True, stable=True).tolist()
        near = [i for i in order if i != patch.index and neighbours[i]][:NEAREST]
        own = scores[patch.index]
        return Neighbourhood(
            patch,
            sheet.name(patch.view),
            float(own),
            1 + int((scores > own).sum()) + int((scores[: patch.index] == own).sum()),
            int(neighbours.sum()),
            len(view),
            [(sheet.patch(patch.view, i), float(similarity[i])) for i in near],
            sheet.around(patch, neighbours.numpy(), near),
        )

    def ask(self, subject: Subject, choice: Choice) -> Iterator[list[Answer]]:
        """The unpruned model's answer and that of every method, one after the other, again with every new word.

        Raises:
            ValueError: see `preview`; no question, or too long a one.
        """
        _check_length(choice.question.strip(), 1)
        answers = [Answer(Unpruned.name), *(Answer(*column) for column in choice.columns)]
        self.check(choice.methods)
        inputs = self._inputs(subject, choice.question)
        for i, answer in enumerate(answers):
            try:
                for answers[i] in self._answer(subject, inputs, answer):
                    yield list(answers)
            except (GpruneError, ValueError, RuntimeError) as error:
                answers[i] = replace(answers[i], error=str(error))
                yield list(answers)

    def fidelity(self, subject: Subject, question: str, methods: Sequence[str]) -> Fidelity:
        """How far the model's own answer about the picture stays as it is, under each method at `KEEPS`.

        Raises:
            ValueError: a method is not offered; there is no question, or a picture that the processor refuses.
        """
        question = question.strip()
        _check_length(question, 1)
        self.check(methods)
        asked = [([subject.picture], question)]
        with self._lock:
            return fidelity(self.model, self.processor, asked, methods, KEEPS, max_new_tokens=MAX_NEW_TOKENS)

    def warm_up(self, subject: Subject) -> None:
        """Answer once, so that whoever comes first does not wait for it."""
        with self._lock:
            self.model.generate(**self._inputs(subject, CAPTION_PROMPT), max_new_tokens=1, do_sample=False)

    def _goes_on(self, name: str) -> bool:
        kind = get_pruner(name.split(":")[0])
        # Those that need to know a token's place need a mask of the picture.
        return "mask" not in kind.needs and refusal(parse_pruner(name, 1.0), self.model) is None

    def _inputs(self, subject: Subject, question: str) -> Any:
        return build_inputs(self.model, self.processor, [([subject.picture], question)])

    def _tokens(self, subject: Subject, question: str, pruner: Method) -> VisualTokens:
        """What a method is given; encoded once for all methods that need the same."""
        _check_length(question.strip())
        asked = question.strip() or CAPTION_PROMPT
        asked = asked if "question" in pruner.needs else CAPTION_PROMPT
        in_tower = pruner.acts == "in the tower"
        known = None if in_tower else subject.tokens.get(pruner.needs)
        if known is not None and known[0] == asked:
            return known[1]
        with self._lock:
            tokens = visual_tokens(pruner, self.model, self._inputs(subject, asked))
        if not in_tower:
            subject.tokens[pruner.needs] = asked, tokens
        return tokens

    def _select(self, subject: Subject, question: str, pruner: Pruner) -> tuple[ImageReport, str | None]:
        """What a method keeps of the picture, and what a user should hear about that."""
        tokens = self._tokens(subject, question, pruner)
        selection = pruner.select(tokens)
        return reports_of(pruner, tokens, selection)[0], pruner.warning(selection)

    def _panel(self, subject: Subject, question: str, name: str, keep: Keep) -> Panel:
        note: str | None = None
        try:
            pruner = parse_pruner(name, keep)
            if pruner.acts in UNSEEN:
                before, note = UNSEEN[pruner.acts]
                report = subject.answered.get((name, keep))
                if report is None:
                    return Panel(name, keep, [], before)
            else:
                assert isinstance(pruner, Pruner)
                report, note = self._select(subject, question, pruner)
            pictures = [sheet.kept(report, _merges(pruner)) for sheet in self._sheets(subject, report)]
        except (GpruneError, ValueError, RuntimeError) as error:
            return Panel(name, keep, [], str(error), failed=True)
        covered = None if report.coverage is None else f"they cover {report.coverage:.1%}"
        return Panel(name, keep, pictures, "; ".join(filter(None, (report.summary, covered, note))))

    def _sheets(self, subject: Subject, report: ImageReport) -> list[Sheet]:
        if not subject.sheets:
            box = centre_crop(self.processor, subject.picture.size)
            tiles = tiles_of(self.model, self._inputs(subject, CAPTION_PROMPT))
            subject.sheets = sheets(subject.picture, report, box, tiles)
        return subject.sheets

    def _answer(self, subject: Subject, inputs: Any, answer: Answer) -> Iterator[Answer]:
        method = answer.method
        pruner = parse_pruner(method, answer.keep)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def generate() -> Reply:
            # The lock is held here, and not by the caller, who may never come back for the next word.
            try:
                with self._lock, pruner.attach(self.model) as run:
                    if method not in self._warm:  # or else its first answer would look slow
                        self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
                        self._warm.add(method)
                    [made] = reply(run, self.processor, inputs, max_new_tokens=MAX_NEW_TOKENS, streamer=streamer)
                    return made
            finally:
                streamer.on_finalized_text("", stream_end=True)

        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(generate)
            for piece in streamer:
                answer = replace(answer, text=(answer.text + piece).lstrip())
                yield answer
            made = work.result()
        if pruner.acts in UNSEEN:
            subject.answered[method, answer.keep] = made.images[0]
        yield replace(answer, text=answer.text.strip(), cost=self._cost(subject, inputs, pruner), seconds=made.seconds)

    def _cost(self, subject: Subject, inputs: Any, method: Method) -> Cost:
        size = subject.picture.height, subject.picture.width
        with self._lock:
            return cost_of_prompt(self.model, inputs, [size], method)


def _merges(pruner: Method) -> bool:
    """Whether tokens that are not kept go into those that are; a report does not tell which of them do."""
    return pruner.merges or isinstance(pruner, (ToMe, DecoderMerger))


def _check_length(question: str, least: int = 0) -> None:
    if not least <= len(question) <= MAX_QUESTION:
        raise BadValue(f"the question has {len(question)} characters; accepted are 1 to {MAX_QUESTION}; write one")


def _cosines(features: torch.Tensor, index: int) -> torch.Tensor:
    """Cosine similarity of one row of [n, d] with all, float32 [n] on the CPU; -1 where a norm is 0, 1 with itself."""
    unit = directions(features)
    cosine = (unit @ unit[index]).clamp(max=1).nan_to_num(-1)
    cosine[index] = 1
    return cosine.cpu()
