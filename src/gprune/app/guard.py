"""All that comes in is checked here: by which names the page is called, which files it opens, what an event brings."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from starlette.responses import PlainTextResponse

from ..errors import BadValue

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The names of this machine, as a browser sends them."""
TEMP = "GRADIO_TEMP_DIR"
"""Where Gradio looks up, whenever it needs it, in which folder it keeps files."""
UNUSED = ("/process_recording", "/deep_link")
"""Routes of Gradio that the page has no use for: one runs ffmpeg on what it is sent, one fills the disk."""
UNFIT = (ValueError, TypeError, LookupError, ArithmeticError)
"""What is raised for an event that is not one of the page's."""


class Guarded(gr.Blocks):
    """Blocks that check every event before anything of it is opened, and keep their files where nobody else reads.

    The folder is made anew for every start, for this account alone, and is gone with `close` or the process. A process
    has one such page at a time: Gradio knows its folder by an environment variable only.

    Args:
        settings: see `gradio.Blocks`.
    """

    def __init__(self, **settings: Any) -> None:
        self.folder = TemporaryDirectory(prefix="gprune-app-")
        self._before = os.environ.get(TEMP)
        os.environ[TEMP] = self.folder.name
        super().__init__(**settings)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """What handlers get of an event; whichever way it came, it comes by here first."""
        inputs = [uploads_only(each, Path(self.folder.name)) for each in inputs]
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer an event, or say why not."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except UNFIT as error:
            raise gr.Error(f"This cannot be used: {error or type(error).__name__}", print_exception=False) from error
        except Exception as error:
            raise gr.Error("The server failed; what it printed says why.") from error

    def close(self, verbose: bool = True) -> None:
        """Stop, and remove all files."""
        super().close(verbose)
        self.folder.cleanup()
        os.environ.pop(TEMP, None)
        if self._before is not None:
            os.environ[TEMP] = self._before


class Closed:
    """Keeps requests away from `UNUSED`, as an ASGI application around another one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, those to `UNUSED` with 404."""
        closed = scope["type"] == "http" and scope["path"].rstrip("/").endswith(UNUSED)
        await (PlainTextResponse("Not Found", 404) if closed else self.app)(scope, receive, send)


def uploads_only(value: Any, folder: Path) -> Any:
    """What an event brings, with no more of files than the path, and no file but those in a folder.

    Args:
        value: JSON; every object in it stands for a file, as no part of the page sends another.
        folder: of uploads.

    Raises:
        gradio.Error: another file, and also one that is not there; the text is the same for all.
    """
    if isinstance(value, list):
        return [uploads_only(each, folder) for each in value]
    if not isinstance(value, dict):
        return value
    path = value.get("path")
    if not isinstance(path, str) or not _is_within(Path(path), folder):
        raise gr.Error("This file was not uploaded here; accepted are uploads; upload it first.", print_exception=False)
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path is that of a file in a folder, links followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # too long, or with a zero
        return False


def trusted_names(host: str, allowed: Sequence[str]) -> list[str]:
    """The names by which a page may be called: a stranger's name that leads here is not among them.

    Args:
        host: at which it listens.
        allowed: other names, without a port.

    Returns:
        What the part before the port of a request's `Host` may be.

    Raises:
        BadValue: one is no name of a machine.
    """
    for name in allowed:
        if not re.fullmatch(r"[\w.-]+", name) and not _is_ipv6(name):
            raise BadValue(
                f"allowed host {name!r} cannot be one; accepted are names and addresses, without http://, "
                "brackets and a port; give what a browser shows between them"
            )
    return [*LOOPBACK, *(f"[{name}]" if _is_ipv6(name) else name for name in (host, *allowed))]


def _is_ipv6(name: str) -> bool:
    try:
        IPv6Address(name)
    except ValueError:
        return False
    return True
