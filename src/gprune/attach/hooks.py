"""What is on a model while something of it is pruned: one set of hooks for all runs, threads and conversations.

A run belongs to the thread, or the asyncio task, that attached it; what belongs to one call travels with the call, and
what belongs to a conversation lies on its cache. So hooks hold nothing, and stay on for as long as they are needed.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from .. import host
from ..errors import AmbiguousRun, UnsupportedModel
from ..host import PIXELS
from ..pruners.base import Method
from .assisted import is_drafted, shorten_states
from .call import rewrite_call, text_token
from .encoding import EncoderOutputs, RecordingEncoder, encoding_of, modalities
from .llm import LayerHooks
from .llm_columns import take_rows
from .rows import mark_rows, moved_rows
from .state import (
    CacheState,
    Lease,
    check_cropped,
    lease_of,
    read_state,
    write_lease,
    write_state,
)
from .tower_merging import put_on_tower
from .verification import verify_untested

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


_NO_IDS = "inputs_embeds is given without input_ids, in which the images' placeholders would be found"


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
        for group in sorted(wanted - self.placed.keys(), key=list(_GROUPS).index):
            self.placed[group] = _GROUPS[group](self)

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
        if args and type(model) not in self._arguments:
            self._arguments[type(model)] = host.forward_arguments(model)
        call = {**dict(zip(self._arguments[type(model)], args, strict=False)), **kwargs} if args else kwargs
        host.check_arguments(call)
        cache = host.cache_of(call)
        state, carried = _followed(cache), modalities(call)
        if not carried:
            if state is None:
                self._check_continuation(call)
                return None
            ids = call.get("input_ids")
            if state.static is not None and ids is not None and ids.shape[1] == 1:
                return (), {**call, **state.static.arguments(cache)}
        return self._prune(call, state)

    @torch.compiler.disable
    def _prune(self, call: dict[str, Any], state: CacheState | None) -> tuple[tuple[()], dict[str, Any]] | None:
        carried, cache = modalities(call), host.cache_of(call)
        run = None
        if carried:
            lease = lease_of(cache)
            run = self.in_force(_encoded_by(call) or (None if lease is None else lease.run))
            if run is None and state is None:
                return None
            if run is None:
                raise ValueError(
                    "images are added to a cache whose prompt was pruned, but no pruner is in force; attach one, or "
                    "prefill again without it"
                )
            if "video" in carried and run.family.video is None:
                raise ValueError(
                    f"this call carries a video, whose tokens would be left unpruned; of "
                    f"{self.model.config.model_type} only images can be pruned; detach the pruner for calls with videos"
                )
            if keeps_all(run.method) and (call.get("input_ids") is None or _cut(call)):
                return None  # of which gprune need not find the images
            check_step_lengths(run.method, call)
        if call.get("input_ids") is None:
            call = {**call, "input_ids": _ids_of(self.model, call)}
        if state is not None:
            check_cropped(state, host.columns_of(cache))
        if carried and state is None and host.columns_of(cache) == 0:
            verify_untested(self.model, call)
        return (), rewrite_call(self.model, run, call, state)

    def after(self, model: PreTrainedModel, args: Any, kwargs: dict[str, Any], output: Any = None) -> None:
        """Leave on the cache what its conversation must remember."""
        if output is None:  # as in `before`
            return
        outputs = kwargs.get(host.ENCODED)
        if isinstance(outputs, EncoderOutputs):
            wanted = kwargs.get(host.LOGITS)
            if outputs.state is not None and is_drafted(kwargs):
                shorten_states(output, outputs.state.dropped)
            self._remember(outputs, host.cache_of(kwargs) or host.cache_in(output), wanted)
        elif not torch.compiler.is_compiling() and lease_of(host.cache_of(kwargs)) is not None:
            mark_rows(host.cache_of(kwargs))

    @torch.compiler.disable
    def _remember(self, outputs: EncoderOutputs, cache: Any, wanted: Any) -> None:
        state, run = outputs.state, outputs.run
        if cache is not None:
            if state is not None:
                write_state(cache, state)
            if run is not None:
                write_lease(cache, outputs.lease or Lease(run))
            # Drafted tokens come after the prompt's last, whose logits are asked for too; they may be taken back.
            drafted = max(wanted, 1) if isinstance(wanted, int) else 1
            mark_rows(cache, None if run is None else drafted)
        if run is not None and state is not None:
            _PREFILL.set((weakref.ref(self), state.mask.shape[1]))

    def masks(self, attention_mask: Tensor | None = None, **others: Any) -> Any:
        """Leave the mask of pruned columns 2-D, where `generate()` prepares a 4-D one for a static cache."""
        pruned = read_state(host.cache_of(others)) is not None
        if pruned or (host.first_step(others) and self.in_force() is not None):
            return attention_mask
        return self.stock_masks(attention_mask=attention_mask, **others)

    def _check_continuation(self, call: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():  # what is compiled has a state
            return
        prefill = _PREFILL.get()
        _PREFILL.set(None)
        if prefill is not None and prefill[0]() is self:
            check_continuation(call, prefill[1])
        cache = host.cache_of(call)
        ids, cached = call.get("input_ids"), host.columns_of(cache)
        if lease_of(cache) is not None:
            return
        if ids is None:
            if self.in_force() is not None:
                warnings.warn(
                    f"{_NO_IDS}; nothing is pruned in this call; pass input_ids and pixel_values", stacklevel=2
                )
        elif cached and ids.shape[1] > 1 and self.runs:
            placeholders = ids.new_tensor(host.placeholders(self.model.config))
            if torch.isin(ids, placeholders).any():
                raise UnsupportedModel(
                    f"input_ids has placeholders of images, but no image comes with them, and the KV cache of {cached} "
                    f"columns is none that gprune has seen filled, as one that was stored and put together anew; "
                    f"accepted is the cache that the pruned call returned, or a copy.deepcopy of it; prefill again"
                )


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


def check_continuation(call: Mapping[str, Any], columns: int) -> None:
    """Raise UnsupportedModel if a call goes on with what was just pruned, but not with its cache.

    That is a single token beside as many cached columns as were just filled, or beside a mask or position that says
    that more came before it than its cache holds.

    Args:
        call: one without images, whose cache has no state.
        columns: of the cache that the pruned call before it filled.
    """
    ids, mask, positions = (call.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None or ids.shape[1] != 1 or call.get("use_cache") is False:
        return
    cache = host.cache_of(call)
    cached = host.columns_of(cache)
    before = 0
    if isinstance(mask, Tensor) and mask.ndim == 2:
        before = mask.shape[1] - 1
    elif isinstance(positions, Tensor):
        before = int(positions.max())
    if cached == columns or before > cached or (cache is None and mask is None and positions is None):
        held = "no KV cache" if cache is None else f"a KV cache of {cached} columns that gprune did not see filled"
        raise UnsupportedModel(
            f"the call before this one pruned a prompt, and this one goes on with one token and {held}, so that "
            f"it would be answered wrong; accepted is the cache that the pruned call returned, or a copy.deepcopy of "
            f"it, under {' or '.join(host.CACHES)} in transformers {host.installed()}; pass that, or use_cache=False "
            f"for a prompt of its own"
        )


class RopeIndex:
    """Numbers a prompt along three axes as the model does, and says so where it has fewer images than placeholders."""

    def __init__(self, number: Callable[..., Any], hooks: Hooks) -> None:
        self.number, self.hooks = number, hooks
        self.__signature__ = inspect.signature(number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.number(*args, **kwargs)
        except StopIteration as error:
            raise ValueError(
                "input_ids or mm_token_type_ids has placeholders of more images or videos than there are grids for "
                "(image_grid_thw, video_grid_thw); the numbers must be equal; pass them as the processor made them"
            ) from error


def check_step_lengths(method: Method, call: Mapping[str, Any]) -> None:
    """Raise ValueError if assisted decoding wants states of layers that each have tokens of their own."""
    states = call.get("output_hidden_states") or call.get("output_attentions")
    if states and call.get(host.ENCODED) and is_drafted(call) and method.acts == "in the LLM":
        raise ValueError(
            f"assisted decoding with output_hidden_states or output_attentions cuts them by one length for all layers, "
            f"which differ with {type(method).__name__}; accepted is one without the other; leave either out"
        )


def keeps_all(method: Method) -> bool:
    """Whether a method drops nothing whatever the image."""
    return all(isinstance(part.keep, float) and part.keep == 1 for part in method.parts)


def _cut(call: Mapping[str, Any]) -> bool:
    """Whether `generate()` has cut the features of a call to pieces for chunked prefill."""
    return any(output.get(host.UNPOOLED) is None for output in (call.get(host.ENCODED) or {}).values())


def _ids_of(model: PreTrainedModel, call: Mapping[str, Any]) -> Tensor:
    """Token ids int64 [B, q] as far as embeddings tell them: placeholders, and text, whatever it says.

    Raises:
        ValueError: there are no embeddings with visual tokens in them.
    """
    embeddings = call.get("inputs_embeds")
    if not isinstance(embeddings, Tensor) or not modalities(dict(call)):
        raise ValueError(f"{_NO_IDS}; images cannot be pruned so, nor a pruned cache continued; pass input_ids")
    ids = torch.full(embeddings.shape[:2], text_token(model), device=embeddings.device)
    for token in host.placeholders(model.config):
        own = model.get_input_embeddings()(torch.tensor(token, device=embeddings.device))
        ids = ids.masked_fill((embeddings == own.to(embeddings)).all(-1), token)
    return ids


def _live(ref: weakref.ref[Run]) -> Run | None:
    run = ref()
    return run if run is not None and run.attached else None


def _followed(cache: Any) -> CacheState | None:
    """The state of a cache, brought into the order of its rows where its user changed that."""
    state = read_state(cache)
    if not torch.compiler.is_compiling() and (rows := moved_rows(cache)) is not None:
        take_rows(cache, rows)
        if state is not None:
            write_state(cache, state.taken(rows))
            return read_state(cache)
    return state


def _encoded_by(call: dict[str, Any]) -> Run | None:
    """The run in whose tower tokens of the call's images were merged, which no other can prune."""
    leases = (encoding_of(output).lease for output in (call.get(host.ENCODED) or {}).values())
    return next((lease.run for lease in leases if lease is not None), None)


def _replace(module: Module, values: dict[str, Any]) -> Callable[[], None]:
    """Set attributes of this module alone; returns what puts back what was there."""
    own = vars(module)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    return partial(_put_back, module, values, before)


def _put_back(module: Module, values: dict[str, Any], before: dict[str, Any]) -> None:
    own = vars(module)
    for name in [name for name, value in values.items() if own.get(name) is value]:  # what came later is not ours
        del own[name]
        if name in before and not _is_over(before[name]):
            own[name] = before[name]


def _is_over(value: Any) -> bool:
    """Whether something is what hooks, since taken off, had put in its place: models can share a base model."""
    hooks = getattr(value, "hooks", None)
    return isinstance(hooks, Hooks) and not hooks.placed


def _on_model(hooks: Hooks) -> Callable[[], None]:
    model, base = hooks.model, hooks.model.base_model
    encoders = {
        host.encoder_name(modality): RecordingEncoder(encoder, hooks, modality)
        for modality in PIXELS
        if (encoder := host.encoder_of(model, modality)) is not None
    }
    numbering = {host.ROPE_INDEX: RopeIndex(getattr(base, host.ROPE_INDEX), hooks)} if host.has_rope_3d(model) else {}
    undo = [_replace(model, {host.MASK_MAKER: hooks.masks}), _replace(base, {**encoders, **numbering})]
    # On the base model too, which trainers call by itself.
    handles = [
        handle
        for module in (model, base)
        for handle in (
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True),
        )
    ]
    return partial(_undo, [*undo, *(handle.remove for handle in handles)])


def _on_layers(hooks: Hooks) -> Callable[[], None]:
    layers = LayerHooks(hooks.model)
    undo = [_replace(attention, values) for attention, values in layers.looks()]
    return partial(_undo, [*undo, *(handle.remove for handle in layers.put_on())])


def _on_tower(hooks: Hooks) -> Callable[[], None]:
    return partial(_undo, [handle.remove for handle in put_on_tower(hooks.model)])


def _undo(steps: list[Callable[[], None]]) -> None:
    for step in steps:
        step()


_GROUPS: dict[str, Callable[[Hooks], Callable[[], None]]] = {
    "model": _on_model,
    "layers": _on_layers,
    "tower": _on_tower,
}
"""What can be put on, in this order; each returns what takes it off."""
