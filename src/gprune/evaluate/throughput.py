"""How fast a model answers under each method: samples a second, time to the first token, decoding, memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..cost import Cost, cost_of_prompt
from ..pruners import Method
from ..tokens import Keep

_T = TypeVar("_T")
Prompts = Mapping[str, Tensor]
"""A batch of prompts: the arguments of `generate()` on the model's device, "input_ids" among them."""


@dataclass(frozen=True)
class Workload:
    """What is asked of the model.

    Args:
        batch_size: prompts at once.
        image_size: (height, width) in pixels of the one image of every prompt.
        text_tokens: tokens of a prompt that are not visual.
        new_tokens: that every answer has.
    """

    batch_size: int
    image_size: tuple[int, int]
    text_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Lap:
    """One call of `generate()`.

    Args:
        first: seconds until the logits of the first new token are there.
        total: seconds until the answer is.
        peak: bytes that PyTorch had allocated on the GPU at most, weights included; None on a CPU.
    """

    first: float
    total: float
    peak: int | None


@dataclass
class Speed:
    """What was measured of one method at one ratio in one setting.

    Args:
        method: as on the command line; "none" is the unpruned model.
        keep: its budget; 1.0 for "none".
        setting: what was asked.
        cost: of one prompt; None if it could not be counted for want of memory.
        laps: without the one that warms up.
        error: "out of memory", and there are no laps.
    """

    method: str
    keep: Keep
    setting: Workload
    cost: Cost | None = None
    laps: list[Lap] = field(default_factory=list)
    error: str | None = None

    def fail(self) -> None:
        """Note that memory ran out."""
        self.laps, self.error = [], "out of memory"


def measure_speed(
    model: Any,
    prompts: Callable[[Workload], Prompts],
    runs: Sequence[tuple[str, Method]],
    settings: Sequence[Workload],
    repeats: int,
    *,
    finished: Callable[[Speed], None] = lambda speed: None,
) -> list[Speed]:
    """Time `generate()` under every method in every setting.

    In each setting every run has one lap to warm up, on a CPU, where nothing is compiled, the first run alone; then the
    runs take turns, one lap each, `repeats` times, so that whatever slows the machine for a while slows all of them.
    Attaching a pruner is not timed, nor is making the prompts. A run for which memory does not suffice is noted as
    such, and the others go on.

    Args:
        model: of transformers, with its weights.
        prompts: makes the prompts of a setting.
        runs: methods with their names.
        settings: each is measured by itself.
        repeats: laps of each run.
        finished: called after every lap, and once for a run that failed.

    Returns:
        One per setting and run, in their order.

    Raises:
        RuntimeError: an answer is shorter than asked for.
        UnsupportedModel, ValueError: a method does not go on this model.
    """
    speeds: list[Speed] = []
    counted: dict[tuple[Workload, int], Cost | None] = {}
    with warnings.catch_warnings():
        # The pixels are noise, and the weights may be: no wonder if the graph is degenerate. It costs the same.
        warnings.filterwarnings("ignore", message=".*the graph says little")
        for setting in settings:
            own = [Speed(name, pruner.keep, setting) for name, pruner in runs]
            speeds += own
            inputs = _if_memory_lasts(partial(prompts, setting))
            if inputs is None:
                for speed in own:
                    speed.fail()
                    finished(speed)
                continue
            single = replace(setting, batch_size=1)
            for i, (_, pruner) in enumerate(runs):
                if (single, i) not in counted:
                    counted[single, i] = _if_memory_lasts(partial(_cost, model, prompts, single, pruner))
                own[i].cost = counted[single, i]
            for number in range(repeats + 1):
                laps = list(zip(own, runs, strict=True))
                for speed, (_, pruner) in laps[:1] if number == 0 and model.device.type == "cpu" else laps:
                    if speed.error is None:
                        lap = _if_memory_lasts(partial(_lap, model, inputs, pruner, setting.new_tokens))
                        _note(speed, lap, warming_up=number == 0)
                        finished(speed)
    return speeds


def _note(speed: Speed, lap: Lap | None, warming_up: bool) -> None:
    if lap is None:
        speed.fail()
    elif not warming_up:
        speed.laps.append(lap)


class _Watch(LogitsProcessor):
    """Notes when `generate()` begins, has the first logits, and ends; on a GPU by events in its own stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if len(self.marks) == 1:
            self.mark()
        return scores

    def seconds(self) -> tuple[float, float]:
        """From the beginning to the first logits, and to the end."""
        begin, first, end = self.marks
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return begin.elapsed_time(first) / 1000, begin.elapsed_time(end) / 1000
        return first - begin, end - begin


@torch.no_grad()
def _lap(model: Any, inputs: Prompts, method: Method, new_tokens: int) -> Lap:
    watch, on_gpu = _Watch(model.device), model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
    with method.attach(model):
        watch.mark()
        output = model.generate(
            **inputs,
            min_new_tokens=new_tokens,  # no token ends an answer
            max_new_tokens=new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([watch]),
        )
        watch.mark()
    made = output.shape[1] - inputs["input_ids"].shape[1]
    if made != new_tokens:
        raise RuntimeError(
            f"the model made {made} new tokens; {new_tokens} were asked for; its speed is not comparable"
        )
    return Lap(*watch.seconds(), torch.cuda.max_memory_allocated(model.device) if on_gpu else None)


def _cost(model: Any, prompts: Callable[[Workload], Prompts], setting: Workload, method: Method) -> Cost:
    return cost_of_prompt(model, prompts(setting), [setting.image_size], method)


def _if_memory_lasts(work: Callable[[], _T]) -> _T | None:
    """What `work` returns, or None if it runs out of memory."""
    try:
        return work()
    except RuntimeError as error:
        # On a CPU PyTorch has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():  # only here is the error gone, and with it the tensors in its traceback
        torch.cuda.empty_cache()
    return None
