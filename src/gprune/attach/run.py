"""A method at work on a model: what the user is handed, put on and taken off."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from .. import host
from ..errors import GpruneError
from ..families.views import PARTIAL
from ..host import Modality
from ..pruners.base import Method
from ..pruners.tower import TowerPruner
from ..tokens import Mask
from .choosing import BatchSelection, selector_of
from .hooks import own_run, put_on, take_off
from .llm import check_decoder, decoder_pruner
from .report import ImageReport, report_images
from .support import family_of, unwrapped
from .tower_changing import check_merged_features, check_tower
from .tower_narrowing import check_packed, narrower_in
from .tower_reading import check_needs

if TYPE_CHECKING:
    from .hooks import Hooks

_WARNED: weakref.WeakKeyDictionary[PreTrainedModel, list[Method]] = weakref.WeakKeyDictionary()
"""Of which methods a warning was given, by the model that it is about."""


def attach(method: Method, model: Any) -> Run:
    """Prune the images and videos of every call of `model`, `model.generate(...)` included, until the run is detached.

    The run is in force in the thread, or asyncio task, that attaches it, and in threads that attach none themselves, as
    those that `generate()` for a streamer. A thread can attach several: the last one is in force until detached, then
    the one before. What was begun under a run is ended under it, even after it is detached.

    Args:
        method: what prunes; `Unpruned()` for nothing.
        model: a `...ForConditionalGeneration` model of a supported family, or PEFT's adapters around one.

    Raises:
        UnsupportedModel: the model is of another kind, or transformers is too old; says what is supported.
        UnfitSettings: the method's settings do not fit the model.
    """
    model = unwrapped(model)
    check(method, model)
    return Run(method, model)


def refusal(method: Method, model: Any) -> str | None:
    """Why a method does not go on a model, and what to do; None if it does. The model is left alone."""
    try:
        check(method, unwrapped(model))
    except GpruneError as error:
        return str(error)
    return None


def check(method: Method, model: PreTrainedModel) -> None:
    """Raise UnsupportedModel or UnfitSettings if a method does not go on a model."""
    if method.acts == "nowhere":
        return
    family_of(model)
    if (narrower := narrower_in(method)) is not None:
        check_packed(narrower, model)
    check_needs(selector_of(method), model)
    for part in method.parts:
        part.check_model(model.config.model_type, host.embeddings_of(model))
        if isinstance(part, TowerPruner) and part.acts == "in the tower":
            check_tower(part, model)
        if part.merges:
            check_merged_features(part, model)
    if (pruner := decoder_pruner(method)) is not None:
        check_decoder(pruner, model)


class Run:
    """A method attached to a model by `method.attach(model)`; a context manager that detaches at its end.

    What the caller of the model gives and `generate()` returns keeps its length; only what reaches the LLM is
    shortened. So logits, hidden states and attentions are as long as what was kept.

    Attributes:
        method: what prunes.
        model: the model, without what PEFT wraps around it.
        attached: whether it still is.
    """

    def __init__(self, method: Method, model: PreTrainedModel) -> None:
        self.method, self.model = method, model
        self.attached = True
        self.hooks: Hooks | None = None
        self._outer = own_run(model)
        self._reports: dict[Modality, _PerThread] = {"image": _PerThread(), "video": _PerThread()}
        self._masks = _PerThread()
        if method.acts != "nowhere":
            self.selector = selector_of(method)
            self.family = family_of(model)
        put_on(self)

    def __repr__(self) -> str:
        return f"<Run of {self._subject}: {self._said or 'no image yet'}>"

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{report.summary}</li>" for report in (*self.images, *self.videos))
        return f"<p>{escape(self._subject)}</p><ol>{lines}</ol>"

    @property
    def _subject(self) -> str:
        state = "" if self.attached else ", detached"
        if self.attached and (outer := next((run for run in self.chain() if run is not self and run.attached), None)):
            state = f", until it is detached instead of {outer._methods}"
        return f"{self._methods} on {type(self.model).__name__}{state}"

    @property
    def _methods(self) -> str:
        return " then ".join(f"{type(part).__name__}(keep={part.keep!r})" for part in self.method.parts)

    @property
    def _said(self) -> str:
        counts = [
            (f"{len(reports)} {name}{'s' * (len(reports) > 1)}", reports)
            for name, reports in (("image", self.images), ("video", self.videos))
            if reports
        ]
        return ", ".join(
            f"{name}, {sum(each.n_after for each in reports)} of {sum(each.n_before for each in reports)} tokens kept"
            for name, reports in counts
        )

    @property
    def _sees_whole(self) -> bool:
        """Whether every view of an image shows all of it."""
        return self.method.acts != "nowhere" and self.family.joins is None and self.family.views not in PARTIAL

    @property
    def pruner(self) -> Method:
        """The method."""
        return self.method

    @property
    def images(self) -> list[ImageReport]:
        """One report per image of the last call with images of this thread, in prompt order; beams share one.

        Of the last call alone: the reports of the call before it are gone unless you kept the list. In a thread that
        made no such call, those of the last call of any.
        """
        return self._reports["image"].read(whole=self._sees_whole)

    @property
    def videos(self) -> list[ImageReport]:
        """The same of videos, whose views are their frames."""
        return self._reports["video"].read()

    @property
    def masks(self) -> Sequence[Mask | None]:
        """Of each image of this thread's next calls, in prompt order, beams once; empty, as at first, for none.

        In a thread that gave none, those that any thread gave last.
        """
        return self._masks.read()

    @masks.setter
    def masks(self, masks: Sequence[Mask | None]) -> None:
        self._masks.write(list(masks))

    @property
    def groups(self) -> list[str]:
        """The groups of hooks that the method needs."""
        acts = {part.acts for part in self.method.parts}
        where = {"in the LLM": "layers", "in the tower": "tower", "before the tower": "patches"}
        return [] if "nowhere" in acts else ["model", *(group for place, group in where.items() if place in acts)]

    def detach(self) -> None:
        """Leave the model as it was before; does nothing the second time.

        As long as a pruned cache of it is alive, the model can go on with that, and only then is as it was.
        """
        if self.attached:
            self.attached = False
            take_off(self)

    def chain(self) -> Iterator[Run]:
        """This run, the one that its thread had attached before, and so on; some may be detached."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run._outer

    def report(self, chosen: Mapping[Modality, BatchSelection]) -> None:
        """Keep what a call kept of its images and videos, and warn once a model of what means little."""
        for modality, batch in chosen.items():
            self._reports[modality].write(batch)
            warned = _WARNED.setdefault(self.model, [])
            if self.method not in warned and (message := self.selector.warning(batch.selection)):
                warned.append(self.method)
                warnings.warn(message, stacklevel=2)

    def __enter__(self) -> Run:
        if not self.attached:
            raise RuntimeError("this run is detached and would prune nothing; use a new pruner.attach(model)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


class _PerThread:
    """What each thread wrote last, and the last of all; a selection is made into reports when it is read."""

    def __init__(self) -> None:
        self._last: dict[int, BatchSelection | list[Any]] = {}
        self._latest: int | None = None

    def write(self, value: BatchSelection | list[Any]) -> None:
        self._latest = threading.get_ident()
        self._last[self._latest] = value
        if len(self._last) > threading.active_count():
            alive = {thread.ident for thread in threading.enumerate()} | {self._latest}
            self._last = {thread: last for thread, last in self._last.items() if thread in alive}

    def read(self, *, whole: bool = False) -> list[Any]:
        own = threading.get_ident()
        thread = own if own in self._last or self._latest is None else self._latest
        last = self._last.get(thread)
        if isinstance(last, BatchSelection):
            shared = (last.selection, last.sizes, last.views, last.ranked, last.per_layer, last.pair_cost)
            last = report_images(*shared, whole=whole)
            self._last[thread] = last
        return last or []
