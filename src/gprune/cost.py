"""What a prompt with images costs, with and without pruning: tokens, FLOPs and KV-cache bytes.

No weights are needed: the model is built on PyTorch's meta device, where tensors have shapes but no data, and
its own forward pass is counted by `torch.utils.flop_counter`. So the count follows the model's code: matrix
products and convolutions, a multiply-add as two operations, attention in full (the half that a causal mask
discards included), the logits of the last position only, as in `generate()`. Element-wise operations, norms
and softmax count nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from numbers import Integral
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from . import host
from .errors import BadType
from .families.architectures import architecture
from .families.table import FAMILIES, FROM_TOWER, MIDDLE
from .families.tiling import tile_lines, tiling
from .pruners import Method, Pruner, Unpruned
from .tokens import Keep, Mask, check_keep, follows_picture, kept_count

COUNTABLE = [name for kind in ("whole", "any resolution") for name, row in FAMILIES.items() if row.tiling == kind]
"""Model types whose visual tokens follow from the size of an image."""

UNPRUNED = Unpruned()
"""The model as it is."""


@dataclass(frozen=True)
class Cost:
    """The cost of one prompt up to its first new token, and of each decode step after it.

    Args:
        visual_tokens: tokens the images become before pruning, newline tokens included.
        kept_tokens: visual tokens that reach the LLM.
        text_tokens: all other tokens of the prompt.
        flops: floating-point operations by part: "vision" (tower), "projector", "selection" (what choosing the
            visual tokens takes, reading the tower for it included), "prefill" (LLM over the kept prompt, last
            position's logits).
        decode_flops: floating-point operations of the first decode step after the prefill.
        kv_bytes: bytes of the KV cache after the prefill, in the model's dtype.
    """

    visual_tokens: int
    kept_tokens: int
    text_tokens: int
    flops: dict[str, int]
    decode_flops: int
    kv_bytes: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens the LLM reads: kept visual tokens and text tokens."""
        return self.kept_tokens + self.text_tokens

    @property
    def total(self) -> int:
        """Floating-point operations up to the first new token: the sum of `flops`."""
        return sum(self.flops.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates up to the first new token: half of `total`."""
        return self.total // 2


def cost(
    model: str | PreTrainedConfig | PreTrainedModel,
    image_sizes: Sequence[tuple[int, int]],
    text_tokens: int,
    keep: Keep | Method = 1.0,
) -> Cost:
    """Cost of one prompt with any number of images.

    Args:
        model: name of one of `gprune.families.architectures.ARCHITECTURES`, or the config of a transformers model, or
            the model itself, which is not run. A config that names no dtype is counted in float32.
        image_sizes: (height, width) in pixels of each image of the prompt, in order; empty for text only.
        text_tokens: tokens of the prompt that are not visual tokens: start token, chat template, question.
        keep: ratio in (0, 1] as a float, tokens per image as an int, or a pruner with its settings. How many tokens
            are kept of each of the tiles that share a budget is up to the picture: what choosing them takes is counted
            as if they shared by size alone.

    Raises:
        ValueError: unknown architecture or model type, a size or count below 1, a `keep` out of range.
        TypeError: a size or count that is not an integer, a `keep` that is neither a number nor a pruner.
        RuntimeError: the model makes another number of visual tokens than expected from the image's size.

    Source: Table 2 of arXiv 2501.02268 gives 18.52 and 6.76 T; docs/cost.md says which convention that is.
    """
    _check(image_sizes, text_tokens)
    if isinstance(keep, Method) and any(part.acts == "before the tower" for part in keep.parts):
        raise ValueError(
            f"{type(keep).__name__} leaves patches out before the vision tower, and how many depends on what the "
            f"picture shows, which no config tells; accepted are methods that act before the LLM; of others "
            f"gprune.cost.measure counts what a prompt costs"
        )
    if isinstance(keep, Method) and not before_llm_alone(keep):
        raise ValueError(
            f"{type(keep).__name__} acts inside the vision tower or the LLM, whose cost does not follow from a config; "
            f"accepted are methods that act before the LLM; of others gprune.cost.measure counts what a prompt costs"
        )
    budget = keep.keep if isinstance(keep, Method) else keep
    pruner = keep if isinstance(keep, Pruner) else None
    budget = check_keep(budget)
    net = _without_weights(model)
    vision, projector, lengths = _count_vision(net, image_sizes)
    views = [
        _views(net.config, size, length, len(image_sizes)) for size, length in zip(image_sizes, lengths, strict=True)
    ]
    newlines = sum(lengths) - sum(map(sum, views))
    if pruner is not None and pruner.scope == "image":
        views = [[sum(image)] for image in views]
    counts = [kept_count(image, budget) for image in views]
    kept = newlines + sum(map(sum, counts))
    if pruner is not None and pruner.shares == "global":
        ranked = [_by_tile(net.config, *image) for image in zip(image_sizes, views, counts, strict=True)]
        views, counts = [[n for n, _ in image] for image in ranked], [[k for _, k in image] for image in ranked]
    tiles = sum(_tiles(net.config, size, len(image_sizes)) for size in image_sizes)
    selection = 0 if pruner is None else _count_selection(net, tiles, [*chain(*views)], [*chain(*counts)], pruner)
    prefill, decode, kv_bytes = _count_language(net, kept + text_tokens)
    flops = {"vision": vision, "projector": projector, "selection": selection, "prefill": prefill}
    return Cost(sum(lengths), kept, text_tokens, flops, decode, kv_bytes)


def before_llm_alone(method: Method) -> bool:
    """Whether a method changes nothing but which tokens the LLM is given."""
    return all(part.acts in ("nowhere", "before the LLM") for part in method.parts)


def countable(config: Any, method: Method = UNPRUNED) -> bool:
    """Whether `cost` can count for models with this config and this method; for the others there is `measure`."""
    if not before_llm_alone(method) or follows_picture(method.keep):
        return False
    # A Pixtral tower's tokens are up to its processor.
    return getattr(config, "model_type", None) in COUNTABLE and config.vision_config.model_type != "pixtral"


@torch.no_grad()
def measure(
    model: Any, inputs: Mapping[str, Any], method: Method = UNPRUNED, masks: Sequence[Mask | None] = ()
) -> Cost:
    """Cost of a prompt of any family that can be pruned, counted while the model answers it.

    Args:
        model: of transformers, with its weights; it generates two tokens, then one.
        inputs: of the model, a batch of one or more prompts with images, as the processor makes them.
        method: attached for the count.
        masks: of each picture, in the order of the prompts, for a method that goes by them.

    Returns:
        Of the whole batch; `flops` has all up to the first new token as one part, "prompt"; `kept_tokens` is the
        mean over the layers of the LLM.

    Raises:
        UnsupportedModel: the method does not go on this model.
    """
    ids = inputs["input_ids"]
    tokens = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else ids.numel()
    visual = int((ids == host.placeholder(model.config)).sum())
    flops, kv_bytes = [], 0
    with method.attach(model) as run:
        run.masks = masks
        for count in (2, 1):
            with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                output = model.generate(
                    **inputs, min_new_tokens=count, max_new_tokens=count, do_sample=False, return_dict_in_generate=True
                )
            flops.append(counter.get_total_flops())
            kv_bytes = host.kv_bytes(host.cache_in(output))
    kept = sum(round(image.ratio * image.n_before) for image in run.images) if run.images else visual
    return Cost(visual, kept, tokens - visual, {"prompt": flops[1]}, flops[0] - flops[1], kv_bytes)


def cost_of_prompt(
    model: Any, inputs: Mapping[str, Any], image_sizes: Sequence[tuple[int, int]], method: Method = UNPRUNED
) -> Cost:
    """Cost of one prompt: by `cost` where that can count, else by `measure`.

    Args:
        model: of transformers, with its weights.
        inputs: of the model, one prompt as the processor makes it.
        image_sizes: (height, width) in pixels of each image of the prompt, in order.
        method: attached for it.
    """
    if not countable(model.config, method):
        return measure(model, inputs, method)
    text = int((inputs["input_ids"] != host.placeholder(model.config)).sum())
    return cost(model, image_sizes, text, method)


def _without_weights(model: str | PreTrainedConfig | PreTrainedModel) -> Any:
    config: Any = architecture(model) if isinstance(model, str) else getattr(model, "config", model)
    if not countable(config):
        raise ValueError(
            f"cannot count the cost of {model if isinstance(model, str) else type(model).__name__} (model_type="
            f"{getattr(config, 'model_type', None)!r}) from its config; supported are {', '.join(COUNTABLE)} with a "
            f"vision tower of a fixed input size; of other models gprune.cost.measure counts what a prompt costs"
        )
    dtype = model.dtype if isinstance(model, PreTrainedModel) else config.dtype
    with torch.device("meta"):
        # Eager attention is plain matrix products, counted in full whatever fused kernels this PyTorch has.
        net = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config), dtype=dtype or torch.float32, attn_implementation="eager"
        )
    return net.eval()


@torch.no_grad()
def _count_vision(net: Any, image_sizes: Sequence[tuple[int, int]]) -> tuple[int, int, list[int]]:
    """FLOPs of the vision tower and of the projector, and the number of visual tokens of each image."""
    if not image_sizes:
        return 0, 0, []
    config, count = net.config, len(image_sizes)
    shape: tuple[int, ...] = (3, config.vision_config.image_size, config.vision_config.image_size)
    sizes: dict[str, Any] = {}
    if _tiled(config):
        shape = (max(tiling(config, size).tiles for size in image_sizes), *shape)
        sizes["image_sizes"] = [list(size) for size in image_sizes]
    if config.model_type == "llava_onevision":
        sizes["batch_num_images"] = [count]
    pixels = torch.empty(count, *shape, dtype=net.dtype, device="meta")
    with FlopCounterMode(display=False) as counter:
        features = host.encode(net, "image", pixel_values=pixels, **sizes)[host.POOLED]
    projector = counter.get_flop_counts()[type(net.base_model.multi_modal_projector).__name__]
    projector_flops = sum(projector.values())
    return counter.get_total_flops() - projector_flops, projector_flops, [len(image) for image in features]


def _count_selection(net: Any, tiles: int, views: Sequence[int], counts: Sequence[int], pruner: Pruner) -> int:
    """FLOPs of choosing so many tokens of each view, those of reading the vision tower included."""
    vision = net.config.vision_config
    flops, keys = 0, vision.hidden_size // vision.num_attention_heads
    if set(FROM_TOWER) & set(pruner.needs):
        # One attention layer, or two, is run again, up to the logits of the tokens whose attention counts.
        class_token = host.has_class_token(net.base_model.vision_tower)
        patches = (vision.image_size // vision.patch_size) ** 2 + class_token
        logits = patches * vision.hidden_size * (1 if class_token else patches)
        layers = 2 if MIDDLE in pruner.needs else 1
        flops = layers * 2 * tiles * (4 * patches * vision.hidden_size**2 + logits)
    width = net.config.text_config.hidden_size
    return flops + sum(pruner.selection_flops(n, k, width, keys) for n, k in zip(views, counts, strict=True))


def _tiled(config: Any) -> bool:
    return FAMILIES[config.model_type].tiling == "any resolution"


def _tiles(config: Any, size: tuple[int, int], images: int) -> int:
    """How many tiles the vision tower sees of an image."""
    lone = _tiled(config) and not (config.model_type == "llava_onevision" and images > 1)
    return tiling(config, size).tiles if lone else 1


def _views(config: Any, size: tuple[int, int], tokens: int, images: int) -> list[int]:
    """Tokens of each view of an image, given how many visual tokens the model makes of it in all."""
    if not _tiled(config):
        return [tokens]
    tiles = tiling(config, size)
    views, newlines = list(tiles.views), tiles.newlines
    if config.model_type == "llava_onevision" and images > 1:
        views, newlines = views[:1], 1  # several images in a prompt are not tiled
    if sum(views) + newlines != tokens:
        raise RuntimeError(
            f"the model makes {tokens} visual tokens of an image of height {size[0]} and width {size[1]}; "
            f"expected were views of {views} tokens and {newlines} newlines, from square tiles, no class "
            f"token; check image_grid_pinpoints and vision_feature_select_strategy of the config"
        )
    return views


def _by_tile(config: Any, size: tuple[int, int], views: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens of each view of an image and how many are kept, its grid in tiles, as if they shared by size alone."""
    ranked = [*zip(views, counts, strict=True)]
    if len(ranked) < 2:
        return ranked
    base, (_, kept) = ranked
    sizes = [height * width for height, width in product(*tile_lines(config, size, tiling(config, size).grid))]
    return [base, *zip(sizes, kept_count(sizes, kept) if kept else [0] * len(sizes), strict=True)]


@torch.no_grad()
def _count_language(net: Any, tokens: int) -> tuple[int, int, int]:
    """FLOPs of the prefill and of one decode step, and the bytes of the KV cache between the two."""

    def embeddings(count: int) -> torch.Tensor:
        return torch.empty(1, count, net.config.text_config.hidden_size, dtype=net.dtype, device="meta")

    with FlopCounterMode(display=False) as prefill:
        cache = host.cache_in(net(inputs_embeds=embeddings(tokens), use_cache=True, logits_to_keep=1))
    kv_bytes = host.kv_bytes(cache)
    with FlopCounterMode(display=False) as decode:
        net(inputs_embeds=embeddings(1), **host.with_cache(net.forward, cache), use_cache=True, logits_to_keep=1)
    return prefill.get_total_flops(), decode.get_total_flops(), kv_bytes


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """PyTorch's counter knows the fused attention of GPUs alone."""
    return sdpa_flop_count(query, key, value)


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


def _check(image_sizes: Sequence[tuple[int, int]], text_tokens: int) -> None:
    _check_count("text_tokens", text_tokens, "the start token is one")
    for size in image_sizes:
        if len(size) != 2:
            raise ValueError(f"image size {size} is not a pair; accepted is (height, width); pass two ints")
        for name, pixels in zip(("image height", "image width"), size, strict=True):
            _check_count(name, pixels, "leave the image out if there is none")


def _check_count(name: str, value: object, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = type(value).__name__
        raise BadType(f"{name}={value!r} is a {kind}; accepted are integers >= 1; pass an int")
    if value < 1:
        raise ValueError(f"{name}={value} is too small; accepted are integers >= 1; {hint}")
