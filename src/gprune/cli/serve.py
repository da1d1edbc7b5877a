"""`gprune serve`: a vLLM server that prunes."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Literal

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
    positions: Annotated[
        Literal["original", "contiguous"] | None,
        typer.Option(
            help="Of the tokens that are left: those of the unpruned prompt, or those of text, without gaps; left out: "
            "original for models that number tokens by height and width, else contiguous."
        ),
    ] = None,
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
        from ..serve.launch import check_installed, run_server, served_by, server_arguments, server_environment
        from ..spec import parse_keep

        config = config_of(model)
        arguments = server_arguments(
            model,
            config,
            parse_keep(keep),
            method,
            context.args,
            positions=positions,
            experimental=experimental,
            trust_uuid=trust_uuid,
        )
        environment = server_environment(max_pixels or MAX_PIXELS)
        check_installed()
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    print(f"gprune: {settings} vllm serve {shlex.join(arguments[1:])}", file=sys.stderr)
    print(f"gprune: {served_by(arguments)}", file=sys.stderr, flush=True)
    run_server(arguments, environment)
