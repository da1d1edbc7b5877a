"""Eight clients, right and wrong requests in turn, for minutes: is every answer right, and the server still there?

Starts `gprune serve embedded`. Every right answer has to be that of transformers in this process with the same method
and budget; every wrong request has to get a status from 400 to 499; the processes of the server have to be the same in
the end. Prints what was counted, and ends with 1 unless all of it held.

    python benchmarks/load.py --seconds 300
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import requests
from PIL import Image
from served import PATIENCE, data_url, image_part, machine, server

from gprune import Auto
from gprune.prompt import build_inputs
from gprune.scenes.benchmark import LONGEST_ANSWER, Sample, samples
from gprune.scenes.model import load_embedded

CLIENTS = 8
WRONG = 1 / 3
"""Share of the requests."""
KEEPS = (1.0, 0.5, 0.3, 0.1, 40)
EXAMPLES = 24
ROOM = ("--max-model-len", 1024, "--max-num-seqs", CLIENTS, "--kv-cache-memory-bytes", 2**27)


@dataclass(frozen=True)
class Right:
    """A request and its answer in transformers."""

    body: dict[str, Any]
    answer: str


def body(picture: Image.Image, question: str, keep: float) -> dict[str, Any]:
    """A right request."""
    return {
        "model": "embedded",
        "messages": [{"role": "user", "content": [image_part(picture), {"type": "text", "text": question}]}],
        "max_tokens": LONGEST_ANSWER,
        "temperature": 0,
        "mm_processor_kwargs": {"gprune_keep": keep},
    }


def right_ones(examples: Sequence[Sample]) -> list[Right]:
    """Every example at every budget."""
    model, processor = load_embedded()
    found = []
    for example in examples:
        inputs = build_inputs(model, processor, [([example.picture], example.question.question)])
        length = inputs["input_ids"].shape[1]
        for keep in KEEPS:
            with Auto(keep, positions="contiguous")(model):
                output = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            answer = processor.decode(output[0, length:], skip_special_tokens=True).strip()
            found.append(Right(body(example.picture, example.question.question, keep), answer))
    return found


def wrong_ones(example: Sample) -> dict[str, dict[str, Any]]:
    """Requests that no server may take, by what is wrong."""
    right = body(example.picture, example.question.question, 0.5)

    def showing(url: str, **part: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}, **part}]}]}

    url = data_url(example.picture)
    changes: dict[str, dict[str, Any]] = {
        "a budget of nothing": {"mm_processor_kwargs": {"gprune_keep": 0}},
        "a budget above all": {"mm_processor_kwargs": {"gprune_keep": 1.5}},
        "a budget in words": {"mm_processor_kwargs": {"gprune_keep": "half"}},
        "another argument of the processor": {"mm_processor_kwargs": {"size": {"shortest_edge": 8}}},
        "half a picture": showing(url[: len(url) // 2]),
        "no picture": showing("data:image/png;base64,bm8gcGljdHVyZQ=="),
        "an address inside": showing("http://127.0.0.1:1/secret.png"),
        "a file of the server": showing("file:///etc/hostname"),
        "a name of a picture": showing(url, uuid="mine"),
        "a picture of many pixels": showing(data_url(Image.new("1", (8000, 8000)))),
        "too many pictures": {"messages": [{"role": "user", "content": [image_part(example.picture)] * 30}]},
        "another model": {"model": "another"},
        "no tokens": {"max_tokens": 0},
        "a wrong temperature": {"temperature": -1},
        "a wrong expression": {"structured_outputs": {"regex": "(("}},
    }
    keeps_all = {"too many pictures": {"mm_processor_kwargs": {"gprune_keep": 1.0}}}
    return {name: {**right, **change, **keeps_all.get(name, {})} for name, change in changes.items()}


def client(url: str, right: Sequence[Right], wrong: dict[str, dict[str, Any]], until: float, seed: int) -> Counter[str]:
    """Ask until the time is over; what came of it, in words."""
    draw, seen = random.Random(seed), Counter[str]()
    while time.monotonic() < until:
        if draw.random() < WRONG:
            name = draw.choice(list(wrong))
            status = _post(url, wrong[name]).status_code
            good = 400 <= status < 500
            seen["wrong requests refused" if good else f"FAULT: {name} got {status}"] += 1
        else:
            asked = draw.choice(right)
            response = _post(url, asked.body)
            if not response.ok:
                seen[f"FAULT: a right request got {response.status_code}"] += 1
                continue
            answer = response.json()["choices"][0]["message"]["content"].strip()
            seen["right answers" if answer == asked.answer else "FAULT: another answer"] += 1
    return seen


def _post(url: str, content: dict[str, Any]) -> requests.Response:
    return requests.post(f"{url}/v1/chat/completions", json=content, timeout=PATIENCE)


def processes(server: int) -> set[tuple[int, float]]:
    """The server's, by number and when each began."""
    parent = psutil.Process(server)
    return {(each.pid, each.create_time()) for each in (parent, *parent.children(recursive=True))}


def main() -> None:
    """Ask, count, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    seconds = parser.parse_args().seconds
    examples = list(samples("test", EXAMPLES))
    right, wrong = right_ones(examples), wrong_ones(examples[0])
    with server("embedded", "--trust-request-mm-kwargs", *ROOM) as running, ThreadPoolExecutor(CLIENTS) as pool:
        before, until = processes(running.process), time.monotonic() + seconds
        waiting = [pool.submit(client, running.url, right, wrong, until, seed) for seed in range(CLIENTS)]
        counts = sum((each.result() for each in waiting), Counter[str]())
        gone = len(before - processes(running.process))
    counts["FAULT: processes of the server that ended"] += gone
    print(f"{CLIENTS} clients, {seconds:.0f} s; {', '.join(f'{name} {value}' for name, value in machine().items())}")
    for name, count in sorted((+counts).items()):
        print(f"{count:7} {name}")
    if not counts["right answers"] or not counts["wrong requests refused"] or any("FAULT" in name for name in +counts):
        sys.exit(1)


if __name__ == "__main__":
    main()
