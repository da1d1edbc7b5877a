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
        fatal: width of a picture by which it dies, as vLLM does: status 500 to all that is under way, then silence.
        health: status of /health.

    Attributes:
        requests: all bodies that came.
        most: requests that were answered at once.
    """

    daemon_threads = True

    def __init__(
        self, troubles: dict[int, list[int]] | None = None, fatal: int | None = None, health: int = 200
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.troubles = troubles or {}
        self.fatal, self.health = fatal, health
        self.dead = False
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
        if self.server.dead:  # also over a connection that was open before
            self.close_connection = True
            return
        status = self.server.health if self.path == "/health" else 200
        self._send(status, {"data": [{"id": "llava"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if server.dead:
            self.close_connection = True
            return
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
        server.dead = server.dead or image.width == server.fatal
        if server.dead:
            self._send(500, {"error": {"message": "EngineCore encountered an issue"}})
            self.close_connection = True
            server.socket.close()
            return
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


if __name__ == "__main__":  # in a process of its own, that can be killed
    alone = StandIn()
    print(alone.url, flush=True)
    alone.serve_forever()
