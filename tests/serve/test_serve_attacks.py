"""`gprune serve embedded` under attack, as its documentation starts it: the attacker is told so, and nobody else."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import KEY, Running, data_url, post, requests, running
from engines import picture
from PIL import Image

QUESTION = "what is there?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server") / "log", "--api-key", "secret") as server:
        yield server


@pytest.fixture
def listener() -> Iterator[tuple[int, list[Any]]]:
    """A service inside, by its port, and who connected to it."""
    visitors: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as service:

        def accept() -> None:
            try:
                while True:
                    connection, address = service.accept()
                    visitors.append(address)
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield service.getsockname()[1], visitors
        service.shutdown(socket.SHUT_RDWR)
    thread.join()


def refused(response: requests.Response) -> str:
    """The reason."""
    assert response.status_code == 400, response.text
    return str(response.json()["error"]["message"])


def test_no_other_address_is_listened_to(server: Running) -> None:
    assert requests.get(f"{server.url}/health", timeout=30).ok
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url.replace('127.0.0.1', '127.0.0.2')}/health", timeout=30)


def test_who_has_no_key_gets_nothing(server: Running) -> None:
    """At no path that the server tells of, nor at those that it hides."""
    paths = requests.get(f"{server.url}/openapi.json", headers=KEY, timeout=30).json()["paths"]
    assert {"/invocations", "/tokenize", "/v1/chat/completions"} <= paths.keys()
    body = {"model": "embedded", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2, "prompt": "a"}
    for path in {
        *paths,
        "/",
        "/docs",
        "/openapi.json",
        "/inference/v1/generate",
        "//invocations",
        "/health/../invocations",
    }:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            response = requests.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)
            wanted = (200, 405) if path in ("/health", "/ping", "/metrics") else (401,)
            assert response.status_code in wanted, (path, response.text)
    answer = requests.post(f"{server.url}/invocations", json=body, headers=KEY, timeout=60)
    assert answer.status_code == 200, answer.text


WRONG: list[dict[str, Any]] = [
    {"top_logprobs": 10**6, "logprobs": True},
    {"prompt_logprobs": 10**6},
    {"n": 0},
    {"temperature": -1},
    {"top_p": 2},
    {"repetition_penalty": -1},
    {"max_tokens": 0},
    {"max_tokens": 10**6},
    {"min_tokens": 10**3},
    {"logit_bias": {"99999999": 1}},
    {"allowed_token_ids": [10**9]},
    {"stop_token_ids": [-5]},
    {"stop": [""]},
    {"structured_outputs": {"regex": "(("}},
    {"structured_outputs": {"choice": []}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
    {"use_beam_search": True, "n": 10**6},
    {"stream": True, "n": 0},
    {"truncate_prompt_tokens": 1},
    {"mm_processor_kwargs": {"gprune_keep": 0}},
    {"messages": [{"role": "user", "content": "long " * 2000}]},
]


def test_a_refused_request_costs_nobody_else(server: Running) -> None:
    """The same new picture, asked about rightly after it was asked about wrongly, and twice: also from a cache."""
    for i, wrong in enumerate(WRONG):
        image = data_url(picture(64, 64, seed=500 + i))
        assert refused(post(server.url, [image], QUESTION, **wrong)), wrong
        for _ in range(2):
            right = post(server.url, [image], QUESTION)
            assert right.status_code == 200, (wrong, right.text)
    image = data_url(picture(64, 64, seed=499))
    assert "maximum context length" in refused(post(server.url, [image] * 30, QUESTION))
    assert post(server.url, [image], QUESTION).status_code == 200


def test_the_inside_is_not_fetched_from(server: Running, listener: tuple[int, list[Any]]) -> None:
    port, visitors = listener
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    hosts = (
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "a:b@127.0.0.1",
    )
    said = set()
    for host in (*hosts, "a:b@127.0.0.1"):
        for number in (port, closed):
            url = f"http://{host}:{number}/secret.png"
            said.add(refused(post(server.url, [url], QUESTION)).replace(url, "URL"))
    assert len(said) == 1 and "no public address answers there" in said.pop()
    for part in (
        {"image_url": f"http://127.0.0.1:{port}/"},
        {"type": "image_pil", "image_pil": f"http://127.0.0.1:{port}/"},
    ):
        refused(post(server.url, [part], QUESTION))
    message = {"role": "user", "content": [{"type": "input_image", "image_url": f"http://127.0.0.1:{port}/"}]}
    for path, body in {"responses": {"input": [message]}, "chat/completions": {"messages": [message]}}.items():
        refused(requests.post(f"{server.url}/v1/{path}", json={"model": "embedded", **body}, headers=KEY, timeout=60))
    assert not visitors


def test_the_disk_is_not_read(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    picture(64, 64, seed=600).save(path)
    for url in (path.as_uri(), str(path), f"file://localhost{path}"):
        refused(post(server.url, [url], QUESTION))
        reason = refused(post(server.url, [{"type": "image_pil", "image_pil": url}], QUESTION))
        assert "an image is a str; accepted are pictures" in reason


def test_a_picture_is_known_by_what_it_shows(server: Running) -> None:
    """Not by a name, under which one client could get what another sent."""
    first, second = (data_url(picture(64, 64, seed=seed)) for seed in (610, 611))
    for url in (first, second, None):
        part = {"type": "image_url", "image_url": None if url is None else {"url": url}, "uuid": "mine"}
        assert "named by a uuid, which this server does not accept" in refused(post(server.url, [part], QUESTION))
    assert post(server.url, [second], QUESTION).status_code == 200


def encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_small_files_of_large_pictures_take_no_memory(server: Running) -> None:
    bomb = encoded(Image.new("1", (13_000, 13_300)), "PNG")
    assert len(bomb) < 100_000
    assert post(server.url, [data_url(picture(64, 64, seed=620))], QUESTION).status_code == 200
    before = peak(server.process)
    for images in ([bomb] * 4, [encoded(Image.new("1", (9_000, 5_000)), "TIFF")]):
        assert "accepted are at most 40,000,000 pixels" in refused(post(server.url, images, QUESTION))
    assert peak(server.process) - before < 100 * 2**20


def peak(process: int) -> int:
    """The most bytes of memory that a process had so far."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_what_is_no_picture_is_told_so(server: Running) -> None:
    """In the formats of people, with the status of a wrong request, whatever it is."""
    image = picture(64, 64, seed=630)
    for url in (
        *(encoded(image, kind) for kind in ("EPS", "PDF", "SGI", "TGA", "ICO")),
        *(data_url(image, cut=part) for part in (0.9, 0.5, 0.01, 0)),
        *("data:image/png,abc", "data:image/png", "ftp://127.0.0.1/a.png", "nonsense", "http://[/", "http://x:99999/"),
        *("file:///", "data:image/png;base64,\0", "http://"),
    ):
        assert "cannot be read" in refused(post(server.url, [url], QUESTION)), url
    for size in ((1, 1), (1, 5000), (5000, 1)):
        assert post(server.url, [data_url(Image.new("RGB", size))], QUESTION).status_code == 200
