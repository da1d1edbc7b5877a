"""What the tests of batch jobs share: they are skipped without Ray; pictures, tables, and answers of a plain loop."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

ray = pytest.importorskip("ray", reason="needs the extra ray: make test-batch")

import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import requests  # noqa: E402

from gprune import Auto  # noqa: E402
from gprune.batch.engine import Ask  # noqa: E402
from gprune.evaluate.answers import Response  # noqa: E402
from gprune.prompt import build_inputs  # noqa: E402
from gprune.scenes.benchmark import samples  # noqa: E402
from gprune.scenes.model import load_embedded  # noqa: E402

__all__ = ["pa", "pd", "pq", "ray", "requests"]  # what comes with the extra: tests take it from here

QUESTION = "how many shapes are there?"
NEW_TOKENS = 6


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray with room for two workers, for all jobs of a test session."""
    modules = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # where workers find the engine below
    ray.init(
        "local", num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False, runtime_env=modules
    )
    yield
    ray.shutdown()


@cache
def scenes(number: int) -> list[tuple[bytes, str]]:
    """Pictures as PNG, each with its question."""
    return [(png(each.picture), each.question.question) for each in samples("test", number)]


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def corrupt(picture: bytes, how: int) -> bytes:
    """A damaged file: cut, of zeros, of text, or empty."""
    return (picture[: len(picture) // 2], bytes(len(picture)), b"no picture", b"")[how % 4]


def write_folder(folder: Path, count: int, bad: Sequence[int] = ()) -> Path:
    """So many pictures in two folders, the `bad` ones damaged."""
    for i, (picture, _) in enumerate(scenes(count)):
        path = folder / ("a", "b/c")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(corrupt(picture, i) if i in bad else picture)
    return folder


def write_parquet(path: Path, rows: dict[str, Any], group: int = 10**6) -> Path:
    pq.write_table(pa.table(rows), path, row_group_size=group)
    return path


@torch.no_grad()
def answer_one_by_one(asked: Sequence[tuple[bytes, str]], keep: float) -> list[tuple[str, int, float]]:
    """Response, and visual tokens before and after pruning, of pictures that can be read, by a plain loop."""
    model, processor = load_embedded()
    answers = []
    with Auto(keep)(model) as run:
        for picture, question in asked:
            inputs = build_inputs(model, processor, [([Image.open(io.BytesIO(picture)).convert("RGB")], question)])
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers.append((text.strip(), run.images[0].n_before, float(run.images[0].n_after)))
    return answers


@dataclass(frozen=True)
class Stub:
    """An engine that answers with the size of the picture and the number of its process, or does something else.

    Args:
        does: "fail to start", "fail", "die" or "warn"; or a folder, where a worker waits in each of its first three
            batches until another one has come as far.
    """

    does: str = ""

    on_gpu: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        return {"engine": "stub"}

    def check(self) -> None: ...

    def start(self) -> Ask:
        if self.does == "fail to start":
            raise ValueError("the model\nis too large")
        batches = count()

        def ask(asked: Sequence[tuple[Image.Image, str]]) -> list[Response]:
            if self.does == "fail":
                raise RuntimeError("the GPU is lost")
            if self.does == "die":
                os._exit(9)
            if self.does == "warn":
                warnings.warn("nearly all pairs are edges", stacklevel=1)
            if self.does.startswith("/") and (number := next(batches)) < 3:
                meet(Path(self.does), number)
            return [
                Response(f"{picture.width}x{picture.height} {question} {os.getpid()}") for picture, question in asked
            ]

        return ask


def meet(folder: Path, number: int) -> None:
    (folder / f"{os.getpid()}-{number}").touch()
    end = time.monotonic() + 100
    while len(list(folder.glob(f"*-{number}"))) < 2:
        if time.monotonic() > end:
            raise RuntimeError(f"alone in batch {number}")
        time.sleep(0.01)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The output as any reader of Parquet folders sees it, by id."""
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["id"])
