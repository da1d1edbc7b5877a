"""What the vision tower of a model of vLLM knows of each visual token, for methods that ask: CLIP and SigLIP.

vLLM runs these two layer by layer in PyTorch, so what a layer attends with can be looked at when it is called. How
values of patches become those of visual tokens is what transformers does, which gprune knows for every family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForImageTextToText

from .. import host
from ..attach import attention_received, middle_of
from ..families.table import FAMILIES, MIDDLE
from ..families.tiling import tiling
from ..pruners.base import Need
from .host import TOWER_LAYERS

with TOWER_LAYERS.checked():
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce

_Reading = tuple[Tensor, Tensor]
"""Of the tokens of B pictures: the attention that each receives, float32 [B, n], and its key, float32 [B, n, dk]."""


class TowerReader:
    """Reads the layer of a vision tower whose output becomes the visual tokens, and a middle one if that is needed.

    Args:
        model: of vLLM; its tower was built up to that layer.
        config: of transformers.
        needs: of the method.
    """

    def __init__(self, model: Any, config: Any, needs: Sequence[Need]) -> None:
        tower = model.vision_tower.vision_model
        layers = tower.encoder.layers
        self._class_token = host.has_class_token(tower)
        self._layers: dict[str, Module] = {"attention": layers[-1].self_attn.attn}
        if MIDDLE in needs:
            index = middle_of(config.vision_config.num_hidden_layers, len(layers) - 1)
            self._layers[MIDDLE] = layers[index].self_attn.attn
        with torch.device("meta"):  # it knows how tiles are packed; its weights are not needed
            self._base: Any = AutoModelForImageTextToText.from_config(config).base_model

    @contextmanager
    def reading(self) -> Iterator[dict[str, list[_Reading]]]:
        """While it lasts, what is read is appended to the list of a layer whenever that is called."""
        readings: dict[str, list[_Reading]] = {name: [] for name in self._layers}
        handles = [
            layer.register_forward_pre_hook(partial(self._read, readings[name])) for name, layer in self._layers.items()
        ]
        try:
            yield readings
        finally:
            for handle in handles:
                handle.remove()

    def signals(
        self, readings: Mapping[str, Sequence[_Reading]], inputs: Mapping[str, Any], features: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """What was read, for every visual token of each image.

        Args:
            readings: of one call of the encoder.
            inputs: of that call.
            features: floating [n, d] of each image.

        Returns:
            For each image "attention" float32 [n], "keys" float32 [n, dk], and "middle attention" if needed; NaN at
            newlines.
        """
        columns = [torch.cat([attention for attention, _ in of_layer])[..., None] for of_layer in readings.values()]
        values = torch.cat([*columns, torch.cat([keys for _, keys in readings["attention"]])], dim=-1)
        pictures = [pixels.shape[0] if pixels.ndim == 4 else 1 for pixels in inputs["pixel_values"]]
        known = FAMILIES[self._base.config.model_type]
        assert known.tower is not None
        signals = []
        for index, (own, image) in enumerate(zip(values.split(pictures), features, strict=True)):
            arguments = {}
            if known.tiling == "any resolution":
                arguments["image_sizes"] = size = inputs["image_sizes"][index : index + 1].cpu()
                own = own[: tiling(self._base.config, tuple(size[0].tolist())).tiles]  # what follows is padding
            flat = known.tower.image(self._base, own, arguments, len(image)).reshape(-1, values.shape[-1])
            scores = dict(zip(readings, flat.unbind(-1), strict=False))
            signals.append({**scores, "keys": flat[:, len(readings) :]})
        return signals

    def _read(self, own: list[_Reading], layer: Any, args: tuple[Tensor, ...]) -> None:
        query, key = (each.unflatten(-1, (-1, layer.head_size)).transpose(1, 2) for each in args[:2])
        attention = attention_received(query, key, None, layer.scale, self._class_token)
        own.append((_over_workers(attention), _over_workers(key.float().mean(1))))


def _over_workers(mean: Tensor) -> Tensor:
    """The mean over all heads, of which each worker has as many."""
    workers = get_tensor_model_parallel_world_size()
    return mean if workers == 1 else tensor_model_parallel_all_reduce(mean) / workers
