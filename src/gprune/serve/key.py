"""The server's key, asked for at every path: vLLM asks for it at `/v1` and a few others, and answers elsewhere too."""

from __future__ import annotations

from typing import Any

from .host import KEYS
from .status import HEALTH, path_of

with KEYS.checked():
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

OPEN = (HEALTH, "/ping", "/metrics")
"""Paths that need no key: whether the server is there, what it serves, and numbers of what it did."""


class KeyForAll:
    """An ASGI middleware for `--middleware`, of a server that has a key by `--api-key` or `VLLM_API_KEY`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, without the key with 401."""
        asked = scope["type"] in ("http", "websocket") and scope.get("method") != "OPTIONS"
        if asked and path_of(scope) not in OPEN:
            keys = scope["app"].state.args.api_key or [envs.VLLM_API_KEY]
            if not AuthenticationMiddleware(self._app, keys).verify_token(Headers(scope=scope)):
                refusal = JSONResponse({"error": "Unauthorized: send the server's key as a bearer token"}, 401)
                return await refusal(scope, receive, send)
        await self._app(scope, receive, send)
