"""How values of the patches in a vision tower become values of the visual tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from .. import host
from .tiling import tiling

Arguments = Mapping[str, Any]
"""Those of the encoder call that were given, by name."""

ToTokens = Callable[[Any, Tensor, Arguments, int], Tensor]
"""(base model, values of the patches [B, n, c], arguments, number N of visual tokens) -> [..., c], N in all."""


def patches(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is a patch."""
    return values


def pooled(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of a square of patches of a square tile."""
    return _squares(values, math.isqrt(values.shape[1]), values.shape[:2].numel() // count)


def pooled_by_size(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of a square of patches of an image of any shape, [1, n, c] in a row or [B, n, c] padded."""
    if "spatial_shapes" in arguments:
        shapes = arguments["spatial_shapes"].tolist()
        images = [image[: math.prod(shape)] for image, shape in zip(values, shapes, strict=True)]
    else:
        if "image_grid_thw" in arguments:
            shapes = arguments["image_grid_thw"][:, 1:].tolist()
        elif "target_sizes" in arguments:  # of patches before some towers merge squares of them on their way
            shapes = arguments["target_sizes"]
            shapes = (shapes // math.isqrt(int(shapes.prod(1).sum()) // values.shape[1])).tolist()
        else:
            shapes = (torch.as_tensor(arguments["image_sizes"]) // base.config.vision_config.patch_size).tolist()
        images = list(values[0].split([math.prod(shape) for shape in shapes]))
    area = sum(map(len, images)) // count
    return torch.cat([_squares(image[None], rows, area)[0] for image, (rows, _) in zip(images, shapes, strict=True)])


def merged(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of patches that follow each other."""
    return values[0].view(count, -1, values.shape[-1]).mean(1)


def merged_over_frames(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of patches that follow each other, and of those at their place in the next frames."""
    vision = base.config.vision_config
    videos = values[0].split(arguments["video_grid_thw"].prod(1).tolist())
    means = [
        video.unflatten(0, (int(frames) // vision.temporal_merge_size, vision.temporal_merge_size, -1)).mean(1)
        for video, frames in zip(videos, arguments["video_grid_thw"][:, 0], strict=True)
    ]
    return merged(base, torch.cat([video.flatten(0, 1) for video in means])[None], arguments, count)


def merged_by_size(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of patches that follow each other, of a number that each image says."""
    kind = "image" if "image_grid_thw" in arguments else "video"
    images = values[0].split(arguments[f"{kind}_grid_thw"].prod(1).tolist())
    areas = arguments[f"{kind}_merge_sizes"].square().tolist()
    return torch.cat([image.unflatten(0, (-1, area)).mean(1) for image, area in zip(images, areas, strict=True)])


def merged_in_windows(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of patches that follow each other where a tower puts those of a window side by side."""
    vision = base.config.vision_config
    merge = vision.spatial_merge_size
    window = vision.window_size // merge // vision.patch_size
    grids = arguments["image_grid_thw" if "image_grid_thw" in arguments else "video_grid_thw"].tolist()
    order = torch.empty(0, dtype=torch.long)
    for frames, rows, columns in ((frames, height // merge, width // merge) for frames, height, width in grids):
        place = torch.cartesian_prod(*map(torch.arange, (frames, rows, columns)))
        across = -(-columns // window)
        windows = (place[:, 0] * rows + place[:, 1] // window) * across + place[:, 2] // window
        order = torch.cat([order, windows.argsort(stable=True) + len(order)])
    return merged(base, values, arguments, count)[order.argsort().to(values.device)]


def pooled_lines(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """A token is the mean of a square of patches; a learned row, NaN, ends every line."""
    grids = arguments["image_grid_thw" if "image_grid_thw" in arguments else "video_grid_thw"].tolist()
    merge = base.config.vision_config.spatial_merge_size
    images = []
    for (frames, height, _), image in zip(grids, values[0].split([math.prod(grid) for grid in grids]), strict=True):
        squares = _squares(image.unflatten(0, (frames, -1)), height, merge**2).unflatten(1, (height // merge, -1))
        images.append(pad(squares, (0, 0, 0, 1), value=torch.nan).flatten(0, 2))
    return torch.cat(images)


def packed(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """Tiles as LLaVA-NeXT and LLaVA-OneVision pack them; newline rows are NaN."""
    sizes = arguments["image_sizes"]
    together = arguments.get("batch_num_images")
    cut = [True] * len(sizes) if together is None else [n == 1 for n in together for _ in range(int(n))]
    number = [tiling(base.config, tuple(size)).tiles for size in sizes.tolist()]
    tiles = [tiles if own else 1 for tiles, own in zip(number, cut, strict=True)]
    newline = values.new_full(values.shape[-1:], torch.nan)
    if base.config.model_type == "llava_onevision":
        how = {"vision_aspect_ratio": arguments.get("vision_aspect_ratio") or base.config.vision_aspect_ratio}
    else:
        how = {host.STRATEGY: _strategy(base, arguments)}
    return torch.cat(base.pack_image_features(values.split(tiles), sizes, image_newline=newline, **how)[0])


def resized_frames(base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    """Frames as LLaVA-OneVision resizes them, with a newline row, NaN, after each video."""
    frames = base.apply_pooling(values)
    videos = count - frames.shape[:2].numel()
    return pad(frames.reshape(videos, -1, frames.shape[-1]), (0, 0, 0, 1), value=torch.nan)


def without_class_token(tokens: ToTokens) -> ToTokens:
    """Leaves out the class token in front of the patches where the encoder does."""
    return partial(_without_class_token, tokens)


def _without_class_token(tokens: ToTokens, base: Any, values: Tensor, arguments: Arguments, count: int) -> Tensor:
    return tokens(base, values[:, 1:] if _strategy(base, arguments) == "default" else values, arguments, count)


def _strategy(base: Any, arguments: Arguments) -> str:
    return host.feature_strategy(base.config, arguments) or "default"


def _squares(values: Tensor, rows: int, area: int) -> Tensor:
    """Means of squares of `area` values: [B, n, c] in `rows` lines -> [B, n / area, c]."""
    lines = values.unflatten(1, (rows, -1)).permute(0, 3, 1, 2)
    return avg_pool2d(lines, math.isqrt(area)).flatten(2).mT
