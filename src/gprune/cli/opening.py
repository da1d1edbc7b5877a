"""Pictures as they are named on the command line: a file, an address on the web, or standard input."""

from __future__ import annotations

import re
import sys
import time
from io import BytesIO
from typing import IO, TYPE_CHECKING

from .options import WrongInput, checking_input

if TYPE_CHECKING:
    from PIL import Image

MAX_RECEIVED = 1 << 26
"""Of a picture that is downloaded or piped in."""
SILENCE = 20.0
"""Seconds that a server may be silent."""
DOWNLOAD = 120.0
"""Seconds that a download may take in all."""

STANDARD_INPUT = "-"


def open_given(name: str) -> Image.Image:
    """Open a picture, upright RGB; see `gprune.images.open_image`.

    Args:
        name: path of a file, an http or https URL, or "-" for standard input.

    Raises:
        WrongInput: it is no picture that can be opened, it has more than `MAX_RECEIVED`, or a server does not give it.
    """
    from ..images import open_image

    if name == STANDARD_INPUT:
        if sys.stdin.isatty():
            raise WrongInput("nothing is piped into standard input; give a picture: gprune ask - QUESTION < photo.jpg")
        return _opened(_limited(sys.stdin.buffer, "standard input"), "standard input")
    if re.match("https?://", name, re.IGNORECASE):
        return _opened(_downloaded(name), name)
    with checking_input():
        return open_image(name)


def _downloaded(url: str) -> bytes:
    from http.client import HTTPException
    from urllib import request
    from urllib.error import HTTPError, URLError

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),  # of a redirect to ftp, which urllib would follow by itself
    ):
        opener.add_handler(handler)
    try:
        with opener.open(request.Request(url, headers={"User-Agent": "gprune"}), timeout=SILENCE) as answer:
            return _limited(answer, url, time.monotonic() + DOWNLOAD)
    except HTTPError as error:
        reason = f"its server answers with status {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        silent = f"its server is silent for {SILENCE:g} seconds"
        reason = silent if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
    raise WrongInput(f"{url} cannot be downloaded ({reason}); check the address, or download it and give the file")


def _limited(stream: IO[bytes], name: str, end: float = float("inf")) -> bytes:
    """All of a stream, unless it has more than `MAX_RECEIVED` or goes on after a moment of the monotonic clock."""
    found = bytearray()
    while piece := stream.read1(1 << 16):  # type: ignore[attr-defined]
        found += piece
        if len(found) > MAX_RECEIVED:
            raise WrongInput(f"{name} has more than {MAX_RECEIVED:,} bytes, the most that is accepted; shrink it")
        if time.monotonic() > end:
            raise WrongInput(f"{name} is not there after {DOWNLOAD:g} seconds; download it and give the file")
    return bytes(found)


def _opened(content: bytes, name: str) -> Image.Image:
    from PIL import UnidentifiedImageError

    from ..images import FORMATS, read_rgb

    try:
        return read_rgb(BytesIO(content))
    except UnidentifiedImageError:
        reason = "is no picture" if content else "is empty"
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        reason = f"cannot be read ({error})"
    raise WrongInput(f"{name} {reason}; accepted are pictures in the formats {', '.join(FORMATS)}")
