"""What a server says of itself to everybody."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest

import gprune
from gprune.serve.families import EXPERIMENTAL, SERVED
from gprune.serve.status import HealthTells, in_a_line, served

OVERRIDES = {"architectures": [SERVED["llava"]], "gprune_method": "auto", "gprune_keep": 0.3}


def answer(
    path: str, status: int = 200, parts: tuple[bytes, ...] = (b"",), overrides: Any = OVERRIDES, **scope: Any
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of a request to a server that answers with this status and these parts of a body."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-length", length), (b"Content-Type", b"text/plain"), (b"x-request-id", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(parts)})

    state = SimpleNamespace(args=SimpleNamespace(hf_overrides=overrides))
    scope = {"type": "http", "method": "GET", "path": path, "app": SimpleNamespace(state=state), **scope}
    asyncio.run(HealthTells(app)(scope, None, send))
    start, *bodies = sent
    assert [each.get("more_body", False) for each in bodies] == [True] * (len(bodies) - 1) + [False]
    return start["status"], dict(start["headers"]), b"".join(each["body"] for each in bodies)


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("parts", [(b"",), (b"", b"")])
@pytest.mark.parametrize("where", [{"path": "/health"}, {"path": "/below/health", "root_path": "/below"}])
def test_health_tells_what_is_served_and_nothing_else(
    where: dict[str, str], parts: tuple[bytes, ...], status: int
) -> None:
    code, headers, body = answer(**where, status=status, parts=parts)
    assert code == status
    assert headers == {
        b"x-request-id": b"7",
        b"content-length": str(len(body)).encode(),
        b"content-type": b"application/json",
    }
    told = json.loads(body)
    versions = told.pop("versions")
    assert told == {"method": "auto", "keep": 0.3, "positions": "contiguous"}
    assert set(versions) == {"gprune", "vllm", "torch", "transformers"}
    assert (versions["gprune"], versions["torch"]) == (gprune.__version__, version("torch"))


@pytest.mark.parametrize(
    "other",
    [
        {"path": "/metrics"},
        {"path": "/health", "method": "POST"},
        {"path": "/health", "overrides": {}},
        {"path": "/health", "overrides": {"architectures": ["LlavaForConditionalGeneration"]}},
    ],
)
def test_all_else_is_answered_as_ever(other: dict[str, Any]) -> None:
    code, headers, body = answer(**other, parts=(b"as ", b"ever"))
    assert (code, headers[b"content-length"], headers[b"Content-Type"], body) == (200, b"7", b"text/plain", b"as ever")


def test_what_holds_where_nothing_is_set() -> None:
    told = served({"architectures": [EXPERIMENTAL["qwen2_vl"]]})
    assert (told["method"], told["keep"], told["positions"]) == ("gprune", gprune.GPrune().keep, "original")


def test_the_line_of_the_start() -> None:
    facts = {"method": "auto", "keep": 40, "positions": "contiguous", "versions": {"gprune": "1.0", "vllm": "2.0"}}
    assert in_a_line(facts) == "serves with method auto, keep 40, positions contiguous; gprune 1.0, vllm 2.0"
