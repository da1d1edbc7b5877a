"""Which pictures `gprune serve` fetches and reads, by its connector alone: names, redirects, addresses, formats."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from vllm.multimodal.media.image import ImageMediaIO

from gprune.images import read_rgb
from gprune.serve import media
from gprune.serve.media import PublicConnection, PublicConnector, UnreadableMedia, is_public

PUBLIC, INSIDE = "127.0.0.1", "127.0.0.2"
"""Two addresses of this machine, of which the tests take the first for one of the internet."""


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2001:0:7f00:1::", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "ff02::1", "2001:db8::1"),
    ],
)
def test_addresses_of_the_inside(address: str) -> None:
    assert not is_public(address)


class Site(ThreadingHTTPServer):
    """Shows a picture, but sends on from /to/ADDRESS, and has nothing at /missing."""

    daemon_threads = True

    def __init__(self, host: str, port: int = 0) -> None:
        super().__init__((host, port), _Pages)
        self.visits = 0


class _Pages(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.visits += 1
        target = self.path.removeprefix("/to/")
        status = 404 if self.path == "/missing" else 200 if target == self.path else 302
        self.send_response(status)
        self.send_header("Location", target)
        self.end_headers()
        if status == 200:
            self.wfile.write(PNG)

    def log_message(self, *_: Any) -> None: ...


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PNG = encoded("PNG")


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Site]]:
    """One at an address that counts as public, and one inside, at the same port."""
    outer = Site(PUBLIC)
    inner = Site(INSIDE, outer.server_port)
    monkeypatch.setattr(media, "is_public", lambda address: address == PUBLIC)
    threads = [threading.Thread(target=site.serve_forever, args=(0.05,)) for site in (outer, inner)]
    for thread in threads:
        thread.start()
    yield outer, inner
    for site, thread in zip((outer, inner), threads, strict=True):
        site.shutdown()
        thread.join()
        site.server_close()


def fetch(*urls: str, **options: Any) -> list[Any]:
    """Pictures, or why there are none, one after the other over the same connection."""

    async def each() -> list[Any]:
        connector = PublicConnector(**options)
        connector.connection = PublicConnection()
        results = [(await asyncio.gather(connector.fetch_image_async(url), return_exceptions=True))[0] for url in urls]
        if connector.connection._async_client is not None:
            await connector.connection._async_client.close()
        return results

    return asyncio.run(each())


def refusal(url: str, **options: Any) -> str:
    [error] = fetch(url, **options)
    assert isinstance(error, UnreadableMedia), error
    return str(error).replace(url[: media.QUOTED], "URL")


def test_a_public_picture_is_fetched(sites: tuple[Site, Site]) -> None:
    outer, _ = sites
    url = f"http://{PUBLIC}:{outer.server_port}"
    for found in fetch(f"{url}/a.png", f"{url}/to/{url}/b.png", f"{url}/to//c.png"):
        assert np.array_equal(found.media, read_rgb(io.BytesIO(PNG))) and found.original_bytes == PNG
    assert outer.visits == 5


def test_the_inside_is_not_reached(sites: tuple[Site, Site]) -> None:
    """By any way to write it, a redirect, or a name; and whether something listens there cannot be told."""
    outer, inner = sites
    port = inner.server_port
    with socket.socket() as free:
        free.bind((INSIDE, 0))
        closed = free.getsockname()[1]
    urls = [f"http://{INSIDE}:{port}/", f"http://{INSIDE}:{closed}/", f"https://{INSIDE}:{port}/", "http://127.2:1/"]
    urls += [f"http://{host}:{port}/" for host in ("[::ffff:127.0.0.2]", "[::1]", "0x7f.2", "0.0.0.0", "2130706434")]
    urls += [f"http://{PUBLIC}:{outer.server_port}/to/{url}" for url in urls]
    said = {refusal(url) for url in urls}
    assert len(said) == 1 and "no public address answers there" in said.pop()
    assert inner.visits == 0


def test_a_name_that_means_another_address_a_moment_later(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = sites
    asked: list[str] = []
    answers = iter([[PUBLIC], [INSIDE], [INSIDE, PUBLIC]])

    async def resolve(self: Any, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        asked.append(host)
        found = {"hostname": host, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [{**found, "host": address} for address in next(answers)]

    monkeypatch.setattr("aiohttp.connector.DefaultResolver.resolve", resolve)
    names = [f"http://{name}.example:{outer.server_port}/" for name in "abc"]
    first, second, mixed = fetch(*names)
    assert np.array_equal(first.media, read_rgb(io.BytesIO(PNG)))
    assert "no public address" in str(second) and "no public address" in str(mixed)
    assert (outer.visits, inner.visits) == (1, 0) and asked == ["a.example", "b.example", "c.example"]


def test_proxies_are_not_asked(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = sites
    monkeypatch.setenv("http_proxy", f"http://{INSIDE}:{inner.server_port}")
    [found] = fetch(f"http://{PUBLIC}:{outer.server_port}/a.png")
    assert found.original_bytes == PNG and inner.visits == 0


def test_what_else_is_refused(sites: tuple[Site, Site], tmp_path: Any) -> None:
    outer, _ = sites
    url = f"http://{PUBLIC}:{outer.server_port}"
    (tmp_path / "a.png").write_bytes(PNG)
    assert "answers with status 404" in refusal(f"{url}/missing")
    assert "allowed domains" in refusal(f"{url}/a.png", allowed_media_domains=["example.org"])
    assert "--allowed-local-media-path" in refusal((tmp_path / "a.png").as_uri())
    [found] = fetch((tmp_path / "a.png").as_uri(), allowed_local_media_path=str(tmp_path))
    assert found.original_bytes == PNG
    assert "HTTP, data or file URL" in refusal("ftp://127.0.0.1/a.png")
    assert "options for images" in refusal(f"{url}/a.png", media_io_kwargs={"image": {"image_mode": None}})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,***", "base64"),
        ("data:image/png;base64,", "it is no picture"),
        (PNG[: len(PNG) // 2], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "it is no picture"),
        (encoded("SGI"), "it is no picture"),
        (encoded("TGA"), "it is no picture"),
    ],
)
def test_broken_pictures(url: str | bytes, reason: str) -> None:
    if isinstance(url, bytes):
        url = "data:image/png;base64," + base64.b64encode(url).decode()
    assert reason in refusal(url)


def test_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(256 * 256))
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    [found] = fetch(url)
    assert found.media.size == (256, 256)
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(256 * 256 - 1))
    assert "it has 256 x 256 pixels; accepted are at most 65,535 pixels" in refusal(url)


class Budget:
    """As vLLM has one for every request from 0.33 on."""

    def __init__(self, left: int) -> None:
        self.left = left

    def charge(self, decoded: int) -> None:
        if decoded > self.left:
            raise ValueError("Request decoded media exceeds VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES")
        self.left -= decoded


def test_what_the_pictures_of_a_request_take_together_is_counted() -> None:
    url, pixels = "data:image/png;base64," + base64.b64encode(PNG).decode(), 256 * 256
    media_io: Any = ImageMediaIO()
    media_io.decoded_budget = Budget(pixels * 4 + 1)
    assert asyncio.run(PublicConnector().load_from_url_async(url, media_io)).media.size == (256, 256)
    assert media_io.decoded_budget.left == 1
    with pytest.raises(UnreadableMedia, match="exceeds VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES"):
        asyncio.run(PublicConnector().load_from_url_async(url, media_io))


REGISTERED = """
import os
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
from gprune.serve.plugin import register
register()
print(*MEDIA_CONNECTOR_REGISTRY.name2class)
os.environ["VLLM_MEDIA_CONNECTOR"] = "gprune"
register()
print(*MEDIA_CONNECTOR_REGISTRY.name2class)
"""


def test_vllm_fetches_as_ever_unless_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", REGISTERED], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["http", "http gprune"], done.stderr
