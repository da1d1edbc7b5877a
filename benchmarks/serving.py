"""Does a pruned vLLM server answer more requests? And how long does a client wait?

Starts `gprune serve embedded` once and asks it about pictures, eight clients at a time, each request with its own
budget. Rounds at either budget take turns, so that whatever slows the machine slows both. No picture is asked about
twice at a budget: no cache of vLLM knows it.

    python benchmarks/serving.py -o benchmarks/results/serving_cpu

With `--model llava-next-0.5b` it measures another model, another way: see `concurrency.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import concurrency
import requests
from served import PATIENCE, image_part, machine, server

from gprune.scenes.benchmark import samples

KEEPS = (1.0, 0.3)
IMAGES = (1, 6)
CLIENTS, ROUNDS, REQUESTS = 8, 3, 24
"""Requests are of a round."""
ROOM = ("--max-model-len", 2048, "--max-num-seqs", CLIENTS, "--kv-cache-memory-bytes", 2**28)


@dataclass(frozen=True)
class Request:
    """What one request took: seconds, and tokens of its prompt."""

    images: int
    keep: float
    round: int
    seconds: float
    prompt_tokens: int


@dataclass(frozen=True)
class Round:
    """Seconds of a round from its first request to its last answer."""

    images: int
    keep: float
    round: int
    seconds: float


def ask(url: str, body: dict[str, object], images: int, keep: float, number: int) -> Request:
    """Post one request at a budget."""
    body = {**body, "mm_processor_kwargs": {"gprune_keep": keep}}
    started = time.perf_counter()
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE)
    seconds = time.perf_counter() - started
    response.raise_for_status()
    return Request(images, keep, number, seconds, response.json()["usage"]["prompt_tokens"])


def bodies(images: int, count: int) -> list[dict[str, object]]:
    """So many requests, each about pictures of its own; every answer has eight tokens."""
    tests = list(samples("test", images * count))
    return [
        {
            "model": "embedded",
            "messages": [{"role": "user", "content": [*map(image_part, group), {"type": "text", "text": question}]}],
            "max_tokens": 8,
            "ignore_eos": True,
            "temperature": 0,
        }
        for i in range(count)
        for group in [[test.picture for test in tests[i * images : (i + 1) * images]]]
        for question in [tests[i * images].question.question]
    ]


def measure(url: str) -> tuple[list[Round], list[Request]]:
    """All rounds, after one that is not measured."""
    rounds, answered = [], []
    with ThreadPoolExecutor(CLIENTS) as clients:
        for images in IMAGES:
            asked = bodies(images, (ROUNDS + 1) * REQUESTS)
            for number in range(ROUNDS + 1):
                part = asked[number * REQUESTS : (number + 1) * REQUESTS]
                for keep in KEEPS if number % 2 else reversed(KEEPS):
                    started = time.perf_counter()
                    waiting = [clients.submit(ask, url, body, images, keep, number) for body in part]
                    done = [each.result() for each in waiting]
                    if number:
                        rounds.append(Round(images, keep, number, time.perf_counter() - started))
                        answered += done
    return rounds, answered


def table(rounds: Sequence[Round], answered: Sequence[Request]) -> str:
    """Markdown: a line per number of images and budget."""
    lines = ["| images | keep | prompt tokens | requests/s | latency p50 s | p95 s |", "|---|---|---|---|---|---|"]
    for images in IMAGES:
        for keep in KEEPS:
            own = [each for each in answered if (each.images, each.keep) == (images, keep)]
            rates = [REQUESTS / each.seconds for each in rounds if (each.images, each.keep) == (images, keep)]
            seconds = statistics.quantiles([each.seconds for each in own], n=20, method="inclusive")
            lines.append(
                f"| {images} | {keep} | {statistics.fmean(each.prompt_tokens for each in own):.0f} "
                f"| {statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f}) "
                f"| {seconds[9]:.2f} | {seconds[18]:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="without an ending: .json and .md are written")
    parser.add_argument("--model", choices=("embedded", concurrency.MODEL), default="embedded")
    parser.add_argument("--clients", type=_numbers(int), help="of the larger model", default=concurrency.CLIENTS)
    parser.add_argument("--keep", type=_numbers(float), help="of the larger model", default=concurrency.KEEPS)
    given = parser.parse_args()
    if given.model == concurrency.MODEL:
        return concurrency.run(given.output, given.clients, given.keep)
    with server("embedded", "--method", "gprune", "--trust-request-mm-kwargs", *ROOM) as running:
        rounds, answered = measure(running.url)
    about = machine()
    text = (
        f"{table(rounds, answered)}\n\n{CLIENTS} clients, {ROUNDS} rounds of {REQUESTS} requests of 8 new tokens each, "
        f"the embedded model, float32. Requests/s: the median round, in brackets the least and the most.\n\n"
        f"{', '.join(f'{name} {value}' for name, value in about.items())}; load is the mean over the last minute.\n"
    )
    results = {"machine": about, "rounds": list(map(asdict, rounds)), "requests": list(map(asdict, answered))}
    given.output.with_suffix(".json").write_text(json.dumps(results, indent=1))
    given.output.with_suffix(".md").write_text(text)
    print(text)


def _numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    return lambda text: tuple(map(kind, text.split(",")))


if __name__ == "__main__":
    main()
