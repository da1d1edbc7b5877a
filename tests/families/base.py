"""What all families have in common: their inputs, and how to take them apart again."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import transformers as T
from torch import Generator, Tensor
from torch.nn.functional import pad
from typing_extensions import TypeIs

from gprune.tokens import View, VisualTokens

from .parts import IMAGE, VIDEO

Size = tuple[int, int]
"""(height, width) of an image in pixels."""

Video = tuple[int, Size]
"""(frames, size of a frame)."""

Media = Size | Video
"""What a prompt shows beside its text; wherever the tests say image, a video may stand too."""

Layout = tuple[int, list[tuple[list[int], Size | None]]]
"""Number of visual tokens of an image or a video; the rows and the (rows, columns) grid of each of its views."""

Text = Callable[[int], list[int]]
"""Makes that many random tokens of text."""

BATCH: tuple[tuple[Size, ...], ...] = (((20, 40),), ((40, 40), (30, 18)), ())
"""Images of each prompt: one, two, text only."""

VIDEOS: tuple[tuple[Media, ...], ...] = (((4, (20, 40)),), ((40, 40), (4, (30, 18))), ())
"""What each prompt shows: a video, an image and a video, text only."""

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def is_video(media: Media) -> TypeIs[Video]:
    """Whether it is a video."""
    return isinstance(media[1], tuple)


def is_visual(ids: Tensor) -> Tensor:
    """Which token ids are placeholders: bool of the same shape."""
    return (ids == IMAGE) | (ids == VIDEO)


class Inputs(dict[str, Tensor]):
    """The arguments of a call by name, and the family they are for."""

    def __init__(self, family: Family, arguments: dict[str, Tensor]) -> None:
        super().__init__(arguments)
        self.family = family


@dataclass(frozen=True, eq=False)
class Family(ABC):
    """A model family.

    Args:
        name: model_type.
        settings: of its config.
        before, after: token ids around the placeholders of an image.
        spread: standard deviation of the weights: far above the default, so that mistakes show, and small enough
            that float32 is exact to 1e-5.
    """

    name: str
    settings: dict[str, Any]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    spread: float = 0.15

    takes_videos: ClassVar[bool] = False
    takes_both: ClassVar[bool] = True
    """Whether images and videos may come in one call."""
    reads_placeholders: ClassVar[bool] = True
    """Whether the embedding of a placeholder without an image is its own; else it is that of padding."""
    knows_positions: ClassVar[bool] = True
    """Whether the LLM knows its tokens by position; else both numberings are the same."""
    tower_attends: ClassVar[bool] = True
    """Whether the vision tower has attention, of which the backend can be chosen."""
    llm_attends: ClassVar[bool] = True
    """Whether the backend of the LLM's attention can be chosen; else it is eager."""

    def build(self) -> tuple[Any, Any]:
        """The config and the class of the tiny model."""
        config = T.AutoConfig.for_model(self.name, **deepcopy(self.settings))
        return config, T.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]

    def model(self, attention: str = "sdpa") -> Any:
        """The model, shared between tests: leave it as it was."""
        return _model(self, attention)

    @abstractmethod
    def image_layout(self, size: Size) -> Layout:
        """The layout of an image, from its size alone."""

    def video_layout(self, video: Video) -> Layout:
        """The layout of a video, one view a frame, from its size alone."""
        raise NotImplementedError

    @abstractmethod
    def image_pixels(self, size: Size, generator: Generator) -> dict[str, Tensor]:
        """The pixel arguments of one image, [number of rows, ...] each."""

    def video_pixels(self, video: Video, generator: Generator) -> dict[str, Tensor]:
        """The pixel arguments of one video, [number of rows, ...] each."""
        raise NotImplementedError

    def image_ids(self, size: Size, text: Text) -> list[int]:
        """The tokens that stand for an image in a prompt."""
        return [*self.before, *[IMAGE] * self.layout(size)[0], *self.after]

    def video_ids(self, video: Video, text: Text) -> list[int]:
        """The tokens that stand for a video in a prompt."""
        return [*self.before, *[VIDEO] * self.layout(video)[0], *self.after]

    def prompt_ids(self, media: Sequence[Media], first: int, text: Text) -> list[int]:
        """The tokens of a prompt that begins with `first` tokens of text."""
        ids = text(first)
        for one in media:
            ids += (self.video_ids(one, text) if is_video(one) else self.image_ids(one, text)) + text(2)
        return ids + text(5)

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        """The arguments that tell images from text, of the shape of the token ids."""
        return {}

    def blocks(self, ids: Tensor) -> Tensor:
        """int64 [L]: tokens of the same block see each other both ways; -1 sees only what is before it."""
        return torch.full_like(ids, -1)

    def experts(self, ids: Tensor) -> Tensor:
        """int64 [L]: by which experts the tokens of a prompt are taken; 0 those of text, as for all that follows."""
        return torch.zeros_like(ids)

    def positions(self, model: Any, prompt: dict[str, Tensor]) -> Tensor:
        """int64 [..., 1, L]: position ids of one prompt without padding, as generate() numbers it."""
        return torch.arange(prompt["input_ids"].shape[1])[None]

    def logits(self, model: Any, ids: Tensor, arguments: dict[str, Any]) -> Tensor:
        """[1, n, vocabulary]: what the text model alone makes of embeddings, position ids and a mask."""
        return model.get_output_embeddings()(model.get_decoder()(**arguments).last_hidden_state)

    def embeddings(self, model: Any, ids: Tensor, features: list[Tensor]) -> Tensor:
        """[L, d]: what the text model sees of a prompt int64 [L], its visual tokens in place."""
        visual = is_visual(ids)
        embeddings = model.get_input_embeddings()(ids if self.reads_placeholders else ids.masked_fill(visual, 0))
        return embeddings.masked_scatter(visual[:, None], torch.cat(features)) if features else embeddings

    def deepstack(self, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        """[N, d] per layer of the text model that adds them to all visual tokens, in prompt order."""
        return []

    def layout(self, media: Media) -> Layout:
        """The layout of an image or a video."""
        return self.video_layout(media) if is_video(media) else self.image_layout(media)

    def tokens(self, features: Tensor, media: Media) -> VisualTokens:
        """Features [n, d] of an image or a video of that size as visual tokens."""
        count, views = self.layout(media)
        return VisualTokens(features, tuple(View(torch.tensor(rows), grid) for rows, grid in views), (count,))

    def inputs(self, images: Sequence[Sequence[Media]] = BATCH, *, side: str = "left", seed: int = 1) -> Inputs:
        """What a processor would make of prompts with these images and videos, padded on that side."""
        generator = torch.Generator().manual_seed(seed)

        def text(count: int) -> list[int]:
            return torch.randint(3, 88, (count,), generator=generator).tolist()

        prompts = [self.prompt_ids(media, 4 + number, text) for number, media in enumerate(images)]
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(length - len(prompt), None) if side == "left" else slice(len(prompt))
            ids[row, place], mask[row, place] = torch.tensor(prompt), 1
        pixels = [[self._pixels(one, generator) for one in media] for media in images]
        arguments = {"input_ids": ids, "attention_mask": mask, **self.token_types(ids)}
        return Inputs(self, arguments | (self.collate(pixels) if any(pixels) else {}))

    def shown(self, prompts: Sequence[Sequence[Media]] = VIDEOS) -> Sequence[Sequence[Media]]:
        """What these prompts with videos show, or only the videos where images may not come with them."""
        return [[one for one in prompt if self.takes_both or is_video(one)] for prompt in prompts]

    def video_inputs(self, videos: Sequence[Sequence[Media]] = VIDEOS, *, side: str = "left", seed: int = 1) -> Inputs:
        """The same with other images and videos unless told."""
        return self.inputs(self.shown(videos), side=side, seed=seed)

    def collate(self, pixels: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Join the pixel arguments of the images of each prompt; where they differ in size they get zeros."""
        each = [one for prompt in pixels for one in prompt]
        names = dict.fromkeys(name for one in each for name in one)
        return {name: _cat_padded([one[name] for one in each if name in one]) for name in names}

    def cut(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """The pixel arguments of one prompt of a batch."""
        first, own = self._rows(images[:row]), self._rows(images[row : row + 1])
        return {name: inputs[name][first[name] : first[name] + own[name]] for name in own if name in inputs}

    def prompt_of(self, inputs: dict[str, Tensor], row: int, images: Sequence[Sequence[Media]] = BATCH) -> Inputs:
        """One prompt of a batch, without its padding and with only its own pixels."""
        valid = inputs["attention_mask"][row].bool()
        tokens = {name: inputs[name][row : row + 1, valid] for name in PER_TOKEN if name in inputs}
        return Inputs(self, tokens | (self.cut(inputs, row, images) if images[row] else {}))

    def encode(self, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]] = BATCH) -> list[Tensor]:
        """The visual tokens [n, d] of every image and video of these prompts, by the stock encoders."""
        return self._read_encoders(model, inputs, images, lambda output: output.pooler_output)

    def shown_rows(self, features: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Of an encoder's output [N, d] the rows that stand in the prompts; of videos, with the inputs."""
        return features

    def _read_encoders(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        images: Sequence[Sequence[Media]],
        read: Callable[[Any], Sequence[Tensor]],
    ) -> list[Tensor]:
        media = [one for prompt in images for one in prompt]
        found: dict[bool, list[Tensor]] = {}
        for video in {is_video(one) for one in media}:
            encoder = model.base_model.get_video_features if video else model.base_model.get_image_features
            arguments = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
            rows = [rows.flatten(0, -2) for rows in read(encoder(**arguments, return_dict=True))]
            counts = [self.layout(one)[0] for one in media if is_video(one) == video]
            found[video] = list(self.shown_rows(torch.cat(rows), inputs if video else {}).split(counts))
        return [found[is_video(one)].pop(0) for one in media]

    def _pixels(self, media: Media, generator: Generator) -> dict[str, Tensor]:
        return self.video_pixels(media, generator) if is_video(media) else self.image_pixels(media, generator)

    def _rows(self, images: Sequence[Sequence[Media]]) -> Counter[str]:
        each = [self._pixels(one, torch.Generator()) for prompt in images for one in prompt]
        return Counter({name: sum(len(one[name]) for one in each if name in one) for one in each for name in one})


class Deepstack(Family):
    """Features of inner layers of the vision tower may go to the LLM too."""

    def deepstack(self, model: Any, inputs: dict[str, Tensor], images: Sequence[Sequence[Media]]) -> list[Tensor]:
        def level(index: int) -> Tensor:
            features = self._read_encoders(model, inputs, images, lambda output: output.deepstack_features[index])
            return torch.cat(features)

        levels = len(self.settings["vision_config"].get("deepstack_visual_indexes", ()))
        return [level(index) for index in range(levels)] if any(images) else []


def prompt_of(inputs: Inputs, row: int, images: Sequence[Sequence[Media]] = BATCH) -> Inputs:
    """One prompt of a batch, without its padding and with only its own pixels."""
    return inputs.family.prompt_of(inputs, row, images)


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([pad(part, _missing(part, largest)) for part in parts])


def _missing(part: Tensor, largest: Sequence[int]) -> list[int]:
    sizes = zip(reversed(part.shape[1:]), reversed(largest), strict=True)
    return [zeros for size, most in sizes for zeros in (0, most - size)]


@cache
def _model(family: Family, attention: str) -> Any:
    config, kind = family.build()
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, family.spread)
    backend: Any = attention
    if not family.tower_attends:
        backend = {"": attention, "text_config": attention}
    elif not family.llm_attends:
        backend = {"vision_config": attention}
    model.set_attn_implementation(backend)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
