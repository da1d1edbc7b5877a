"""A LLM of half a billion parameters served: how much sooner it answers, and in how little KV cache, at each budget.

Starts `gprune serve` once with the shape of `gprune bench` on a CPU, `llava-next-0.5b`, and asks it about one picture a
request, from one to 32 clients at a time. The budgets take turns at every number of clients, so that whatever slows the
machine slows all of them. Weights are random, drawn once into build/: their answers mean nothing, their speed does.

    python benchmarks/serving.py --model llava-next-0.5b -o benchmarks/results/serving_half_b
"""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import torch
from served import PATIENCE, image_part, machine, server

from gprune.evaluate.noise import random_model
from gprune.families.architectures import architecture
from gprune.scenes.benchmark import samples
from gprune.scenes.model import IMAGE, build_processor

MODEL = "llava-next-0.5b"
KEEPS = (1.0, 0.5, 0.3, 0.1)
CLIENTS = (1, 8, 32)
FEWEST = 2
"""Requests of a cell, where there are not more clients than that."""
SIZE = 112, 336
"""(width, height) of a picture in pixels: the whole of it, and two tiles with a strip of it, 630 visual tokens. Narrow,
so that all of it ends within a quarter of an hour on two cores."""
NEW_TOKENS = 8
OFTEN = 0.1
"""Seconds between two looks at the server's metrics."""
BLOCK = 32
"""Tokens of a block of the KV cache: the fewest that vLLM allows on a CPU."""
ROOM = (
    "--max-model-len",
    2560,
    "--max-num-seqs",
    max(CLIENTS),
    "--kv-cache-memory-bytes",
    2**30,
    "--block-size",
    BLOCK,
)


@dataclass(frozen=True)
class Answer:
    """What one request took: seconds to the first token and to the last, and the tokens of its prompt."""

    clients: int
    keep: float
    first_token: float
    seconds: float
    prompt_tokens: int


@dataclass(frozen=True)
class Cell:
    """So many clients at a budget: seconds from the first request to the last answer, and the most KV blocks in use."""

    clients: int
    keep: float
    requests: int
    seconds: float
    blocks: int


def checkpoint(folder: Path) -> Path:
    """A folder with the shape in random weights, bfloat16, drawn if it is not there."""
    if not folder.exists():
        config = architecture(MODEL)
        config.image_token_index = IMAGE  # of the tokenizer that comes with it
        tower = config.vision_config
        processor = build_processor()
        processor.patch_size = tower.patch_size
        pictures = processor.image_processor
        pictures.size = {"shortest_edge": tower.image_size}
        pictures.crop_size = {"height": tower.image_size, "width": tower.image_size}
        pictures.image_grid_pinpoints = config.image_grid_pinpoints
        torch.manual_seed(0)
        part = folder.with_name(f"{folder.name}.part")
        random_model(config, torch.bfloat16, "cpu").save_pretrained(part)
        processor.save_pretrained(part)
        part.rename(folder)
    return folder


def ask(url: str, body: dict[str, object], keep: float, clients: int) -> Answer:
    """Post one request at a budget, and listen to its tokens."""
    body = {**body, "mm_processor_kwargs": {"gprune_keep": keep}}
    started, first, usage = time.perf_counter(), 0.0, None
    with requests.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE, stream=True) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            data = line.removeprefix(b"data: ")
            if not data or data == b"[DONE]":
                continue
            first = first or time.perf_counter()
            event = json.loads(data)
            if "error" in event:
                raise SystemExit(f"the server answers with an error: {event['error']}")
            usage = event.get("usage") or usage
    assert usage is not None and usage["completion_tokens"] == NEW_TOKENS
    return Answer(clients, keep, first - started, time.perf_counter() - started, usage["prompt_tokens"])


def bodies(count: int) -> list[dict[str, object]]:
    """So many requests, each about a picture of its own."""
    return [
        {
            "model": MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        image_part(test.picture.resize(SIZE)),
                        {"type": "text", "text": test.question.question},
                    ],
                }
            ],
            "max_tokens": NEW_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for test in samples("test", count)
    ]


def blocks_in_use(url: str) -> int:
    """How many blocks of the KV cache hold tokens of requests that are being answered."""
    text = requests.get(f"{url}/metrics", timeout=PATIENCE).text
    used = re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", text, re.MULTILINE)
    blocks = re.search(r'^vllm:cache_config_info\{.*num_gpu_blocks="(\d+)"', text, re.MULTILINE)
    assert used is not None and blocks is not None, "the server does not tell of its KV cache"
    return round(float(used[1]) * (int(blocks[1]) - 1))  # vLLM's share is one of all blocks but the empty one


@contextmanager
def watched(url: str) -> Iterator[list[int]]:
    """The blocks in use, looked at again and again until the context ends."""
    seen, done = [blocks_in_use(url)], threading.Event()

    def look() -> None:
        while not done.wait(OFTEN):
            seen.append(blocks_in_use(url))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def measure(url: str, clients: Sequence[int], keeps: Sequence[float]) -> tuple[list[Cell], list[Answer]]:
    """All cells, after one request at each budget that is not measured."""
    cells, answers = [], []
    counts = {number: max(number, FEWEST) for number in clients}
    first, *asked = bodies(1 + sum(counts.values()))
    for keep in keeps:
        ask(url, first, keep, 1)
    for number, count in counts.items():
        part, asked = asked[:count], asked[count:]
        for keep in keeps:
            with ThreadPoolExecutor(number) as pool, watched(url) as seen:
                started = time.perf_counter()
                waiting = [pool.submit(ask, url, body, keep, number) for body in part]
                answers += [each.result() for each in waiting]
                seconds = time.perf_counter() - started
            cells.append(Cell(number, keep, count, seconds, max(seen)))
    return cells, answers


def table(cells: Sequence[Cell], answers: Sequence[Answer]) -> str:
    """Markdown: a line per number of clients and budget."""
    lines = [
        "| clients | keep | prompt tokens | requests | requests/s | first token s | most s | answer s | KV blocks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        own = [each for each in answers if (each.clients, each.keep) == (cell.clients, cell.keep)]
        first = [each.first_token for each in own]
        lines.append(
            f"| {cell.clients} | {cell.keep} | {statistics.fmean(each.prompt_tokens for each in own):.0f} "
            f"| {cell.requests} | {cell.requests / cell.seconds:.2f} | {statistics.median(first):.2f} "
            f"| {max(first):.2f} | {statistics.median(each.seconds for each in own):.2f} | {cell.blocks} |"
        )
    return "\n".join(lines)


def run(output: Path, clients: Sequence[int], keeps: Sequence[float]) -> None:
    """Measure and write the results; prints them too."""
    folder = checkpoint(Path(__file__).parents[1] / "build" / MODEL)
    options = ("--dtype", "float32", "--served-model-name", MODEL, "--trust-request-mm-kwargs")
    with server(folder, "--method", "gprune", *options, *ROOM) as running:
        cells, answers = measure(running.url, clients, keeps)
    about = machine()
    text = (
        f"{table(cells, answers)}\n\n{MODEL} with random weights, float32; one picture of {SIZE[0]} x {SIZE[1]} pixels "
        f"a request, {NEW_TOKENS} new tokens. Seconds are medians; the first token's begin with the request, waiting "
        f"in the line included. KV blocks: the most in use at once, of {BLOCK} tokens each.\n\n"
        f"{', '.join(f'{name} {value}' for name, value in about.items())}\n"
    )
    results = {"machine": about, "cells": list(map(asdict, cells)), "answers": list(map(asdict, answers))}
    output.with_suffix(".json").write_text(json.dumps(results, indent=1))
    output.with_suffix(".md").write_text(text)
    print(text)
