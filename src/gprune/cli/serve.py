"""`gprune serve`: a vLLM server that prunes."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from .loading import config_of
from .options import RECOMMENDED, checking_input


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Hub id or folder of a transformers checkpoint, or embedded.", metavar="MODEL")
    ],
    keep: Annotated[
        str,
        typer.Option(
            help="Of requests that name none: 0.3 is a ratio, 100 a number of tokens per image. A request names its "
            'own by `"mm_processor_kwargs": {"gprune_keep": 0.5}`.'
        ),
    ] = "0.3",
    method: Annotated[
        str, typer.Option(help="A method that can be served (docs/serving.md); settings follow a colon.")
    ] = RECOMMENDED,
    experimental: Annotated[
        bool, typer.Option("--experimental", help="Serve Qwen-VL and GLM-4V too; see docs/serving.md.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="VLLM_MAX_IMAGE_PIXELS",
            help="Pictures with more pixels, width times height, are refused; left out: 40 million.",
        ),
    ] = None,
    trust_uuid: Annotated[
        bool,
        typer.Option("--trust-uuid", help="Let clients name pictures by a uuid, and so reach those of other clients."),
    ] = False,
) -> None:
    """Serve a model by vLLM, with the OpenAI protocol, pruned; further options are vLLM's.

    It listens on 127.0.0.1 alone unless `--host` is given, and fetches pictures from public addresses alone.

    Example: `gprune serve embedded --keep 0.3 --port 8000 --max-model-len 1024`
    """
    with checking_input():
        from ..images import MAX_PIXELS
        from ..serve.launch import check_installed, run_server, server_arguments, server_environment
        from ..spec import parse_keep

        config = config_of(model)
        trusted = {"experimental": experimental, "trust_uuid": trust_uuid}
        arguments = server_arguments(model, config, parse_keep(keep), method, context.args, **trusted)
        environment = server_environment(max_pixels or MAX_PIXELS)
        check_installed()
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    print(f"gprune: {settings} vllm serve {shlex.join(arguments[1:])}", file=sys.stderr)
    run_server(arguments, environment)
