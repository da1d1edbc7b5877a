"""Training a scorer: steps, validation, going on after an interruption, and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import host
from ..attach import unwrapped
from ..errors import BadValue, Diverged
from ..evaluate.answers import prepare
from ..evaluate.cells import write_whole
from ..evaluate.fidelity import fidelity
from ..evaluate.fidelity_table import Fidelity
from ..evaluate.items import Query
from ..pruners.scorer import FACTS, Scorer, ScorerFacts, model_mark
from ..tokens import Keep, check_keep
from .classroom import Classroom
from .gates import check_gates
from .lessons import FitSettings, Lessons, split_items

RIVALS = ("graphvote", "graphcover", "random")
"""Untrained methods that stand beside the scorer in the table."""

STATE, CURVE, TABLE, ITEMS = "fit/state.pt", "curve.json", "table.md", "fit/items"
"""Files below the folder of a scorer: what a run goes on from, the validations, the table, and its measurements."""


@dataclass(frozen=True)
class Fitted:
    """A scorer that was trained.

    Args:
        folder: where it is, as `Learned(weights=...)` takes it.
        curve: a row per validation: "step", "loss" of the steps before it, and per budget "kl", nats per token of the
            answers, and "agreement", the share of these tokens that stay the likeliest.
        fidelity: of the held-out items under the scorer and `RIVALS`.
        errors: items that could not be read, with the reasons.
    """

    folder: Path
    curve: list[dict[str, Any]]
    fidelity: Fidelity
    errors: list[str]


def fit(
    model: Any,
    processor: Any,
    items: Sequence[Query],
    folder: str | Path,
    keeps: Sequence[Keep] = (0.5, 0.3, 0.1),
    *,
    settings: FitSettings | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Fitted:
    """Train a scorer on what a model answers to pictures: no labels are needed, and the model stays as it is.

    The model answers every item once, by greedy decoding, with all visual tokens. Then the scorer learns which of them
    it can do without: each step drops, for every item at one of the budgets, all but the tokens with the highest noisy
    scores, and lowers the divergence of the model's distributions over its own answer, before and after. A fifth of the
    pictures, at most 100, are never learned from; the scorer that strays least on them is kept.

    Args:
        model: of a family that can be pruned, whose LLM has full attention, in float32 or bfloat16, or PEFT's adapters
            around one.
        processor: its processor, with a chat template; it is told to pad on the left.
        items: what is asked, each ([picture, ...], question), pictures open or as paths.
        folder: for the scorer and its curve and table. Interrupted, the same call goes on from the last validation and
            comes to the same scorer; the subfolder "fit" is for that, and can be deleted at the end.
        keeps: budgets that take turns.
        settings: see `FitSettings`.
        progress: called after each step with the number of steps done and the loss, nats per token.

    Returns:
        The scorer, and how it compares with untrained methods on held-out pictures.

    Raises:
        UnsupportedModel: the model is not such a one.
        BadValue: fewer than two pictures can be read; the folder holds another run, or its path a colon.
        Diverged: a loss is NaN or Inf; nothing is written of it.
    """
    folder, settings = Path(folder), settings or FitSettings()
    model = unwrapped(model)
    check_gates(model)
    if not keeps:
        raise BadValue("keeps is empty; accepted is at least one budget; give for example [0.5, 0.3, 0.1]")
    for keep in keeps:
        check_keep(keep)
    if ":" in str(folder):
        raise BadValue(f"the folder {folder} has a colon in its path, which ends a setting; give another name")
    prepare(processor)
    lessons = split_items(items)
    with _frozen(model):
        run = _Fitting(model, processor, lessons, folder, tuple(keeps), settings)
        run.resume()
        run.train(progress)
    run.best.save(folder)
    write_whole({"curve": run.curve}, folder / CURVE)
    table = fidelity(
        model,
        processor,
        lessons.validation,
        [f"learned:weights={folder}", *RIVALS],
        keeps,
        max_new_tokens=settings.max_new_tokens,
        folder=folder / ITEMS,
    )
    (folder / TABLE).write_text(table.markdown())
    return Fitted(folder, run.curve, table, lessons.errors)


class _Fitting:
    """The state of a run.

    Attributes:
        scorer: as it is.
        best: as it was at the validation at which it strayed least.
        curve: see `Fitted`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        lessons: Lessons,
        folder: Path,
        keeps: tuple[Keep, ...],
        settings: FitSettings,
    ) -> None:
        self.classroom = Classroom(model, processor, settings.question, settings.max_new_tokens)
        self.lessons, self.folder, self.keeps, self.settings = lessons, folder, keeps, settings
        embeddings = host.embeddings_of(model)
        facts = ScorerFacts(
            model=model.config.name_or_path or type(model).__name__,
            family=model.config.model_type,
            width=embeddings.shape[1],
            question=settings.question,
            trained_on=f"its own answers to {len(lessons.training)} items, in {settings.steps} steps of "
            f"{settings.batch_size}, keeping {', '.join(map(str, keeps))}",
        )
        generator = torch.Generator().manual_seed(settings.seed)
        untrained = Scorer.untrained(facts, model_mark(embeddings), generator)
        weights = {name: weight.to(model.device).requires_grad_() for name, weight in untrained.weights.items()}
        self.scorer = self.best = replace(untrained, weights=weights)
        self.optimizer = torch.optim.AdamW(list(weights.values()), lr=settings.rate, weight_decay=0.01)
        self.step, self.losses, self.curve = 0, [], []  # type: int, list[float], list[dict[str, Any]]
        self._depends = {
            "model": facts.model,
            "family": facts.family,
            "keeps": [str(keep) for keep in keeps],
            "items": lessons.fingerprint,
            **asdict(settings),
        }

    def train(self, progress: Callable[[int, float], None]) -> None:
        """Take the steps that are left."""
        settings = self.settings
        while self.step < settings.steps:
            loss = self._take_step()
            self.step += 1
            self.losses.append(loss)
            progress(self.step, loss)
            if self.step % settings.validate_every == 0 or self.step == settings.steps:
                self._validate()
                self._save()

    def _take_step(self) -> float:
        settings, step = self.settings, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
        numbers = self._numbers()
        batch = self.classroom.batch({str(number): self.lessons.training[number] for number in numbers})
        keeps = [self.keeps[(step + row) % len(self.keeps)] for row in range(len(numbers))]
        noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        strayed, _ = self.classroom.pupil(self.scorer, batch, keeps, noise)
        loss = strayed / sum(len(answer) for answer in batch.answers)
        if not loss.isfinite():
            raise Diverged(
                f"the loss of step {step} is {float(loss.detach())}; the scorer was not written, and what was saved "
                f"last in {self.folder} is from before; give a smaller rate, or load the model in float32"
            )
        if loss.requires_grad:  # where every token is kept there is nothing to learn
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(self.scorer.weights.values()), 1.0)
            self.optimizer.step()
        return float(loss.detach())

    def _numbers(self) -> list[int]:
        """The items of the step at hand, from an order of all that is drawn anew when they are through."""
        count, size = len(self.lessons.training), self.settings.batch_size
        numbers = []
        for place in range(self.step * size, (self.step + 1) * size):
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_033 + place // count)
            numbers.append(int(torch.randperm(count, generator=generator)[place % count]))
        return list(dict.fromkeys(numbers))

    @torch.no_grad()
    def _validate(self) -> None:
        items = self.lessons.validation
        sums = {str(keep): [0.0, 0] for keep in self.keeps}
        tokens = 0
        for start in range(0, len(items), self.settings.batch_size):
            part = items[start : start + self.settings.batch_size]
            batch = self.classroom.batch({f"held out {start + i}": item for i, item in enumerate(part)})
            tokens += sum(len(answer) for answer in batch.answers)
            for keep in self.keeps:
                strayed, agreed = self.classroom.pupil(self.scorer, batch, [keep] * len(part))
                sums[str(keep)][0] += float(strayed)
                sums[str(keep)][1] += agreed
        found = {keep: {"kl": kl / tokens, "agreement": agreed / tokens} for keep, (kl, agreed) in sums.items()}
        row = {"step": self.step, "loss": sum(self.losses) / len(self.losses), "validation": found}
        if not self.curve or _strayed(row) <= min(map(_strayed, self.curve)):
            self.best = replace(
                self.scorer, weights={name: each.detach().clone() for name, each in self.scorer.weights.items()}
            )
        self.curve.append(row)
        self.losses = []

    def _save(self) -> None:
        path = self.folder / STATE
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "depends": self._depends,
            "step": self.step,
            "weights": {name: weight.detach() for name, weight in self.scorer.weights.items()},
            "best": dict(self.best.weights),
            "optimizer": self.optimizer.state_dict(),
            "answers": self.classroom.answers,
            "curve": self.curve,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self) -> None:
        """Go on from what was saved last in the folder, if it is of the same run.

        Raises:
            BadValue: it is of another, or damaged.
        """
        path = self.folder / STATE
        if not path.exists():
            if (self.folder / FACTS).exists():
                raise BadValue(f"{self.folder} holds a scorer already; it is not overwritten; give another folder")
            return
        try:
            state = torch.load(path, map_location=self.classroom.model.device, weights_only=True)
            others = [name for name, value in self._depends.items() if state["depends"][name] != value]
        except Exception as error:  # what torch raises for a damaged file depends on the damage, and is long
            raise BadValue(
                f"{path} cannot be read ({type(error).__name__}); delete it, and the run begins anew"
            ) from error
        if others:
            raise BadValue(
                f"{self.folder} holds a run with other {', '.join(others)}; give these as they were, or another folder"
            )
        with torch.no_grad():
            for name, weight in self.scorer.weights.items():
                weight.copy_(state["weights"][name])
        self.best = replace(self.scorer, weights=state["best"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.classroom.answers, self.curve, self.step = state["answers"], state["curve"], state["step"]


def _strayed(row: dict[str, Any]) -> float:
    """Nats per token at a validation, the mean over the budgets."""
    found = row["validation"].values()
    return math.fsum(each["kl"] for each in found) / len(found)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """The model in inference mode without gradients of its own; afterwards as it was."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    training = model.training
    model.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for weight in learning:
            weight.requires_grad_()
