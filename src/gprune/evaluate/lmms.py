"""Any supported model with any method, as a model of lmms-eval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object
from PIL import Image

from ..attach import Run
from ..images import open_image, to_rgb
from ..models import load
from ..prompt import Chat
from ..pruners import Method, Unpruned
from ..spec import check_has_mask, parse_keep, parse_pruner
from ..tokens import Keep
from .answers import Response, answer, describe, flops, prepare
from .cells import BASELINE, versions
from .host import LMMS_EVAL, check_lmms_eval, is_padding
from .processes import accelerator, default_device

with LMMS_EVAL.checked():
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.utils import Collator

FLOPS_DOCUMENTS = 8
"""First documents of a task whose floating-point operations are counted, each on its own."""


@dataclass(frozen=True)
class Document:
    """One document of a task, answered."""

    task: str
    number: int
    answer: Response


@dataclass(frozen=True)
class Costs:
    """What the documents of a task cost; see `Cell`."""

    n: int
    visual_tokens: float
    kept_tokens: float
    flops: float | None
    seconds: float
    errors: list[str]


class PrunedModel(lmms):
    """A loaded model with a method attached that lmms-eval can ask.

    Args:
        model: any supported model.
        processor: its processor.
        run: the method attached to it.
        batch_size: documents at once, in each process.
        answered: called with the number of documents answered by this process and the number of all of its own.

    Attributes:
        documents: of the last evaluation, by task and number, from all processes.
        costs: of the last evaluation, by task; empty but in the first process.
    """

    is_simple = False

    def __init__(
        self,
        model: Any,
        processor: Any,
        run: Run,
        batch_size: int = 1,
        answered: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        prepare(processor)
        self.accelerator = accelerator()
        self.device = model.device
        self.batch_size = batch_size
        self.documents: list[Document] = []
        self.costs: dict[str, Costs] = {}
        # lmms-eval deletes the attributes of a model that are modules when it has its answers.
        self._asked = (model, processor, run)
        self._answered = answered
        self._own: list[Document] = []
        self._requests: dict[str, Instance] = {}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Response requests, batched by their generation arguments and from long to short."""
        collator = Collator(requests, lambda each: -len(each.args[0]), lambda each: each.args[2] or {}, grouping=True)
        texts: list[str] = []
        for batch in collator.get_batched(n=self.batch_size):
            answers = self._answer(batch)
            for request, given in zip(batch, answers, strict=True):
                self._requests[request.task_name] = request
                # Processes with fewer documents than others repeat one.
                if not is_padding(request):
                    self._own.append(Document(request.task_name, request.doc_id, given))
            texts += [given.text for given in answers]
            self._answered(len(texts), len(requests))
        return collator.get_original(texts)

    def loglikelihood(self, requests: list[Instance]) -> Any:
        """Not possible."""
        raise NotImplementedError(_ONLY_TEXT)

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        """Not possible."""
        raise NotImplementedError(_ONLY_TEXT)

    def clean(self) -> None:
        """Gather what the answers cost; lmms-eval calls it in every process when all of them are there."""
        self.documents = sorted(gather_object(self._own), key=lambda each: (each.task, each.number))
        self._own = []
        errors = [each.answer.error for each in self.documents if each.answer.error]
        if errors and len(errors) == len(self.documents):
            raise RuntimeError(f"not one of {len(errors)} documents could be answered; the first: {errors[0]}")
        if self.accelerator.is_main_process:
            tasks: dict[str, list[Document]] = defaultdict(list)
            for each in self.documents:
                tasks[each.task].append(each)
            self.costs = {task: self._costs(task, documents) for task, documents in tasks.items()}

    def _answer(self, requests: Sequence[Instance]) -> list[Response]:
        """One answer per request, in their order."""
        answers: dict[int, Response] = {}
        chats: dict[int, Chat] = {}
        for i, request in enumerate(requests):
            try:
                chats[i] = self._chat(request, request.doc_id)
            except NotImplementedError:
                raise
            except Exception as error:  # a damaged picture can make a decoder raise almost anything
                answers[i] = Response(error=describe(error))
        if chats:
            given = requests[0].args[2] or {}
            answers.update(zip(chats, answer(*self._asked, list(chats.values()), given), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _chat(self, request: Instance, number: int) -> Chat:
        """The conversation about a document of a request's task."""
        _, doc_to_messages, _, _, task, split = request.args
        return [chat_message(each) for each in doc_to_messages(self.task_dict[task][split][number])]

    def _costs(self, task: str, documents: Sequence[Document]) -> Costs:
        answers = [each.answer for each in documents]
        seen = [each for each in answers if each.visual_tokens] or [Response()]
        counted = [each.number for each in documents if each.answer.error is None][:FLOPS_DOCUMENTS]
        # With a cache of responses all that were asked may have been asked by other processes.
        request = self._requests.get(task)
        chats = (self._chat(request, number) for number in counted if request is not None)
        return Costs(
            len(documents),
            fmean(each.visual_tokens for each in seen),
            fmean(each.kept_tokens for each in seen),
            flops(*self._asked, chats),
            fmean(each.seconds for each in answers),
            [f"document {each.number}: {each.answer.error}" for each in documents if each.answer.error],
        )


class GPruneModel(PrunedModel):
    """`lmms-eval --model gprune --model_args pretrained=...,method=...,keep=...`.

    Args:
        pretrained: hub id, folder, or "embedded".
        method: with its settings: "gprune:init=ones"; "none" is the unpruned model.
        keep: ratio (with a point) or tokens per image (without one).
        batch_size: documents at once, in each process.
        device: of PyTorch; None: a GPU for each process if there are any.
        seed: of a method that draws at random.
        report: file for what the answers cost, JSON; None writes none.

    Raises:
        ValueError, TypeError: an argument is not one of the values above.
        UnsupportedHost: lmms-eval is not one that gprune can rely on.
    """

    def __init__(
        self,
        pretrained: str = "embedded",
        method: str = BASELINE,
        keep: Keep | str = 0.3,
        batch_size: int | str = 1,
        device: str | None = None,
        seed: int | None = None,
        report: str | None = None,
    ) -> None:
        check_lmms_eval()
        chosen = read_method(method, keep, seed)
        size = _read_batch_size(batch_size)
        if report is not None and not Path(report).resolve().parent.is_dir():
            raise ValueError(f"report={report} cannot be written: there is no such folder; make it first")
        model, processor = load(pretrained, device or default_device())
        super().__init__(model, processor, chosen.attach(model), size)
        self._report = None if report is None else Path(report)
        self._settings = {"pretrained": pretrained, "method": method, "keep": keep, "batch_size": size, "seed": seed}

    def clean(self) -> None:
        """Gather what the answers cost, and write it."""
        super().clean()
        if self._report is not None and self.accelerator.is_main_process:
            tasks = {
                task: {
                    **asdict(costs),
                    "documents": [
                        {"number": each.number, **asdict(each.answer)} for each in self.documents if each.task == task
                    ],
                }
                for task, costs in self.costs.items()
            }
            content = {"settings": self._settings, "versions": versions(), "tasks": tasks}
            self._report.write_text(json.dumps(content, indent=1) + "\n")


_ONLY_TEXT = (
    "gprune answers by generating text, one answer per document; accepted are tasks with output_type generate_until; "
    "many tasks scored by log-likelihood have a generating variant"
)


def read_method(method: str, keep: Keep | str, seed: int | None = None) -> Method:
    """A method as tasks are run with it; that of the unpruned model whatever the budget.

    Raises:
        ValueError, TypeError: unknown method or setting, an impossible budget, a seed for a method without, or no mask
            for one that goes by it.
    """
    if method == BASELINE:
        return Unpruned()
    pruner = parse_pruner(method, parse_keep(keep) if isinstance(keep, str) else keep)
    check_has_mask(pruner)
    if seed is None:
        return pruner
    if not hasattr(pruner, "seed"):
        raise ValueError(f"seed={seed}: method {method!r} draws nothing at random; leave the seed out")
    return pruner.with_seed(seed)


def _read_batch_size(given: int | str) -> int:
    if not str(given).isdigit() or int(given) < 1:
        raise ValueError(f"batch_size={given!r}; accepted are integers >= 1")
    return int(given)


def chat_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as chat templates read it, its pictures open."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": message["role"], "content": [message_part(part) for part in content]}


def message_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a message of lmms-eval, text or image, as a chat template takes it."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise NotImplementedError(f"a document holds {part['type']}; accepted are tasks with images and text")
    picture = part["url"]
    return {"type": "image", "image": to_rgb(picture) if isinstance(picture, Image.Image) else open_image(picture)}
