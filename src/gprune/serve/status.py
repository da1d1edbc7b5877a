"""What a server serves: said when it starts, and at `/health`, which needs no key and so tells no more than this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..pruners import GPrune, Pruner
from .families import EXPERIMENTAL, MODULES
from .host import REQUESTS
from .settings import KEEP, METHOD, POSITIONS

HEALTH = "/health"
PRUNING = {name for names in MODULES.values() for name in names}


def served(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an answer beside the request: method, keep, positions, and the versions of libraries.

    Args:
        overrides: the server's `--hf-overrides`, with an architecture of gprune.
    """
    (architecture,) = overrides["architectures"]
    return {
        "method": overrides.get(METHOD, GPrune.name),
        "keep": overrides.get(KEEP, Pruner.keep),
        "positions": "original" if architecture in EXPERIMENTAL.values() else overrides.get(POSITIONS, "contiguous"),
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str | None]:
    return {
        "gprune": __version__,
        "vllm": REQUESTS.version,
        **{name: version(name) for name in ("torch", "transformers")},
    }


def in_a_line(facts: Mapping[str, Any]) -> str:
    """What `served` returns, for people."""
    settings = [f"{name} {value}" for name, value in facts.items() if name != "versions"]
    versions = [f"{name} {value}" for name, value in facts["versions"].items()]
    return f"serves with {', '.join(settings)}; {', '.join(versions)}"


def path_of(scope: Mapping[str, Any]) -> str:
    """The path of a request as the server's routes name it."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class HealthTells:
    """An ASGI middleware for `--middleware`: `/health` keeps its status, and says what is served."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope["method"] == "GET" and path_of(scope) == HEALTH:
            overrides = scope["app"].state.args.hf_overrides
            if not PRUNING.isdisjoint(overrides.get("architectures", ())):
                send = _sending(json.dumps(served(overrides)).encode(), send)
        await self._app(scope, receive, send)


def _sending(body: bytes, send: Any) -> Any:
    """Sends a body in the place of the one that comes, which may come in parts."""

    async def replaced(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if each[0].lower() not in (b"content-length", b"content-type")]
            own = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
            await send({**message, "headers": kept + own})
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": body})

    return replaced
