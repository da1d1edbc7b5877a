"""`gprune verify`: whether gprune and the installed transformers understand each other on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .loading import EMBEDDED, load_model
from .options import AsJson, Model, checking_input
from .printing import print_json


def verify(
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="Pictures to ask about; of the embedded benchmark if left out.")
    ] = None,
    model: Model = EMBEDDED,
    as_json: AsJson = False,
) -> None:
    """Check pruned decoding on a model: a padded batch of pictures, positions renumbered, against a full recompute.

    Example: `gprune verify --model llava-hf/llama3-llava-next-8b-hf`
    """
    from .. import attach, host
    from ..images import open_image
    from ..prompt import build_inputs
    from ..scenes.benchmark import mixed_inputs

    with checking_input():
        images = [open_image(picture) for picture in pictures or ()]
    net, processor = load_model(model)
    if images:
        inputs = build_inputs(net, processor, [([image], "What is shown here?") for image in images])
    else:
        inputs = mixed_inputs(net, processor)
    row: dict[str, Any] = {
        "model": model,
        "model_type": net.config.model_type,
        "transformers": str(host.installed()),
        "prompts": len(inputs["input_ids"]),
        "change": attach.verify(net, inputs),
    }
    if as_json:
        print_json([row])
    else:
        print(
            f"{model} ({row['model_type']}) with transformers {row['transformers']}: pruned decoding of "
            f"{row['prompts']} prompts and one of text, padded, equals a full recompute; "
            f"largest change {row['change']:.0e} of the logits"
        )
