"""How far a pruned model's answers stay those of the unpruned one: on any model and pictures, without labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from .. import host
from ..attach import ImageReport, refusal, unwrapped, visual_tokens
from ..checks import Count, check_value
from ..cost import UNPRUNED, measure
from ..errors import BadValue
from ..images import UnreadableImage
from ..prompt import build_inputs
from ..pruners import Method, Uniform
from ..spec import takeable
from ..tokens import Keep, VisualTokens
from .answers import describe, prepare
from .fidelity_table import Fidelity
from .forcing import answer_logits, greedy_answers
from .items import OpenQuery, Query, open_query
from .likeness import feature_coverage, likeness
from .records import Record, Score, label, load_record, save_record

FLOPS_ITEMS = 8
"""First items whose floating-point operations are counted, each on its own."""


def fidelity(
    model: Any,
    processor: Any,
    items: Sequence[Query],
    methods: Sequence[str],
    keeps: Sequence[Keep],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 1,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Fidelity:
    """Ask the unpruned model, and see how far it stays with its own answers under every method at every budget.

    The unpruned model answers each item once, by greedy decoding. Then every method reads the prompt and is given that
    answer: how likely does it find each token, and would it have said the same? All tokens of an answer agree exactly
    where the pruned model's own greedy answer is the same, so that nothing is decoded twice.

    Args:
        model: of a family that can be pruned, or PEFT's adapters around one.
        processor: its processor, with a chat template; it is told to pad on the left.
        items: what is asked, each ([picture, ...], question), pictures open or as paths.
        methods: with settings, as `gprune.spec.parse_pruner` reads them: "gprune:init=ones".
        keeps: budgets of each.
        max_new_tokens: of an answer.
        batch_size: items at once.
        folder: where items are kept when they are measured, a file each; those in it, of the same model by name and
            dtype, pictures, question and `max_new_tokens`, are not measured again. None keeps none.
        progress: called with the number of items, times methods and budgets and the unpruned model, done since.

    Returns:
        What was measured. A method that does not go on the model, a budget that a method cannot take, and an item with
        a picture that cannot be opened or a prompt that the processor refuses, is left out, with the reason.

    Raises:
        BadValue: no method goes on the model, not one item can be read, or a number is below 1.
        BadType: an item is not such a pair, or a number is no int.
        ValueError, TypeError: an unknown method or setting, a budget that no method takes, or a damaged file in
            `folder`.
    """
    for name, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        check_value(name, value, Count(1))
    model = unwrapped(model)
    prepare(processor)
    runs, left_out = _possible(model, methods, keeps)
    scoring = _Scoring(model, processor, runs, max_new_tokens)
    records: list[Record] = []
    errors: list[str] = []
    for start in range(0, len(items), batch_size):
        batch: list[_Asked] = []
        for number, item in enumerate(items[start : start + batch_size], start):
            try:
                shown = open_query(item)
            except UnreadableImage as error:
                errors.append(f"item {number}: {error}")
                continue
            path = None if folder is None else folder / f"{scoring.fingerprint(shown)}.json"
            record = None if path is None else load_record(path)
            batch.append(_Asked(number, shown, path, record, counted=len(records) + len(batch) < FLOPS_ITEMS))
        for asked, outcome in scoring.measure(batch):
            if isinstance(outcome, str):
                errors.append(f"item {asked.number}: {outcome}")
                continue
            records.append(outcome)
            if asked.path is not None and outcome is not asked.record:
                save_record(outcome, asked.path)
        progress(len(items[start : start + batch_size]) * len(runs))
    if not records:
        raise BadValue(f"not one of {len(items)} items can be read; {errors[0] if errors else 'there are none'}")
    return Fidelity(records, [(name, method.keep) for name, method in runs], errors, left_out)


@dataclass(frozen=True)
class _Asked:
    """An item, and what is known of it.

    Args:
        number: among all items.
        shown: the item, open.
        path: of its file.
        record: that was in the file.
        counted: whether floating-point operations are counted on it.
    """

    number: int
    shown: OpenQuery
    path: Path | None
    record: Record | None
    counted: bool

    def lacks(self, name: str) -> bool:
        """Whether a score is yet to be measured, by its `label`."""
        score = None if self.record is None else self.record.scores.get(name)
        return score is None or (self.counted and score.flops is None)


@dataclass(frozen=True)
class _Scoring:
    """A model and what it is measured with.

    Args:
        runs: methods by name, the unpruned model first.
    """

    model: Any
    processor: Any
    runs: Sequence[tuple[str, Method]]
    max_new_tokens: int

    def fingerprint(self, shown: OpenQuery) -> str:
        """What an answer depends on, as a name of a file."""
        depends = (self.model.config.name_or_path, str(self.model.dtype), self.max_new_tokens, shown.question)
        return sha256(f"{depends} {shown.seen}".encode()).hexdigest()[:32]

    def measure(self, batch: Sequence[_Asked]) -> Iterator[tuple[_Asked, Record | str]]:
        """The record of each item, complete; or why there is none."""
        missing = [run for run in self.runs if any(each.lacks(label(run[0], run[1].keep)) for each in batch)]
        if not missing:
            yield from ((each, each.record) for each in batch if each.record is not None)
            return
        try:
            inputs = self._inputs(batch)
        except Exception as error:  # what a processor raises for a prompt that it cannot read depends on its version
            if len(batch) == 1:
                yield batch[0], describe(error)
            else:
                for each in batch:
                    yield from self.measure([each])
            return
        yield from zip(batch, self._records(batch, inputs, missing), strict=True)

    def _inputs(self, batch: Sequence[_Asked]) -> Any:
        return build_inputs(self.model, self.processor, [(each.shown.pictures, each.shown.question) for each in batch])

    def _records(
        self, batch: Sequence[_Asked], inputs: Mapping[str, Any], missing: Sequence[tuple[str, Method]]
    ) -> list[Record]:
        visual = (inputs["input_ids"] == host.placeholder(self.model.config)).sum(1).tolist()
        tokens = list(_of_prompts(visual_tokens(Uniform(1.0), self.model, inputs), visual))
        with UNPRUNED.attach(self.model):
            records = self._answered(batch, inputs, tokens)
            answers = [inputs["input_ids"].new_tensor(record.tokens) for record in records]
            logits = answer_logits(self.model, inputs, answers)
        firsts = [each[0].float().log_softmax(-1) for each in logits]
        for name, method in missing:
            started = time.perf_counter()
            with method.attach(self.model) as run:
                logits = answer_logits(self.model, inputs, answers)
            said = [_said(*each) for each in zip(logits, answers, firsts, strict=True)]
            seconds = (time.perf_counter() - started) / len(batch)
            reports = iter(run.images)
            for i, (asked, record) in enumerate(zip(batch, records, strict=True)):
                own = [next(reports) for _ in tokens[i].sizes] if method.acts != "nowhere" else []
                flops = measure(self.model, self._inputs([asked]), method).total if asked.counted else None
                score = _score(said[i], tokens[i], own, flops, seconds)
                records[i] = replace(record, scores={**record.scores, label(name, method.keep): score})
        return records

    def _answered(
        self, batch: Sequence[_Asked], inputs: Mapping[str, Any], tokens: Sequence[VisualTokens]
    ) -> list[Record]:
        """The records with their answers; those that are known are taken as they are."""
        known = [each.record for each in batch if each.record is not None]
        if len(known) == len(batch):
            return known
        records = []
        answers = greedy_answers(self.model, inputs, self.max_new_tokens)
        for each, answer, seen in zip(batch, answers, tokens, strict=True):
            shown, pairs = each.shown, likeness(seen) or (None, None)
            text = self.processor.batch_decode(answer[None], skip_special_tokens=True)[0].strip()
            record = Record(shown.names, shown.seen, shown.question, text, answer.tolist(), *pairs)
            records.append(each.record or record)
        return records


def _possible(model: Any, methods: Sequence[str], keeps: Sequence[Keep]) -> tuple[list[tuple[str, Method]], list[str]]:
    """The unpruned model and every method at every budget that goes on a model; of the others why not."""
    taken, untaken = takeable(methods, keeps)
    runs: list[tuple[str, Method]] = []
    reasons = dict.fromkeys(untaken)
    for name, method in {label(name, method.keep): (name, method) for name, method in taken}.values():
        if reason := refusal(method, model):
            reasons[f"{name}: {reason}"] = None
        elif method.acts != "nowhere":
            runs.append((name, method))
    if not runs:
        raise BadValue(next(iter(reasons), "no method is given; accepted are names of methods, such as gprune"))
    return [(UNPRUNED.name, UNPRUNED), *runs], list(reasons)


def _of_prompts(tokens: VisualTokens, visual: Sequence[int]) -> Iterator[VisualTokens]:
    """The visual tokens of each prompt of a batch, which has so many of them."""
    row = image = 0
    for count in visual:
        sizes = tokens.sizes[image : image + 1]
        while sum(sizes) < count:
            sizes = tokens.sizes[image : image + len(sizes) + 1]
        views = tuple(
            replace(view, rows=view.rows - row, image=view.image - image)
            for view in tokens.views
            if image <= view.image < image + len(sizes)
        )
        yield VisualTokens(tokens.features[row : row + count], views, sizes)
        row, image = row + count, image + len(sizes)


def _said(logits: Tensor, answer: Tensor, first: Tensor) -> tuple[float, int, float]:
    """Of an answer, int64 [n], its `nll`, `agreed` and `first_kl`; see `Score`.

    Args:
        logits: floating [n, vocabulary].
        first: float32 [vocabulary], log-probabilities of the unpruned model's first token.
    """
    own = logits.float().log_softmax(-1)
    nll = -own.gather(1, answer[:, None]).sum()
    agreed = (logits.argmax(-1) == answer).sum()
    return float(nll), int(agreed), float(kl_div(own[0], first, reduction="sum", log_target=True))


def _score(
    said: tuple[float, int, float],
    tokens: VisualTokens,
    reports: Sequence[ImageReport],
    flops: float | None,
    seconds: float,
) -> Score:
    visual = len(tokens.features)
    every = [torch.arange(size) for size in tokens.sizes]
    near = feature_coverage(tokens, [report.kept for report in reports] or every)
    shares = [report.edge_share for report in reports if report.edge_share is not None]
    return Score(
        *said,
        visual_tokens=visual,
        kept_tokens=sum(report.ratio * report.n_before for report in reports) if reports else visual,
        coverage=None if near is None else near.mean,
        worst_coverage=None if near is None else near.worst,
        edge_share=fmean(shares) if shares else None,
        flops=flops,
        seconds=seconds,
    )
