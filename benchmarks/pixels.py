"""How many visual tokens show what others show already, pixel by pixel, and what does leaving them out save?

Renders two pages of A4 at 150 dots an inch (a letter, and a full page of text), the letter once more as a JPEG, and a
window of an application; and takes a scanned page and three photos of scikit-image. All go through the image processor
of Qwen2.5-VL. Counts the share of tokens that `PixelDedup` leaves out, and times how long it takes to find them.

Then times vision tower and prefill on some of them, scaled down to some 330 tokens, with and without it in turns: a
Qwen2.5-VL of the widths of the 3B model with random weights, but two layers in its tower and one in its LLM. Times do
not depend on the weights.

    python benchmarks/pixels.py
"""

from __future__ import annotations

import io
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import skimage.data
import torch
from kernels import record, seconds
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gprune import PixelDedup, Unpruned
from gprune.evaluate.cells import versions
from gprune.evaluate.noise import build_prompts, random_model
from gprune.families.architectures import architecture

COMMAND = "python benchmarks/pixels.py"
PAGE = (1240, 1754)
TAUS = (0.0, 0.02)
PIXELS = 28 * 28
"""Of a visual token."""

MOST, TIMED_MOST = 4096 * PIXELS, 340 * PIXELS
TIMED = ("letter", "page of text", "window", "photo: astronaut")
TEXT_TOKENS = 32
REPEATS = 3
WORDS = ("the", "of", "a", "page", "is", "read", "by", "model", "that", "sees", "every", "patch", "once", "and", "asks")
WORDS += ("for", "less", "than", "was", "drawn", "in", "it")


@dataclass(frozen=True)
class Share:
    """Of a picture, the share of tokens that leave by tau, and the median seconds it takes to find them at 0.02."""

    picture: str
    tokens: int
    left_out: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Time:
    """Median seconds of tower and prefill on a picture, without and with PixelDedup."""

    picture: str
    tokens: int
    kept: int
    unpruned: float
    pruned: float
    speedup: float


def lines(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int, seed: int) -> None:
    """Paragraphs of words in a box, (left, top, right, bottom)."""
    draw, font, (left, top, right, bottom) = random.Random(seed), ImageFont.load_default(size), box
    while top + size < bottom:
        ends = right if draw.random() > 0.15 else left + (right - left) // 3
        text = ""
        while pen.textlength(text, font) < ends - left - 5 * size:
            text += draw.choice(WORDS) + " "
        pen.text((left, top), text, fill=0, font=font)
        top += int(size * (1.5 if ends == right else 2.4))


def letter() -> Image.Image:
    """An address, a subject, three paragraphs and a signature."""
    page = Image.new("RGB", PAGE, "white")
    pen = ImageDraw.Draw(page)
    for seed, box in enumerate(
        [(150, 200, 550, 350), (150, 500, 900, 540), (150, 620, 1090, 1050), (150, 1250, 500, 1300)]
    ):
        lines(pen, box, 24, seed)
    return page


def page_of_text() -> Image.Image:
    """A heading and lines from margin to margin."""
    page = Image.new("RGB", PAGE, "white")
    pen = ImageDraw.Draw(page)
    lines(pen, (150, 150, 1000, 200), 40, 0)
    lines(pen, (150, 260, 1090, 1600), 24, 1)
    return page


def window() -> Image.Image:
    """A title bar, a list of files, buttons and a few lines."""
    screen = Image.new("RGB", (1280, 800), (245, 246, 248))
    pen, font = ImageDraw.Draw(screen), ImageFont.load_default(18)
    pen.rectangle((0, 0, 1280, 40), fill=(52, 73, 94))
    pen.text((20, 10), "report.txt", fill="white", font=font)
    pen.rectangle((0, 40, 260, 800), fill=(230, 233, 237))
    for row in range(14):
        pen.text((24, 60 + 32 * row), f"folder {row}", fill=(60, 60, 60), font=font)
    for column in range(4):
        pen.rounded_rectangle((300 + 150 * column, 60, 430 + 150 * column, 100), 8, fill=(41, 128, 185))
        pen.text((330 + 150 * column, 70), "action", fill="white", font=font)
    lines(pen, (300, 150, 1200, 420), 18, 2)
    return screen


def as_jpeg(picture: Image.Image) -> Image.Image:
    """The same after a JPEG of quality 75."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def pictures() -> dict[str, Image.Image]:
    """All pictures by name."""
    photos = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")}
    return {
        "letter": letter(),
        "letter, JPEG": as_jpeg(letter()),
        "page of text": page_of_text(),
        "window": window(),
        "scan: page": Image.fromarray(skimage.data.page()).convert("RGB"),
        **{f"photo: {name}": Image.fromarray(photo) for name, photo in photos.items()},
    }


def processed(picture: Image.Image, most: int) -> dict[str, Tensor]:
    """What the processor makes of a picture of at most so many pixels."""
    processor = Qwen2VLImageProcessorPil(min_pixels=4 * PIXELS, max_pixels=most)
    made = processor(np.asarray(picture), return_tensors="pt", input_data_format="channels_last")
    return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}


def share(name: str, picture: Image.Image) -> Share:
    """What leaves of a picture."""
    # [tokens, patches, values] -> [tokens, channels, values of all patches].
    groups = (
        processed(picture, MOST)["pixel_values"].unflatten(0, (-1, 4)).unflatten(2, (3, -1)).transpose(1, 2).flatten(2)
    )
    left_out = {str(tau): round(1 - float(PixelDedup(tau=tau).choose(groups).float().mean()), 4) for tau in TAUS}
    taken = [seconds(partial(PixelDedup().choose, groups), "cpu") for _ in range(REPEATS)]
    return Share(name, len(groups), left_out, statistics.median(taken))


def narrow_config() -> PreTrainedConfig:
    """Qwen2.5-VL-3B in width, with two layers in the tower, one of them with windows, and one in the LLM."""
    config: Any = architecture("qwen2.5-vl-7b")
    vision, text = config.vision_config, config.text_config
    vision.depth, vision.fullatt_block_indexes, vision.out_hidden_size = 2, [1], 2048
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 2048, 11008, 16, 2
    text.num_hidden_layers, text.layer_types, text.vocab_size = 1, ["full_attention"], 1024
    config.image_token_id, config.vision_start_token_id, config.vision_end_token_id, config.video_token_id = range(
        20, 24
    )
    return config


@torch.no_grad()
def times() -> list[Time]:
    """Tower and prefill on every timed picture, with and without in turns."""
    net = random_model(narrow_config(), torch.float32, "cpu")
    rows = []
    for name in TIMED:
        shown = processed(pictures()[name], TIMED_MOST)
        _, height, width = shown["image_grid_thw"][0].tolist()
        prompt = {**build_prompts(net.config, (14 * height, 14 * width), TEXT_TOKENS), **shown}
        taken: dict[bool, list[float]] = {False: [], True: []}
        kept = tokens = height * width // 4
        for _ in range(REPEATS):
            for pruned in (False, True):
                with (PixelDedup() if pruned else Unpruned())(net) as run:
                    call: Callable[[], object] = partial(net, **prompt, use_cache=True, logits_to_keep=1)
                    taken[pruned].append(seconds(call, "cpu"))
                    kept = run.images[0].n_after if pruned else kept
        without, with_it = (statistics.median(taken[pruned]) for pruned in (False, True))
        rows.append(Time(name, tokens, kept, without, with_it, without / with_it))
    return rows


def markdown(shares: list[Share], timed: list[Time], about: dict[str, str]) -> str:
    """Two tables."""
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    heads = " | ".join(f"tau {tau}" for tau in TAUS)
    return "\n".join(
        [
            f"`{COMMAND}`: medians of {REPEATS} on a CPU that others use too; {where}.",
            "",
            f"| picture | visual tokens | left out, {heads} | ms to find them |",
            "|---|---" + "|---" * len(TAUS) + "|---|",
            *(
                f"| {row.picture} | {row.tokens} | "
                + " | ".join(f"{value:.1%}" for value in row.left_out.values())
                + f" | {1e3 * row.seconds:.0f} |"
                for row in shares
            ),
            "",
            "Tower and prefill, Qwen2.5-VL-3B in width with 2 layers in the tower and 1 in the LLM, tau 0.02:",
            "",
            "| picture | visual tokens | kept | unpruned s | PixelDedup s | times as fast |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row.picture} | {row.tokens} | {row.kept} | {row.unpruned:.2f} | {row.pruned:.2f} "
                f"| {row.speedup:.2f} |"
                for row in timed
            ),
            "",
        ]
    )


def main() -> None:
    """Measure, and write results/pixels_cpu."""
    shares, timed = [share(*each) for each in pictures().items()], times()
    about = versions(("gprune", "torch", "transformers"))
    rows = {"about": about, "shares": [asdict(row) for row in shares], "times": [asdict(row) for row in timed]}
    record("pixels_cpu", rows, markdown(shares, timed, about))


if __name__ == "__main__":
    main()
