"""What becomes of a request's images before the model runs: how they are known, and that they are always sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from engines import picture, placed, pruned
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import LruKeyReplicatedSenderCache
from vllm.multimodal.processing import ProcessorInputs, TimingContext

from gprune.scenes.model import IMAGE, embedded_path
from gprune.serve.plugin import register


class Reading:
    """Reads requests as vLLM's server does, with its cache, which takes an image for sent once it was read."""

    def __init__(self, options: Callable[..., dict[str, Any]] = pruned, **settings: Any) -> None:
        register()
        path = embedded_path()
        config = ModelConfig(str(path), dtype="float32", **options(path, **{"gprune_keep": 0.5, **settings}))
        self.processor = MULTIMODAL_REGISTRY.create_processor(config)
        self.cache = LruKeyReplicatedSenderCache(config)

    def __call__(self, image: Any, name: str | None = None, prompt: Sequence[int] = (1, IMAGE, 5)) -> Any:
        items = self.processor.info.parse_mm_data({"image": [image]})
        inputs = ProcessorInputs(list(prompt), items, {"image": [name]}, cache=self.cache)
        return self.processor.apply(inputs, TimingContext(enabled=False))


@pytest.fixture(scope="module")
def read() -> Reading:
    return Reading()


def test_an_image_is_sent_with_every_request(read: Reading) -> None:
    """Also with those after one that was refused, of which the model's process never heard."""
    first, second = (read(picture(64, 64, seed=1)) for _ in range(2))
    assert first["mm_hashes"] == second["mm_hashes"]
    (before,), (after,) = first["mm_kwargs"]["image"], second["mm_kwargs"]["image"]
    assert after is not None and after["pixel_values"].data.equal(before["pixel_values"].data)
    assert first["prompt_token_ids"] == second["prompt_token_ids"] != [1, IMAGE, 5]


def test_a_prompt_without_a_place_for_its_image(read: Reading) -> None:
    with pytest.raises(ValueError, match="the prompt has no place for one of its images"):
        read(picture(64, 64, seed=5), prompt=[1, 5])
    assert read(picture(64, 64, seed=5))["prompt_token_ids"]


def test_names_of_clients(read: Reading) -> None:
    with pytest.raises(ValueError, match="named by a uuid, which this server does not accept"):
        read(picture(64, 64, seed=2), "mine")
    trusting = Reading(gprune_trust_uuid=True)
    assert trusting(picture(64, 64, seed=2), "mine")["mm_hashes"] == {"image": ["mine"]}


def test_names_that_vllm_gives_itself_do_not_count(read: Reading) -> None:
    """Clients could give them too."""
    first, second = (picture(64, 64, seed=seed) for seed in (3, 4))
    hashes = [read(image, name)["mm_hashes"] for image in (first, second) for name in (None, "renderer0-mm-1-image-0")]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]


@pytest.mark.parametrize("image", ["http://127.0.0.1/a.png", "a.png", {"url": "a.png"}, [["a.png"]], 7])
def test_what_only_says_where_a_picture_is(read: Reading, image: Any) -> None:
    with pytest.raises(ValueError, match=f"an image is a {type(image).__name__}; accepted are pictures"):
        read(image)


def test_an_image_says_how_many_tokens_it_had(read: Reading) -> None:
    """In a field that vLLM leaves to a request of which all images are in the cache of prefixes."""
    whole = Reading(gprune_keep=1.0)(picture(64, 64, seed=6))
    for _ in range(2):
        (item,) = read(picture(64, 64, seed=6))["mm_kwargs"]["image"]
        assert item["gprune_before"].field.keep_on_cpu
        assert int(item["gprune_before"].data) == whole["prompt_token_ids"].count(IMAGE)


def test_positions_of_what_is_dropped_must_last() -> None:
    """Only where they are kept."""
    tight = Reading(lambda path, **settings: {**placed(path, **settings), "max_model_len": 2000})
    image = picture(64, 64, seed=7)
    whole = Reading(gprune_keep=1.0)(image)["prompt_token_ids"].count(IMAGE)
    left = Reading()(image)["prompt_token_ids"].count(IMAGE)
    reason = f"{whole - left} visual tokens of the prompt are dropped, and 48 may be: the model has 2048 positions"
    with pytest.raises(ValueError, match=reason):
        tight(image)
    assert whole - left > 48 and Reading(placed)(image)["prompt_token_ids"]
