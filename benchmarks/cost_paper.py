"""How many TFLOPs does pruning save on the paper's model, and which way of counting gives its numbers?

Table 2 of arXiv 2501.02268 gives 18.52 T without pruning and 6.76 T with 70 % of the visual tokens pruned. It
does not say how it counts nor for which images. This writes the cost for typical image sizes and, for each
way of counting, the prompt that would give both numbers exactly. No weights, no images.

    python benchmarks/cost_paper.py
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from gprune import GPrune
from gprune.cost import cost
from gprune.families.architectures import architecture
from gprune.families.tiling import tiling

MODEL = "llava-next-8b"
PAPER = (18.52, 6.76)
KEEP = 0.3
KEEPS = (1.0, 0.5, 0.3, 0.1)
TEXT_TOKENS = 75
"""46 of the system prompt before the image, some 30 for question, instruction and end of the template."""
SIZES = {
    "photo 4:3": (480, 640),
    "photo 3:2": (427, 640),
    "photo 3:4, portrait": (640, 480),
    "large photo 4:3": (768, 1024),
    "wide screen 16:9": (1080, 1920),
    "square": (672, 672),
    "letter page": (2200, 1700),
    "panorama 3:1": (500, 1500),
}
PHOTOS = ("photo 4:3", "photo 3:2")
"""The usual shapes of a photo, and so of most images of VQAv2, GQA, POPE and TextVQA."""
COMMAND = "python benchmarks/cost_paper.py"
RESULTS = Path(__file__).parent / "results" / "cost_llava_next_8b.json"


@dataclass(frozen=True)
class Convention:
    """A way of counting: tera-operations as a polynomial in the number of prompt tokens n."""

    name: str
    constant: float
    linear: float
    quadratic: float

    def count(self, n: float) -> float:
        """Operations for so many tokens."""
        return self.constant + self.linear * n + self.quadratic * n * n

    def tokens(self, count: float) -> float:
        """The n that gives this count."""
        c = self.constant - count
        if self.quadratic == 0:
            return -c / self.linear
        return (math.sqrt(self.linear**2 - 4 * self.quadratic * c) - self.linear) / (2 * self.quadratic)


def conventions() -> list[Convention]:
    """The LLM's polynomial is read off three prompts of text; an image is 2 x 2 tiles and a base view."""
    low, middle, high = (cost(MODEL, [], n).flops["prefill"] / 2e12 for n in (1000, 2000, 3000))
    attention = (high - 2 * middle + low) / 2e6
    linear = (middle - low) / 1000 - 3000 * attention
    head = low - 1000 * linear - 1e6 * attention
    flops = cost(MODEL, [SIZES["square"]], 1).flops
    image = (flops["vision"] + flops["projector"]) / 2e12
    text: Any = architecture(MODEL).text_config
    layers, d, m = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    textbook = layers * (4 * d * d + 2 * d * m) / 1e12, layers * 2 * d / 1e12
    return [
        Convention("MACs of `gprune.cost`", image + head, linear, attention),
        Convention("the same, causal half of attention only", image + head, linear, attention / 2),
        Convention("the same, attention products not counted", image + head, linear, 0),
        Convention("the same, logits of all positions", image, linear + head, attention),
        Convention("the same, LLM only", head, linear, attention),
        Convention("LLM only, 4nd² + 2n²d + 2ndm per layer", 0, *textbook),
        Convention("FLOPs, twice the MACs of `gprune.cost`", 2 * (image + head), 2 * linear, 2 * attention),
    ]


def size_rows() -> list[dict[str, Any]]:
    """The cost of every image size and keep ratio."""
    rows = []
    for image, (height, width) in SIZES.items():
        full = cost(MODEL, [(height, width)], TEXT_TOKENS)
        for keep in KEEPS:
            now = full if keep == 1 else cost(MODEL, [(height, width)], TEXT_TOKENS, GPrune(keep))
            parts = {f"{part}_flops": flops for part, flops in now.flops.items()}
            rows.append(
                {
                    "image": image,
                    "width": width,
                    "height": height,
                    "keep": keep,
                    "visual_tokens": now.visual_tokens,
                    "kept_tokens": now.kept_tokens,
                    "prompt_tokens": now.prompt_tokens,
                    **parts,
                    "flops": now.total,
                    "macs": now.macs,
                    "reduction": 1 - now.total / full.total,
                    "decode_flops": now.decode_flops,
                    "kv_bytes": now.kv_bytes,
                }
            )
    return rows


def convention_rows(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every way of counting, on the two photos, and the prompt for which it would give both paper numbers."""
    prompts = {(row["image"], row["keep"]): row["prompt_tokens"] for row in sizes}
    square = tiling(architecture(MODEL), SIZES["square"])
    base, columns = math.prod(square.base), square.grid[1]
    rows = []
    for way in conventions():
        row: dict[str, Any] = {"counting": way.name}
        for image in PHOTOS:
            row[image] = [way.count(prompts[image, keep]) for keep in (1.0, KEEP)]
        before, after = (way.tokens(count) for count in PAPER)
        ranked = (before - after) / (1 - KEEP)
        lines = (ranked - base) / columns
        row["fit"] = {
            "prompt_tokens": before,
            "ranked_tokens": ranked,
            "aspect_ratio": columns / lines,
            "text_tokens": before - ranked - lines,
        }
        rows.append(row)
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def size_table(rows: list[dict[str, Any]]) -> str:
    """What images of each size cost, in Markdown."""
    header = ["image", "W x H", "keep", "visual tokens", "prompt tokens", "tower + projector", "selection"]
    header += ["prefill", "total TMACs", "less", "decode step GMACs", "KV cache MB"]
    lines = []
    for row in rows:
        tera = {key: value / 2e12 for key, value in row.items() if key.endswith("flops")}
        parts = (
            tera["vision_flops"] + tera["projector_flops"],
            tera["selection_flops"],
            tera["prefill_flops"],
        )
        lines.append(
            [
                row["image"],
                f"{row['width']} x {row['height']}",
                row["keep"],
                row["kept_tokens"],
                row["prompt_tokens"],
                *(f"{part:.2f}" for part in parts),
                f"{tera['flops']:.2f}",
                f"{row['reduction']:.1%}",
                f"{1000 * tera['decode_flops']:.2f}",
                f"{row['kv_bytes'] / 1e6:.0f}",
            ]
        )
    return table(header, lines)


def convention_table(rows: list[dict[str, Any]]) -> str:
    """What each way of counting makes of the paper's figure, in Markdown."""
    header = ["counting", *PHOTOS, "reduction", "prompt that gives the paper's numbers"]
    lines = []
    for row in rows:
        pairs = [row[image] for image in PHOTOS]
        cells = [
            " -> ".join(f"{count:.2f} ({count / goal - 1:+.1%})" for count, goal in zip(pair, PAPER, strict=True))
            for pair in pairs
        ]
        less = ", ".join(f"{1 - pruned / full:.1%}" for full, pruned in pairs)
        fit = row["fit"]
        ranked, text = round(fit["ranked_tokens"]), round(fit["text_tokens"])
        prompt = f"{ranked} ranked tokens ({fit['aspect_ratio']:.2f}:1), {text} text" if text > 0 else "none"
        lines.append([row["counting"], *cells, less, prompt])
    return table(header, lines)


def main() -> None:
    """Count, print, and write the results."""
    sizes = size_rows()
    ways = convention_rows(sizes)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    found = {
        "command": COMMAND,
        "versions": versions,
        "model": MODEL,
        "text_tokens": TEXT_TOKENS,
        "paper": PAPER,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**found, "sizes": sizes, "conventions": ways}, indent=1) + "\n")
    tables = f"`{COMMAND}`\n\n{size_table(sizes)}\n\n{convention_table(ways)}\n"
    RESULTS.with_suffix(".md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
