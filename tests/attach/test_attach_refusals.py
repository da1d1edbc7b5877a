"""What cannot be pruned is refused with a reason or passes untouched; nothing is pruned wrong in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from decoding import cache_of, with_cache
from families import FAMILIES, IMAGE, prompt_of

from gprune.attach import UnsupportedModel
from gprune.families.table import FAMILIES as TABLE
from gprune.families.table import unsupported
from gprune.pruners import GPrune, NonFiniteFeatures

FAMILY = FAMILIES["llava_next"]
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
PRUNER = GPrune(keep=0.4)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> Any:
    return FAMILY.model()


def others() -> dict[str, Any]:
    text = {"vocab_size": 96, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    llama = T.LlamaConfig(**text, num_attention_heads=1)
    blip = T.Blip2Config(
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        },
        qformer_config={**text, "num_attention_heads": 1, "encoder_hidden_size": 8},
        text_config={**llama.to_dict(), "model_type": "llama"},
    )
    return {
        "llama": T.LlamaForCausalLM(llama),
        "blip-2": T.Blip2ForConditionalGeneration(blip),
        "llava_next": FAMILY.model().model,  # the inner model, without a head
        "None": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("llama", r"does not take images.*supported.*llava_next"),
        ("blip-2", r"Q-Former.*supported.*qwen3_vl"),
        ("llava_next", r"pass the \.\.\.ForConditionalGeneration model"),
        ("None", r"does not take images.*supported"),
    ],
)
def test_other_models(model_type: str, reason: str) -> None:
    model = others()[model_type]
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        PRUNER.attach(model)
    assert type(model).__name__ in str(caught.value)
    assert model_type in str(caught.value)
    assert not model._forward_pre_hooks and not model._forward_hooks


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chameleon", "codebook"),
        ("emu3", "codebook"),
        ("instructblip", "Q-Former"),
        ("mllama", "cross-attention"),
        ("idefics", "cross-attention"),
        ("florence2", "encoder-decoder"),
        ("t5gemma2", "encoder-decoder"),
        ("idefics2", "query tokens"),
        ("git", "CONTRIBUTING"),
    ],
)
def test_families_that_work_otherwise_are_refused_with_the_reason(name: str, reason: str) -> None:
    config = T.CONFIG_MAPPING[name]()
    assert reason in (unsupported(config) or "")
    assert all(family in (unsupported(config) or "") for family in FAMILIES)


def test_transformers_without_pre_encoded_images(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, input_ids: Any = None, pixel_values: Any = None) -> None:
        """The signature of an older transformers."""

    forward.__module__ = type(model).__module__
    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(UnsupportedModel, match=r"transformers>=5\.19,<5\.25"):
        PRUNER.attach(model)


def test_transformers_too_old_for_one_family(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "llava_next", replace(TABLE["llava_next"], since="5.999"))
    with pytest.raises(UnsupportedModel, match=rf"{T.__version__}.*pip install 'transformers>=5\.999'"):
        PRUNER.attach(model)


def test_transformers_in_which_one_family_is_broken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "llava_next", replace(TABLE["llava_next"], broken=T.__version__))
    with pytest.raises(UnsupportedModel, match=rf"in transformers {T.__version__} itself.*,!={T.__version__}'"):
        PRUNER.attach(model)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("call", ["generate", "forward"])
def test_features_that_are_not_finite_name_the_image(model: Any, bad: float, call: str) -> None:
    inputs = FAMILY.inputs()
    good = FAMILY.inputs()
    inputs["pixel_values"][1] = bad
    with PRUNER(model) as run:
        expected = model(**good).logits
        with pytest.raises(NonFiniteFeatures, match=r"image 1 \(of 3"):
            model.generate(**inputs, **GREEDY) if call == "generate" else model(**inputs)
        assert torch.equal(model(**good).logits, expected)
        assert len(run.images) == 3
        with pytest.raises(NonFiniteFeatures, match=r"image 1 \(of 3"):  # beams repeat images, the error does not
            model.generate(**inputs, **GREEDY, num_beams=2)


def test_text_passes_through_untouched(model: Any) -> None:
    text = prompt_of(FAMILY.inputs(), 2)
    settings = ({}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True})
    logits = {"return_dict_in_generate": True, "output_logits": True}
    seen: list[dict[str, Any]] = []

    def see(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs)

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    stock = [model.generate(**text, **GREEDY, **logits, **setting) for setting in settings]
    handle.remove()
    decode_masks = [call["attention_mask"].shape for call in seen[-2:]]
    assert [len(shape) for shape in decode_masks] == [4, 4]  # of the static cache
    with PRUNER(model) as run:
        handle = model.register_forward_pre_hook(see, with_kwargs=True)
        for expected, setting in zip(stock, settings, strict=True):
            output = model.generate(**text, **GREEDY, **logits, **setting)
            assert all(map(torch.equal, output.logits, expected.logits))
        assert [call["attention_mask"].shape for call in seen[-2:]] == decode_masks
        seen.clear()
        mask = torch.ones(1, 1, 11, 11, dtype=torch.bool).tril()
        arguments = {
            "input_ids": text["input_ids"],
            "attention_mask": mask,
        }  # a 4-D mask is none of our business
        model(**arguments)
        handle.remove()
        assert run.images == []
    assert seen[0].keys() == arguments.keys()
    assert all(seen[0][name] is arguments[name] for name in arguments)


def test_masks_that_are_not_2d(model: Any) -> None:
    inputs = FAMILY.inputs()
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(3, 1, length, length)
    with PRUNER(model):
        with pytest.raises(ValueError, match=r"attention_mask.*\(3, 1, \d+, \d+\).*2-D"):
            model(**inputs)
        inputs["attention_mask"] = {"full_attention": None}
        with pytest.raises(ValueError, match=r"attention_mask is a dict.*2-D"):
            model(**inputs)


def test_mask_of_the_wrong_length(model: Any) -> None:
    inputs = FAMILY.inputs()
    with PRUNER(model):
        cache = cache_of(model(**inputs))
        mask = torch.ones(3, cache.get_seq_length() + 7)
        with pytest.raises(ValueError, match=r"attention_mask has \d+ columns"):
            model(input_ids=torch.full((3, 2), 9), attention_mask=mask, **with_cache(cache))


@pytest.mark.parametrize("call", ["generate", "forward"])
def test_placeholders_and_features_that_disagree(model: Any, call: str) -> None:
    inputs = prompt_of(FAMILY.inputs(), 0)
    place = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    inputs["input_ids"][0, place] = 5
    count = FAMILY.layout((20, 40))[0]
    with (
        PRUNER(model),
        pytest.raises(ValueError, match=rf"{count - 1} image placeholders.*{count} visual tokens"),
    ):
        model.generate(**inputs, **GREEDY) if call == "generate" else model(**inputs)


@pytest.mark.skipif(
    not hasattr(T.generation.utils, "_slice_mm_encoder_output"),
    reason="this transformers leaves images out of chunked prefill, pruned or not",
)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
@pytest.mark.parametrize("chunk", [8, 16, 500])
def test_chunked_prefill(name: str, chunk: int) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    with PRUNER(model), pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=chunk)


def test_embeddings_without_ids(model: Any) -> None:
    inputs = FAMILY.inputs()
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with PRUNER(model):
        with pytest.raises(ValueError, match=r"have 0 image placeholders|input_ids has 0 image placeholders"):
            model(inputs_embeds=embeddings + 1, **inputs)
        with pytest.warns(UserWarning, match=r"inputs_embeds.*nothing is pruned"):
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        cache = cache_of(model(**FAMILY.inputs()))
        with pytest.raises(ValueError, match=r"inputs_embeds.*pruned cache"):
            model(inputs_embeds=embeddings[:, :2], **with_cache(cache))


def test_logits_by_index(model: Any) -> None:
    inputs = FAMILY.inputs()
    with PRUNER(model):
        with pytest.raises(ValueError, match=r"logits_to_keep.*int"):
            model(**inputs, logits_to_keep=torch.tensor([3]))
        assert model(**inputs, logits_to_keep=2).logits.shape[1] == 2


def test_pixels_beside_encoded_images_are_left_to_the_model(model: Any) -> None:
    inputs = FAMILY.inputs()
    encoded = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    with PRUNER(model), pytest.raises(ValueError, match="pixel_values and mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={"image": encoded})
