"""`gprune app`: the web page."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from .loading import EMBEDDED
from .options import Model, WrongInput, checking_input


def app(
    model: Model = EMBEDDED,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on if left out.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name by which browsers may call the page, beside --host and localhost; once for each."),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Width times height that a picture may have; 40 million if left out.")
    ] = None,
) -> None:
    """Open a web page on which to look at what methods keep, and to ask.

    Example: `gprune app --port 8000`
    """
    for package in ("gradio", "matplotlib"):
        if find_spec(package) is None:
            raise WrongInput(f"the web page needs {package}, which is not installed; pip install 'gprune[app]'")
    with checking_input():
        from ..app.page import serve
        from ..app.studio import Studio
        from ..images import MAX_PIXELS

        studio = Studio(model)
        serve(studio, host, port, allowed_hosts=allowed_host or (), max_pixels=max_pixels or MAX_PIXELS)
