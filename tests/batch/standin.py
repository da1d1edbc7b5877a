"""A small server that speaks as much of OpenAI's protocol as a batch job uses, in a thread of the tests."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


class StandIn(ThreadingHTTPServer):
    """Answers a question with the size of its picture.

    Args:
        troubles: statuses that each picture of a width gets first, one after the other.

    Attributes:
        requests: all bodies that came.
        most: requests that were answered at once.
    """

    daemon_threads = True

    def __init__(self, troubles: dict[int, list[int]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.troubles = troubles or {}
        self.requests: list[dict[str, Any]] = []
        self.tried: Counter[int] = Counter()
        self.at_work = self.most = 0
        self.lock = threading.Lock()
        self.all_at_work = threading.Barrier(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serving(server: StandIn) -> Iterator[StandIn]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "llava"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        picture, text = body["messages"][0]["content"]
        kind, _, data = picture["image_url"]["url"].partition(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (self.path, kind, image.format, image.mode) == (
            "/v1/chat/completions",
            "data:image/png",
            "PNG",
            "RGB",
        )
        with server.lock:
            server.requests.append(body)
            number = server.tried[image.width]
            server.tried[image.width] += 1
        server.all_at_work.wait(20)
        troubles = server.troubles.get(image.width, [])
        if number < len(troubles):
            self._send(troubles[number], {"error": {"message": f"no to {image.width}"}})
            return
        answer = f" {image.width}x{image.height} {text['text']} {image.getpixel((0, 0))}\n"
        self._send(200, {"choices": [{"message": {"content": answer}}], "usage": {"prompt_tokens": 7}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...
