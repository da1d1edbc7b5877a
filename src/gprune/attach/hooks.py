"""What is on a model while something of it is pruned: one set of hooks for all runs, threads and conversations.

A run belongs to the thread, or the asyncio task, that attached it; what belongs to one call travels with the call, and
what belongs to a conversation lies on its cache. So hooks hold nothing, and stay on for as long as they are needed.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import host
from ..errors import AmbiguousRun
from .assisted import shorten_states
from .call import decode, go_on, prune
from .call_checks import NO_IDS, check_continuation, check_known_cache
from .conversation import Conversation, conversation_of, mark_rows
from .encoding import EncoderOutputs, encoded_by
from .groups import GROUPS

if TYPE_CHECKING:
    from .run import Run

_LOCK = Lock()
"""Held while hooks come and go, on whatever model."""

_LATE: deque[Hooks] = deque()
"""Those of which a call or a conversation was over while the lock was held: who holds it looks after them too."""

_OWN: ContextVar[tuple[weakref.ref[Run], ...]] = ContextVar("gprune_runs", default=())
"""The runs that this thread or task attached, the last one last."""

_PREFILL: ContextVar[tuple[weakref.ref[Hooks], int] | None] = ContextVar("gprune_prefill", default=None)
"""Where the last call of this thread pruned a prompt, and to how many columns."""


class Hooks:
    """The hooks of one model.

    They are put on with the first run, and taken off when all runs are detached and no pruned cache is left that could
    be continued.

    Args:
        model: without what PEFT wraps around it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.runs: list[Run] = []
        self.leases: dict[int, None] = {}
        self._arguments: dict[type, list[str]] = {}
        self.stock_masks = host.mask_maker(model)
        self.placed: dict[str, Callable[[], None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model goes on with the copied runs; conversations are those of the original."""
        return {**vars(self), "leases": {}}

    # --- On and off ---

    def settle(self) -> None:
        """Put on what is needed now, and take off what is not."""
        wanted = {group for run in self.runs for group in run.groups}
        if self.leases:
            wanted |= self.placed.keys()
        for group in self.placed.keys() - wanted:
            self.placed.pop(group)()
        for group in sorted(wanted - self.placed.keys(), key=list(GROUPS).index):
            self.placed[group] = GROUPS[group](self)

    def release(self, lease: int) -> None:
        """A call or a conversation is over. May be called from anywhere, by the garbage collector too."""
        self.leases.pop(lease, None)
        _LATE.append(self)
        _settle_late()

    # --- Who is in force ---

    def in_force(self, otherwise: Run | None = None) -> Run | None:
        """The run by which a call of this thread is pruned; None if by none.

        Args:
            otherwise: by which the call, or what it goes on with, began; where this thread has no run of its own.

        Raises:
            AmbiguousRun: other threads attached several, and this one none.
        """
        run = own_run(self.model) or otherwise
        if run is None and (runs := list(self.runs)):
            run = runs[-1]
            chain = list(run.chain())
            if any(other not in chain for other in runs):
                raise AmbiguousRun(
                    f"this thread calls a {type(self.model).__name__} on which {len(runs)} runs are attached by other "
                    f"threads, and has none of its own: which is meant cannot be told; attach in the thread or task "
                    f"that calls, gprune.Unpruned() for none"
                )
        return None if run is None or run.method.acts == "nowhere" else run

    # --- What the hooks do ---

    def before(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        """From the call that was made to the call that reaches the LLM."""
        if kwargs is None:  # taken off by another thread at this moment, so that nobody needs it here
            return None
        if isinstance(kwargs.get(host.ENCODED), EncoderOutputs):  # the base model, called by the model
            return None
        call = kwargs
        if args:
            if type(model) not in self._arguments:
                self._arguments[type(model)] = host.forward_arguments(model)
            call = {**dict(zip(self._arguments[type(model)], args, strict=False)), **kwargs}
        cache = host.cache_of(call)
        if cache is None:
            host.check_arguments(call)
        conversation, compiling = conversation_of(cache), torch.compiler.is_compiling()
        if conversation is not None and not compiling:
            decoded = decode(call, cache, conversation)
            if decoded is not None:
                return (), decoded
        if host.modalities(call):
            return self._prune(call, conversation)
        if conversation is None or conversation.state is None:
            if not compiling:  # what is compiled has a state
                self._check_text(call, conversation)
            return None
        ids, state = call.get("input_ids"), conversation.state
        if state.static is not None and ids is not None and ids.shape[1] == 1:
            return (), {**call, **state.static.arguments(cache)}
        return (), go_on(self.model, call, cache, conversation)

    @torch.compiler.disable
    def _prune(
        self, call: dict[str, Any], conversation: Conversation | None
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        lease = None if conversation is None else conversation.lease
        state = None if conversation is None else conversation.state
        run = self.in_force(encoded_by(call) or (None if lease is None else lease.run))
        if run is None and state is None:
            return None
        if run is None:
            raise ValueError(
                "images are added to a cache whose prompt was pruned, but no pruner is in force; attach one, or "
                "prefill again without it"
            )
        rewritten = prune(self.model, run, call, state)
        return None if rewritten is None else ((), rewritten)

    def after(self, model: PreTrainedModel, args: Any, kwargs: dict[str, Any], output: Any = None) -> None:
        """Leave on the cache what its conversation must remember."""
        if output is None:  # as in `before`
            return
        outputs = kwargs.get(host.ENCODED)
        if not isinstance(outputs, EncoderOutputs):
            if not torch.compiler.is_compiling():
                mark_rows(host.cache_of(kwargs))
            return
        if outputs.gone:
            shorten_states(kwargs, output, outputs.gone)
        if outputs.cache is not None:
            outputs.conversation.mark()
            outputs.cache = None  # the base model, called by the model, comes first
        elif outputs.run is not None:
            self._remember(outputs.conversation, kwargs, output)

    @torch.compiler.disable
    def _remember(self, conversation: Conversation, call: dict[str, Any], output: Any) -> None:
        cache = host.cache_of(call) or host.cache_in(output)
        if conversation.state is not None:
            _PREFILL.set((weakref.ref(self), conversation.state.columns))
        if cache is not None:
            # Drafted tokens come after the prompt's last, whose logits are asked for too; they may be taken back.
            wanted = call.get(host.LOGITS)
            conversation.begin(cache, max(wanted, 1) if isinstance(wanted, int) else 1)

    def masks(self, attention_mask: Tensor | None = None, **others: Any) -> Any:
        """Leave the mask of pruned columns 2-D, where `generate()` prepares a 4-D one for a static cache."""
        conversation = conversation_of(host.cache_of(others))
        pruned = conversation is not None and conversation.state is not None
        if pruned or (host.first_step(others) and self.in_force() is not None):
            return attention_mask
        return self.stock_masks(attention_mask=attention_mask, **others)

    def _check_text(self, call: dict[str, Any], conversation: Conversation | None) -> None:
        """Notice a call by text alone that goes on with what was pruned, or should have been."""
        prefill = _PREFILL.get()
        _PREFILL.set(None)
        if prefill is not None and prefill[0]() is self:
            check_continuation(call, prefill[1])
        if conversation is not None:
            return
        if call.get("input_ids") is None:
            if self.in_force() is not None:
                warnings.warn(
                    f"{NO_IDS}; nothing is pruned in this call; pass input_ids and pixel_values", stacklevel=2
                )
        elif self.runs:
            check_known_cache(self.model, call)


def own_run(model: PreTrainedModel) -> Run | None:
    """The run that this thread or task attached to a model last, of those that are still attached."""
    runs = (run for ref in reversed(_OWN.get()) if (run := _live(ref)) is not None)
    return next((run for run in runs if run.model is model), None)


def hooks_of(model: PreTrainedModel) -> Hooks | None:
    """The hooks that are on a model; None if there are none."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Hooks)), None)


def put_on(run: Run) -> None:
    """Have a run in force: in its own thread or task, and in those that have none."""
    with _LOCK:
        _OWN.set((*(ref for ref in _OWN.get() if _live(ref)), weakref.ref(run)))
        run.hooks = hooks_of(run.model)
        if run.hooks is None and run.groups:
            run.hooks = Hooks(run.model)
        if run.hooks is not None:
            run.hooks.runs.append(run)
            try:
                run.hooks.settle()
            except BaseException:
                run.attached = False
                run.hooks.runs.remove(run)
                run.hooks.settle()
                raise
    _settle_late()


def take_off(run: Run) -> None:
    """Take off what nothing needs any more without this run."""
    with _LOCK:
        if run.hooks is not None:
            run.hooks.runs.remove(run)
            run.hooks.settle()
    _settle_late()


def _settle_late() -> None:
    while _LATE and _LOCK.acquire(blocking=False):
        try:
            while _LATE:
                _LATE.popleft().settle()
        finally:
            _LOCK.release()


def _live(ref: weakref.ref[Run]) -> Run | None:
    run = ref()
    return run if run is not None and run.attached else None
