"""`gprune serve embedded` in a process of its own, and requests to it."""

from __future__ import annotations

import base64
import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

import requests

from gprune import Keep
from gprune.scenes.benchmark import LONGEST_ANSWER

__all__ = ["requests"]  # what comes with the extra: tests take it from here

SECONDS = 300
KEY = {"Authorization": "Bearer secret"}
"""Of servers that are started with `--api-key secret`; others do not look at it."""


@dataclass(frozen=True)
class Running:
    """A server, by its address and the number of the process that answers there."""

    url: str
    process: int


@contextmanager
def running(log: Path, *options: str, keep: Keep = 0.3) -> Iterator[Running]:
    """A server that has to outlive its requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gprune", "serve", "embedded", "--keep", str(keep), "--port", str(port)]
    command += ["--max-model-len", "1024", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(2**27)]
    command += ["--enforce-eager", *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = Running(f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait(process, server.url, log)
        yield server
        assert process.poll() is None, "the server did not outlive its requests"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def data_url(picture: Image.Image, cut: float = 1.0) -> str:
    """A picture as PNG, or the first part of the file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(data[: int(len(data) * cut)]).decode()


def post(url: str, images: Sequence[Any], question: str, keep: Any = None, **others: Any) -> requests.Response:
    """Ask about images, each a URL or a whole part of a message."""
    parts = [each if isinstance(each, dict) else {"type": "image_url", "image_url": {"url": each}} for each in images]
    body = {
        "model": "embedded",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
        "max_tokens": LONGEST_ANSWER,
        "temperature": 0,
        **({} if keep is None else {"mm_processor_kwargs": {"gprune_keep": keep}}),
        **others,
    }
    return requests.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=SECONDS)
