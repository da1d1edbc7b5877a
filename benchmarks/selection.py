"""What does choosing tokens cost beside the prefill that it shortens?

Times `select` on the visual tokens of a batch of 640 x 480 images, and the unpruned prefill of the language model on
the same number of tokens and 75 of text, in turns: LLaVA-NeXT-8B with random weights on a GPU, the embedded model on
a CPU. Times do not depend on the weights. The row `attach` is all that an attached `random` does between the vision
tower and the language model: the prompts are read, tokens chosen, features and positions shortened.

    python benchmarks/selection.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from kernels import clustered_on, record, seconds
from torch import Tensor

from gprune import Random, View, VisualTokens
from gprune.attach.call import prune
from gprune.attach.encoding import encode_call
from gprune.evaluate.cells import versions
from gprune.evaluate.noise import build_prompts, random_model
from gprune.families.architectures import architecture
from gprune.families.tiling import tiling
from gprune.models import read_config
from gprune.spec import parse_pruner

COMMAND = "python benchmarks/selection.py"
METHODS = ("random", "gprune", "graphvote", "graphcover", "divprune", "mmr", "cdpruner", "scope", "mmtok")
WORDS = 16
KEEP = 0.3
SIZE = (480, 640)
TEXT_TOKENS = 75
BATCHES = (1, 8)
REPEATS = 20


@dataclass(frozen=True)
class Row:
    """A method on a batch of images: median seconds of the selection and of the prefill, and their ratio."""

    method: str
    batch: int
    tokens: int
    selection: float
    prefill: float
    share: float


def visual_tokens(config: Any, batch: int, device: str) -> VisualTokens:
    """The images of a batch, newline rows left out: features of as many regions as those of `kernels.py`."""
    views = tiling(config, SIZE).views
    each = sum(views)
    features = clustered_on(device, batch * each, config.text_config.hidden_size)
    rows = torch.arange(batch * each, device=device)
    parts = rows.split([size for _ in range(batch) for size in views])
    # What some methods read beside the features.
    attention, question = torch.rand(batch * each, device=device), clustered_on(device, WORDS, features.shape[1])
    return VisualTokens(
        features,
        tuple(View(part, image=i // len(views)) for i, part in enumerate(parts)),
        (each,) * batch,
        {"attention": attention},
        (question,) * batch,
    )


def between(net: Any, prompts: dict[str, Tensor], device: str) -> Callable[[], object]:
    """What an attached pruner does with a call whose images are encoded already."""
    run = Random(KEEP).attach(net)
    call: dict[str, Any] = {name: value.to(device) for name, value in prompts.items()}
    call["pixel_values"] = call["pixel_values"].to(net.dtype)
    call, encoded = encode_call(net, call, ["image"])
    return partial(prune, net, run, {**call, "mm_encoder_outputs": encoded}, None)


@torch.no_grad()
def measure(device: str, config: Any) -> list[Row]:
    """Every method and the prefill in turns."""
    net = random_model(config, torch.float32 if device == "cpu" else torch.float16, device)
    language = net.base_model.language_model
    rows = []
    for batch in BATCHES:
        tokens = visual_tokens(config, batch, device)
        length = tokens.sizes[0] + tiling(config, SIZE).newlines + TEXT_TOKENS
        embeddings = torch.zeros(batch, length, config.text_config.hidden_size, dtype=net.dtype, device=device)
        calls: dict[str, Callable[[], object]] = {
            method: partial(parse_pruner(method, KEEP).select, tokens) for method in METHODS
        }
        calls["prefill"] = partial(language, inputs_embeds=embeddings, use_cache=True)
        calls["attach"] = between(net, build_prompts(config, SIZE, TEXT_TOKENS, batch), device)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(REPEATS + 1):
            for name, call in calls.items():
                taken = seconds(call, device)
                if repeat:
                    times[name].append(taken)
        prefill = statistics.median(times.pop("prefill"))
        for method, taken in times.items():
            median = statistics.median(taken)
            rows.append(Row(method, batch, tokens.sizes[0], median, prefill, median / prefill))
    return rows


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """One line per method and batch."""
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [
        f"`{COMMAND}`: medians of {REPEATS}; {KEEP:.0%} kept; {where}.",
        "",
        "| method | batch | visual tokens of an image | selection ms | prefill ms | share |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.method} | {row.batch} | {row.tokens} | {1e3 * row.selection:.3f} | {1e3 * row.prefill:.2f} "
        f"| {row.share:.2%} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure on the GPU if there is one, and write results/selection_cpu or results/selection_cuda."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = "embedded" if device == "cpu" else "llava-next-8b"
    config = read_config(name) if device == "cpu" else architecture(name)
    rows, about = measure(device, config), {"model": name, **versions(("gprune", "torch", "triton"))}
    record(f"selection_{device}", {"about": about, "rows": [asdict(row) for row in rows]}, markdown(rows, about))


if __name__ == "__main__":
    main()
