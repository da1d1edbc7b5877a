"""Pictures from the web and from standard input: the same answer as from a file, or a line that says what is wrong."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Run

import gprune.cli.opening as opening


class Server(BaseHTTPRequestHandler):
    """Gives what it is asked for."""

    picture = b""

    def do_GET(self) -> None:
        if self.path == "/moved.png":
            return self._answer(302, b"", Location="/picture.png")
        if self.path == "/elsewhere.png":
            return self._answer(302, b"", Location="ftp://localhost/picture.png")
        if self.path == "/gone.png":
            return self._answer(404, b"")
        self._answer(200, {"/picture.png": self.picture, "/text.png": b"no picture"}.get(self.path, b""))

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address(photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    Server.picture = photos["coffee"].read_bytes()
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_picture_from_anywhere_gives_the_same_rows(
    run: Run, photos: dict[str, Path], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Server.picture), isatty=lambda: False))
    rows = []
    for name in (photos["coffee"], f"{address}/picture.png", f"{address}/moved.png", "-"):
        result = run("ask", name, "what color is the cup?", "--json", "--max-new-tokens", "4")
        assert result.code == 0, result.err
        rows.append({**result.rows[0], "seconds": 0})
    assert rows[1:] == rows[:1] * 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/gone.png", "its server answers with status 404"),
        ("/elsewhere.png", "ftp"),
        ("/text.png", "is no picture; accepted are pictures in the formats PNG"),
        ("/empty.png", "is empty; accepted are"),
    ],
)
def test_what_a_server_does_not_give(run: Run, nothing_loads: None, address: str, path: str, reason: str) -> None:
    result = run("show", address + path)
    assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1
    assert result.err.startswith(f"gprune: {address}{path} ") and reason in result.err


def test_what_is_too_large_is_not_read_to_its_end(
    run: Run, nothing_loads: None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MAX_RECEIVED", 1000)
    result = run("ask", f"{address}/picture.png", "hi")
    assert result.code == 2 and "has more than 1,000 bytes" in result.err


def test_a_silent_server_is_not_waited_for(run: Run, nothing_loads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(opening, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.png"
        result = run("ask", url, "hi")
    assert result.code == 2 and "its server is silent for 0.2 seconds" in result.err
    refused = run("ask", url, "hi")
    assert refused.code == 2 and "refused" in refused.err


def test_a_download_has_an_end(run: Run, nothing_loads: None, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "DOWNLOAD", -1.0)
    result = run("ask", f"{address}/picture.png", "hi")
    assert result.code == 2 and "is not there after" in result.err


def test_a_keyboard_is_no_picture(run: Run, nothing_loads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    result = run("ask", "-", "hi")
    assert result.code == 2 and "nothing is piped into standard input" in result.err
