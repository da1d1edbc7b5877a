"""Answers of a server that speaks OpenAI's protocol."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urljoin

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..evaluate.answers import Response
from ..serve.settings import KEEP
from ..tokens import Keep, check_keep
from .engine import Ask

FAILED = 500
"""The status of a request that failed inside the server, by its own fault or because the server is about to end."""
ABOUT_THE_ROW = (400, 413, 415, 422, FAILED)
"""Statuses that say that this request cannot be answered; after others, none could."""
PASSING = (408, 429, 502, 503, 504)
"""Statuses after which to try again."""
_TIMEOUT = (10.0, 600.0)
"""Seconds to connect, and to the answer."""
_PAUSE = 2.0
"""Seconds in which a server whose engine has died stops listening."""


@dataclass(frozen=True)
class Server:
    """A server, such as vLLM with a pruner; pictures are sent upright, as PNG, and decoding is greedy.

    Args:
        url: with its version: "http://localhost:8000/v1".
        model: one of those that are served.
        max_new_tokens: of an answer.
        keep: budget of every request, which a server of `gprune serve` heeds and others may not; None is the server's.
        retries: after a passing failure, with growing pauses.
    """

    url: str
    model: str
    max_new_tokens: int = 128
    keep: Keep | None = None
    retries: int = 5

    on_gpu: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """Without the address: a server may move."""
        asked = {"model": self.model, "keep": self.keep, "max_new_tokens": self.max_new_tokens}
        return {"engine": "server", **asked}

    def check(self) -> None:
        """Raise ValueError or TypeError unless the server answers, has the model, and takes the budget."""
        if self.keep is not None:
            check_keep(self.keep)
        try:
            response = requests.get(f"{self.url.rstrip('/')}/models", timeout=_TIMEOUT)
            response.raise_for_status()
            served = [each["id"] for each in response.json()["data"]]
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"server {self.url} does not list its models ({error}); accepted is the address of a server that "
                f"speaks OpenAI's protocol, such as http://localhost:8000/v1; check that it runs"
            ) from error
        if self.model not in served:
            raise ValueError(f"server {self.url} has no model {self.model!r}; it has {', '.join(served)}")
        if self.keep is not None:
            self._check_budget()

    def _check_budget(self) -> None:
        """Ask about a blank picture: a server that takes no budgets would make every row an error."""
        try:
            [answer] = replace(self, max_new_tokens=1, retries=0).start()([(Image.new("RGB", (64, 64), "white"), "?")])
        except requests.RequestException:
            return  # the first rows will tell, after as many tries as they are given
        if answer.error:
            raise ValueError(
                f"server {self.url} refuses a small picture with the budget keep={self.keep} ({answer.error}); "
                f"accepted is a server of gprune serve, started with --trust-request-mm-kwargs; start it so, or leave "
                f"the budget out for the server's own"
            )

    def start(self) -> Ask:
        """Open connections."""
        session = requests.Session()
        retry = Retry(self.retries, status_forcelist=PASSING, allowed_methods=None, backoff_factor=0.5)
        session.mount("http://", HTTPAdapter(max_retries=retry, pool_maxsize=64))
        session.mount("https://", HTTPAdapter(max_retries=retry, pool_maxsize=64))
        return partial(self._answer, session)

    def _answer(self, session: requests.Session, asked: Sequence[tuple[Image.Image, str]]) -> list[Response]:
        with ThreadPoolExecutor(len(asked)) as threads:
            return list(threads.map(partial(self._answer_one, session), asked))

    def _answer_one(self, session: requests.Session, asked: tuple[Image.Image, str]) -> Response:
        picture, question = asked
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(picture)}},
            {"type": "text", "text": question},
        ]
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }
        if self.keep is not None:
            request["mm_processor_kwargs"] = {KEEP: self.keep}
        ask = partial(session.post, f"{self.url.rstrip('/')}/chat/completions", json=request, timeout=_TIMEOUT)
        started = time.perf_counter()
        response = ask()
        if response.status_code == FAILED:
            # vLLM says the same of all that is under way when its engine dies, and so of rows with nothing wrong.
            time.sleep(_PAUSE)
            session.get(urljoin(self.url, "/health"), timeout=_TIMEOUT)  # raises if it is gone, or says 503 to the end
            response = ask()
        if response.status_code in ABOUT_THE_ROW:
            return Response(error=f"the server says {response.status_code}: {' '.join(response.text.split())}")
        response.raise_for_status()
        text = response.json()["choices"][0]["message"]["content"] or ""
        return Response(text.strip(), seconds=time.perf_counter() - started)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
