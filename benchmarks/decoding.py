"""What does a pruner cost every token that is decoded after the prefill?

The embedded model answers a prompt whose image is pruned, and a prompt of text with as many columns in its cache
without a pruner, in turns, so that the LLM does the same work. Times every token, and of it what passes in gprune's own
hooks.

    python benchmarks/decoding.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

import torch
from kernels import record
from PIL import Image

from gprune import GPrune
from gprune.attach.hooks import Hooks
from gprune.evaluate.cells import versions
from gprune.models import EMBEDDED, load
from gprune.prompt import build_inputs

COMMAND = "python benchmarks/decoding.py"
TOKENS, TURNS, WARM = 48, 4, 4
"""Decoded in a turn; turns; tokens of each that are not counted."""
QUESTIONS = ("describe the picture.", "what color is the circle?", "how many shapes are there?", "what is it?")


@dataclass(frozen=True)
class Row:
    """Microseconds of CPU time a token, in hooks of time, medians; `speed`: tokens a second over those without."""

    case: str
    columns: int
    unpruned: float
    pruned: float
    speed: float
    hooks: float


class Clock:
    """A streamer that notes when every token came, and how long hooks took for it."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.hooks: list[float] = []
        self.within = self.last = 0.0

    def put(self, value: Any) -> None:
        """A token came."""
        now = time.thread_time()
        self.tokens.append(1e6 * (now - self.last))
        self.hooks.append(1e6 * self.within)
        self.within, self.last = 0.0, time.thread_time()

    def end(self) -> None:
        """All came."""


@contextmanager
def timed_hooks(clock: Clock) -> Iterator[None]:
    """Have hooks that are put on meanwhile tell the clock how long they took."""

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = hook(*args)
            clock.within += time.perf_counter() - start
            return result

        return call

    before, after = Hooks.before, Hooks.after
    Hooks.before, Hooks.after = timed(before), timed(after)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hooks.before, Hooks.after = before, after  # type: ignore[method-assign]


def decoded(model: Any, prompt: dict[str, Any], clock: Clock) -> int:
    """Decode one turn, and tell how many columns its prompt left in the cache."""
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    output = model.generate(**prompt, **settings, streamer=clock, return_dict_in_generate=True)
    return int(output["cache"].get_seq_length()) - TOKENS + 1


def measure(case: str, model: Any, pruner: GPrune, prompt: dict[str, Any]) -> Row:
    """One case, pruned and unpruned in turns."""
    taken: dict[str, list[float]] = {"unpruned": [], "pruned": [], "hooks": []}
    with pruner(model):
        columns = decoded(model, prompt, Clock())
    text = torch.full((len(prompt["input_ids"]), columns), 20)
    mask = torch.ones_like(text)
    mask[0, 0] = int(len(text) == 1)  # a mask that hides something costs the model too
    for _ in range(TURNS):
        for kind in ("unpruned", "pruned", "hooks"):
            clock = Clock()
            if kind == "unpruned":
                assert decoded(model, {"input_ids": text, "attention_mask": mask}, clock) == columns
            elif kind == "pruned":
                with pruner(model):
                    decoded(model, prompt, clock)
            else:
                with timed_hooks(clock), pruner(model):
                    decoded(model, prompt, clock)
            taken[kind] += (clock.hooks if kind == "hooks" else clock.tokens)[WARM:]
    unpruned, pruned, hooks = (round(statistics.median(taken[kind]), 1) for kind in taken)
    return Row(case, columns, unpruned, pruned, round(unpruned / pruned, 3), hooks)


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """One table."""
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join(
        [
            f"`{COMMAND}`: microseconds of CPU time a decoded token of the embedded model, medians of {TURNS} turns of "
            f"{TOKENS} tokens each (in hooks: of time) on a CPU that others use too, one thread; {where}.",
            "",
            "| case | columns | no pruner | with GPrune | speed | in its hooks |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row.case} | {row.columns} | {row.unpruned:.0f} | {row.pruned:.0f} | {row.speed:.3f} "
                f"| {row.hooks:.1f} |"
                for row in rows
            ),
            "",
            "Turns differed by more than the hooks take: `speed` is that of the machine, not of the hooks, unless "
            "it is idle.",
            "",
        ]
    )


@torch.no_grad()
def main() -> None:
    """Measure, and write results/decoding."""
    torch.set_num_threads(1)
    model, processor = load(EMBEDDED, "cpu")
    noise = torch.randint(256, (128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    one, four = (build_inputs(model, processor, [([picture], each) for each in QUESTIONS[:n]]) for n in (1, 4))
    rows = [
        measure("one prompt", model, GPrune(keep=0.3), one),
        measure("one prompt, positions renumbered", model, GPrune(keep=0.3, positions="contiguous"), one),
        measure("four prompts, padded", model, GPrune(keep=0.3), four),
    ]
    about = versions(("gprune", "torch", "transformers"))
    record("decoding", {"about": about, "rows": [asdict(row) for row in rows]}, markdown(rows, about))


if __name__ == "__main__":
    main()
