"""Kept tokens with the positions that they have in the unpruned prompt, inside vLLM.

vLLM asks a model that has several axes of positions to number each prompt itself, which does for one axis too: text
gets its positions there. The places of kept tokens in their images come with the features of each step, wait in a
buffer, and are added at the top of the forward pass, into another buffer. So what a CUDA graph reads and writes never
moves, the whole forward pass or parts of it may be captured, and no prompt needs a place before it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .host import PLACES
from .places import Shrunk, pruned_positions, split_places, unpruned_prompt, with_places
from .settings import AXES, BEFORE, POSITIONS, keeps_positions

with PLACES.checked():
    from vllm.multimodal.inputs import PlaceholderRange
    from vllm.transformers_utils.config import iter_rope_parameters

if TYPE_CHECKING:
    Base: Any
else:
    Base = object

FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on how long a prompt is."""


class PlacingModel(Base):
    """Goes before a model of vLLM, whose features of images come with places if positions are kept."""

    supports_mrope: ClassVar[bool] = True
    """Says to vLLM that there is `get_mrope_input_positions`; whether it is used, the config says."""
    _axes: ClassVar[int] = 1
    """Along how many axes the language model numbers its tokens: one, or three."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        self._placing = self._keeps_positions(vllm_config.model_config.hf_config)
        check_offered(vllm_config, self._placing)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self._placing:
            self._check_positions(vllm_config.model_config)
            # One column more than is used, so that no part of it is contiguous, as vLLM has its own: for torch.compile.
            shape = self._axes, vllm_config.scheduler_config.max_num_batched_tokens + 1
            for name in ("_places", "_positions"):
                self.register_buffer(name, torch.zeros(shape, dtype=torch.int64), persistent=False)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """int64 [3, n], where visual tokens of a pruned image have the positions of its first one.

        And what the positions of the tokens after the prompt are ahead of their number.
        """
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        images = [_shrunk(feature) for feature in features if BEFORE in feature.data]
        prompt = unpruned_prompt(input_tokens, images)
        positions, ahead = self._unpruned_positions(prompt, list(_unpruned(features)))
        return pruned_positions(positions, images), ahead + len(prompt) - len(input_tokens)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """The embeddings of the tokens of a step, floating [n, d]; places of visual ones are kept for `forward`."""
        if (
            self._placing
            and is_multimodal is not None
            and multimodal_embeddings is not None
            and len(multimodal_embeddings)
        ):
            parts = [split_places(features, self._axes) for features in multimodal_embeddings]
            multimodal_embeddings = [features for features, _ in parts]
            rows = is_multimodal.nonzero().flatten().to(self._places.device)
            self._places[:, rows] = torch.cat([places for _, places in parts]).T
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **others: object,
    ) -> Any:
        """What vLLM's model gives, for the positions and places of a step."""
        if self._placing:
            positions = self._placed(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **others)

    def _placed(self, positions: Tensor) -> Tensor:
        """int64 [n] or [3, n] of int64 [3, n]."""
        count = positions.shape[1]
        places, placed = self._places[:, :count], self._positions[:, :count]
        torch.add(positions[: self._axes], places, out=placed)
        places.zero_()  # vLLM also runs steps that nothing was embedded for
        return placed[0] if self._axes == 1 else placed

    def _with_places(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Features [k, d] as they leave the encoder: places int64 [k, axes] are those of an image that was pruned."""
        if not self._placing:
            return features
        if places is None:
            places = torch.zeros(len(features), self._axes, dtype=torch.int64, device=features.device)
        return with_places(features, places)

    def _keeps_positions(self, config: Any) -> bool:
        return keeps_positions(config)

    def _unpruned_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """int64 [3, n] of an unpruned prompt; and what the positions after it are ahead of their number."""
        return torch.arange(len(tokens)).expand(3, -1), 0

    def _places_of(self, kept: Tensor, size: tuple[int, int]) -> Tensor:
        """Places int64 [k, axes] of kept rows int64 [k] of an image."""
        return kept[:, None]

    def _check_positions(self, config: Any) -> None:
        """Raise ValueError if the language model would get positions that it cannot tell apart."""
        text = config.hf_config.get_text_config()
        kinds = {parameters.get("rope_type", "default") for parameters in iter_rope_parameters(text)} - {*FIXED_ROPES}
        if kinds:
            raise _refusal(
                f"its rotary positions are of type {', '.join(sorted(kinds))}, which depend on the length of a prompt, "
                f"and vLLM knows it after pruning only; accepted are {', '.join(FIXED_ROPES)}"
            )
        tables = [len(part.cos_sin_cache) for part in self.modules() if hasattr(part, "cos_sin_cache")]
        if not tables or min(tables) < text.max_position_embeddings:
            raise _refusal("its language model has no table of rotary positions, or a shorter one than its config says")
        if config.max_model_len >= text.max_position_embeddings:
            raise _refusal(
                f"prompts and answers may have {config.max_model_len} tokens, all the positions that it has, and what "
                f"is dropped needs some; give a smaller --max-model-len: what it leaves of "
                f"{text.max_position_embeddings} is how many tokens a prompt may lose"
            )


def check_offered(config: Any, placing: bool) -> None:
    """Raise ValueError if vLLM is started in a way in which tokens would get wrong positions.

    Args:
        config: of vLLM.
        placing: whether kept tokens are to keep those that they have in the unpruned prompt.
    """
    model, parallel = config.model_config, config.parallel_config
    if model.uses_mrope != placing:
        raise ValueError(
            f'hf_overrides need both of "{POSITIONS}": "original" and "{AXES}": [1], or none of them; given are '
            f'"{POSITIONS}": {getattr(model.hf_config, POSITIONS, None)!r} and "{AXES}": '
            f"{getattr(model.hf_config, AXES, None)!r}"
        )
    multimodal = model.multimodal_config
    for wrong, reason in (
        (
            multimodal.is_multimodal_pruning_enabled(),
            "with --video-pruning-rate, vLLM prunes videos itself, and moves positions",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "with --pipeline-parallel-size, features and their places reach the first stage only",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            "with --prefill-context-parallel-size, a worker runs a part of the tokens that were embedded",
        ),
        (
            parallel.use_ubatching,
            "with --enable-dbo or --ubatch-size, vLLM runs the tokens that were embedded in parts",
        ),
        (
            config.speculative_config is not None,
            "with --speculative-config, vLLM hands features and places to a draft model, which takes both for "
            "features; ways of drafting without one were not tried",
        ),
        (
            model.enable_prompt_embeds or multimodal.enable_mm_embeds,
            "with --enable-prompt-embeds or --enable-mm-embeds, features come without places",
        ),
    ):
        if placing and wrong:
            raise _refusal(reason)


def _refusal(reason: str) -> ValueError:
    return ValueError(f"gprune cannot keep the positions of tokens in this model: {reason}")


def _shrunk(feature: Any) -> Shrunk:
    start, _ = feature.mm_position.extract_embeds_range()[0]
    return Shrunk(start, feature.mm_position.get_num_embeds(), int(feature.data[BEFORE].data))


def _unpruned(features: Sequence[Any]) -> Any:
    """The same features, in order, with their placeholders where they are in the unpruned prompt."""
    ahead = 0
    for feature in features:
        where = feature.mm_position
        dropped = _shrunk(feature).dropped if BEFORE in feature.data else 0
        yield replace(feature, mm_position=PlaceholderRange(where.offset + ahead, where.length + dropped))
        ahead += dropped
