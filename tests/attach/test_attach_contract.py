"""Hosts that are not as they were: what a newer transformers might do to forward, caches, encoders and layers."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
import torch
import transformers
from decoding import since
from families import BATCH, FAMILIES, prompt_of
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from gprune import FastV, GPrune, ToMe, UnsupportedModel, host, verify
from gprune.attach import verification
from gprune.cost import measure

FAMILY = FAMILIES["llava_next"]
STOCK: Any = type(FAMILY.model())
GREEDY = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def hosted(kind: type) -> Any:
    """The tiny model with another class's forward, its weights shared."""
    model = copy.copy(FAMILY.model())
    for name in [name for name in vars(model) if name.startswith(("_forward_hooks", "_forward_pre_hooks"))]:
        vars(model)[name] = OrderedDict()
    model.__class__ = kind
    return model


def cache_argument(cache: Any) -> dict[str, Any]:
    return host.with_cache(STOCK.forward, cache)


class Renamed(STOCK):
    """Calls its cache by another name."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        mm_encoder_outputs: Any = None,
        memory: Cache | None = None,
    ) -> Any:
        return super().forward(input_ids=input_ids, mm_encoder_outputs=mm_encoder_outputs, **cache_argument(memory))


class Weighing(STOCK):
    """Takes a value per token that is new."""

    def forward(self, *args: Any, token_weights: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Storing(STOCK):
    """Takes the cache under a new name beside the old one."""

    def forward(self, *args: Any, store: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs, **({} if store is None else cache_argument(store)))


class Losing(STOCK):
    """Hands back a new cache with the same keys and values."""

    @wraps(STOCK.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        cache = DynamicCache()
        for index, layer in enumerate(host.cache_in(output).layers):
            cache.update(layer.keys, layer.values, index)
        (name,) = cache_argument(None)
        output[name] = cache
        return output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """After the hooks, as a caller that rebuilds what it is given."""
        output = super().__call__(*args, **kwargs)
        cache = host.cache_in(output)
        vars(cache).pop("_gprune_conversation", None)
        return output


class AsTuple(STOCK):
    """Returns a tuple whatever it is told."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs).to_tuple()


@pytest.mark.skipif(not since("5.24"), reason="this transformers knows one name alone")
def test_the_old_name_of_the_cache_still_works() -> None:
    """A caller may go on saying it until it goes in 5.40; it is transformers that warns then."""
    model, prompt = FAMILY.model(), prompt_of(FAMILY.inputs(), 0)
    token = torch.tensor([[7]])
    mask = torch.ones(1, prompt["input_ids"].shape[1] + 1)
    logits = []
    for name in host.CACHES:
        with GPrune(0.5, positions="contiguous")(model), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model(**prompt, **{name: (cache := DynamicCache())})
            logits.append(model(input_ids=token, attention_mask=mask, **{name: cache}).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "janus"])  # its own generate() uses one
def test_no_deprecated_name_is_used(name: str, caplog: pytest.LogCaptureFixture) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    transformers.utils.logging.enable_propagation()
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    with warnings.catch_warnings(), GPrune(0.5)(model) as run:
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        model.generate(**inputs, **GREEDY, suppress_tokens=[90, 91])
        measure(model, prompt_of(inputs, 0), GPrune(0.5))
        assert run.images
    transformers.utils.logging.disable_propagation()
    assert "deprecated" not in caplog.text


def test_a_cache_by_another_name_is_refused_at_once() -> None:
    with pytest.raises(UnsupportedModel, match=r"Renamed.forward was overridden"):
        GPrune(0.5).attach(hosted(Renamed))
    Renamed.forward.__module__ = "transformers.models.llava_next.modeling_llava_next"
    with pytest.raises(
        UnsupportedModel,
        match=rf"no argument cache or past_key_values in {transformers.__name__} {transformers.__version__}.*pip",
    ):
        GPrune(0.5).attach(hosted(Renamed))


def test_a_cache_under_a_name_that_is_not_known() -> None:
    model, inputs = hosted(Storing), FAMILY.inputs()
    with GPrune(0.5)(model):
        with pytest.raises(UnsupportedModel, match=r"known name for the KV cache that it is given as store"):
            model(**inputs, store=DynamicCache())
        model(**inputs, **cache_argument(DynamicCache()))


@pytest.mark.parametrize("shape", ["row", "batch", "vectors"])
def test_a_value_per_token_that_is_not_known(shape: str) -> None:
    model, inputs = hosted(Weighing), FAMILY.inputs()
    batch, length = inputs["input_ids"].shape
    weights = {"row": torch.ones(length), "batch": torch.ones(batch, length), "vectors": torch.ones(batch, length, 2)}
    with GPrune(0.5)(model):
        with pytest.raises(UnsupportedModel, match=rf"token_weights of shape \[.*a value for each of {length} tokens"):
            model(**inputs, token_weights=weights[shape])
        model(**inputs, token_weights=torch.ones(7))
    with GPrune(1.0)(model):  # of which nothing has to be taken away
        assert torch.equal(model(**inputs, token_weights=weights[shape]).logits, FAMILY.model()(**inputs).logits)


@pytest.mark.parametrize("way", ["generate", "forward"])
def test_a_cache_that_comes_back_without_what_was_dropped(way: str) -> None:
    model, prompt = hosted(Losing), prompt_of(FAMILY.inputs(), 0)
    with (
        GPrune(0.5)(model),
        pytest.raises(UnsupportedModel, match=r"goes on with one token and a KV cache of \d+ columns"),
    ):
        if way == "generate":
            model.generate(**prompt, **GREEDY)
        else:
            cache = host.cache_in(model(**prompt))
            model(input_ids=torch.tensor([[7]]), **cache_argument(cache))


def test_a_cache_that_does_not_come_back() -> None:
    model, prompt = FAMILY.model(), prompt_of(FAMILY.inputs(), 0)
    token = torch.tensor([[7]])
    with GPrune(0.5)(model):
        model(**prompt)
        with pytest.raises(UnsupportedModel, match=r"goes on with one token and no KV cache"):
            model(input_ids=token)
        model(**prompt)
        with pytest.raises(UnsupportedModel, match=r"goes on with one token and no KV cache"):
            model(input_ids=token, attention_mask=torch.ones(1, 40))
        model(**prompt)
        expected = model(input_ids=token, use_cache=False).logits  # a prompt of its own
        model(**prompt)
        assert torch.equal(model.generate(input_ids=token, **GREEDY)[:, :1], token)  # another
    assert torch.equal(model(input_ids=token, use_cache=False).logits, expected)


def test_conversations_in_turns_are_not_mistaken() -> None:
    """One without images goes on right after another's image was pruned."""
    model, inputs = FAMILY.model(), FAMILY.inputs()
    with GPrune(0.5)(model):
        text = host.cache_in(model(**prompt_of(inputs, 2)))
        expected = model(input_ids=torch.tensor([[7]]), **cache_argument(copy.deepcopy(text))).logits
        model(**prompt_of(inputs, 0))
        assert torch.equal(model(input_ids=torch.tensor([[7]]), **cache_argument(text)).logits, expected)


def test_a_forward_that_returns_a_tuple() -> None:
    model, prompt = hosted(AsTuple), prompt_of(FAMILY.inputs(), 0)
    with GPrune(0.5)(FAMILY.model()):
        expected = FAMILY.model()(**prompt).logits
    with GPrune(0.5)(model):
        logits, cache = model(**prompt)[:2]
        assert torch.equal(logits, expected)
        mask = torch.ones(1, prompt["input_ids"].shape[1] + 1)
        step = model(input_ids=torch.tensor([[7]]), attention_mask=mask, **cache_argument(cache))[0]
    with GPrune(0.5)(FAMILY.model()) as run:
        again = run.model(**prompt)
        other = run.model(input_ids=torch.tensor([[7]]), attention_mask=mask, **cache_argument(host.cache_in(again)))
    assert torch.equal(step, other.logits)


@pytest.mark.parametrize("returned", ["tuple", "no pooled features", "no hidden state"])
def test_an_encoder_that_returns_something_else(returned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    encode = type(model.base_model).get_image_features

    def changed(self: Any, pixel_values: Any, image_sizes: Any, **kwargs: Any) -> Any:
        output = encode(self, pixel_values, image_sizes, **kwargs)
        if returned == "tuple":
            return output.to_tuple()
        field = "pooler_output" if returned == "no hidden state" else "last_hidden_state"
        return BaseModelOutputWithPooling(**{field: output[field]})

    monkeypatch.setattr(type(model.base_model), "get_image_features", changed)
    with GPrune(0.5)(model), pytest.raises(UnsupportedModel, match=r"get_image_features.*transformers"):
        model(**inputs)
    gc.collect()  # a traceback that is still around holds what was called
    assert not model._forward_pre_hooks


def test_an_encoder_that_says_it_returns_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILY.model()

    def changed(self: Any, pixel_values: Any) -> tuple | transformers.modeling_outputs.BaseModelOutput:
        raise AssertionError

    changed.__annotations__["return"] = tuple | transformers.modeling_outputs.BaseModelOutput
    monkeypatch.setattr(type(model.base_model), "get_image_features", changed)
    with pytest.raises(UnsupportedModel, match=r"get_image_features returns has no pooler_output"):
        GPrune(0.5).attach(model)
    monkeypatch.delattr(type(model.base_model), "get_image_features")
    with pytest.raises(UnsupportedModel, match=r"LlavaNextModel has no get_image_features"):
        GPrune(0.5).attach(model)


@pytest.mark.parametrize("lost", ["position_embeddings", "attention_mask", "cache"])
def test_layers_that_take_something_else(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILY.model()
    layer = type(model.get_decoder().layers[0])
    taken = {
        "hidden_states": None,
        "attention_mask": None,
        "position_ids": None,
        "cache": None,
        "position_embeddings": None,
    }
    names = ", ".join(f"{name}=None" for name in taken if name != lost)
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {names}): ...", scope)
    monkeypatch.setattr(layer, "forward", scope["forward"])
    with pytest.raises(UnsupportedModel, match=rf"has no argument {lost}"):
        FastV(keep=0.7, layer=1).attach(model)
    GPrune(0.5).attach(model).detach()  # which does not lean on layers


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_decodes_as_a_recompute(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    before = [*vars(model)], [*vars(model.base_model)]
    assert verify(model, inputs) < 1e-5
    assert verify(model, prompt_of(inputs, 0)) < 1e-5
    assert ([*vars(model)], [*vars(model.base_model)]) == before


def test_verifying_beside_runs() -> None:
    """Whatever is attached, the model itself is looked at, and the run goes on."""
    model, inputs = FAMILY.model(), FAMILY.inputs()
    for pruner in (GPrune(0.3), FastV(keep=0.7, layer=1)):
        with pruner(model) as run:
            expected = model(**inputs).logits
            kept = [image.kept for image in run.images]
            assert verify(model, inputs) < 1e-5
            assert all(torch.equal(one.kept, other) for one, other in zip(run.images, kept, strict=True))
            assert torch.equal(model(**inputs).logits, expected)


def test_verifying_needs_an_image() -> None:
    with pytest.raises(ValueError, match=r"carry no image, only input_ids, attention_mask"):
        verify(FAMILY.model(), prompt_of(FAMILY.inputs(), 2))


def test_verifying_leaves_modes_and_offsets() -> None:
    family = FAMILIES["qwen2_vl"]
    model = copy.deepcopy(family.model())
    model.train()
    model.base_model.visual.eval()
    model.base_model.rope_deltas = torch.tensor([[3]])
    verify(model, family.inputs())
    assert model.training and not model.base_model.visual.training
    assert model.base_model.rope_deltas.tolist() == [[3]]


class Newer:
    """A transformers that nobody has tested yet."""

    @pytest.fixture(autouse=True)
    def newer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "untested", lambda: True)
        verification.CHECKED.clear()


class TestNewerThatIsAsBefore(Newer):
    @pytest.mark.parametrize("way", ["generate", "forward", "beams"])
    def test_checked_once_with_a_warning(self, way: str) -> None:
        model, inputs = FAMILY.model(), FAMILY.inputs()
        with GPrune(0.5)(model):
            with pytest.warns(UserWarning, match=r"newer than the newest.*LlavaNextFor.*equals a recompute"):
                first = (
                    model(**inputs).logits
                    if way == "forward"
                    else model.generate(**inputs, **GREEDY, num_beams=1 + (way == "beams"))
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*newer than.*")
                again = (
                    model(**inputs).logits
                    if way == "forward"
                    else model.generate(**inputs, **GREEDY, num_beams=1 + (way == "beams"))
                )
        assert torch.equal(first, again)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_the_call_itself_is_answered_as_ever(self, name: str) -> None:
        family = FAMILIES[name]
        model, inputs = family.model(), family.inputs()
        verification.CHECKED.add(type(model))
        for pruner in (GPrune(0.5), GPrune(0.5, positions="contiguous")):
            with pruner(model) as run:
                expected = model.generate(**inputs, **GREEDY, suppress_tokens=[90, 91])
            verification.CHECKED.clear()
            with pruner(model) as run, pytest.warns(UserWarning, match="newer than"):
                output = model.generate(**inputs, **GREEDY, suppress_tokens=[90, 91])
            assert torch.equal(output, expected)
            assert len(run.images) == sum(map(len, BATCH))

    @pytest.mark.parametrize("way", ["generate", "forward"])
    def test_a_method_inside_the_tower(self, way: str) -> None:
        model, inputs = FAMILY.model(), FAMILY.inputs()
        verification.CHECKED.add(type(model))
        with ToMe(0.5)(model):
            expected = model(**inputs).logits if way == "forward" else model.generate(**inputs, **GREEDY)
        verification.CHECKED.clear()
        with ToMe(0.5)(model) as run, pytest.warns(UserWarning, match="newer than"):
            output = model(**inputs).logits if way == "forward" else model.generate(**inputs, **GREEDY)
        assert torch.equal(output, expected)
        assert len(run.images) == 3

    def test_a_method_inside_the_llm(self) -> None:
        model, inputs = FAMILY.model(), FAMILY.inputs()
        with FastV(keep=0.7, layer=1)(model) as run, pytest.warns(UserWarning, match="newer than"):
            first = model.generate(**inputs, **GREEDY)
            layers = [image.per_layer for image in run.images]
            assert torch.equal(model.generate(**inputs, **GREEDY), first)
            assert [image.per_layer for image in run.images] == layers


class TestNewerThatIsNot(Newer):
    @pytest.mark.parametrize("positions", ["original", "contiguous"])
    def test_refused_on_the_first_call(self, positions: Any) -> None:
        """The mask of the pruned columns is lost on the way."""

        class Unmasked(STOCK):
            @wraps(STOCK.forward)
            def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
                return super().forward(*args, **kwargs)

        model = hosted(Unmasked)
        with GPrune(0.5, positions=positions)(model):
            for _ in range(2):
                with pytest.raises(UnsupportedModel, match=r"changes the logits of Unmasked by .* do not understand"):
                    model.generate(**FAMILY.inputs(), **GREEDY)
        with GPrune(0.5)(FAMILY.model()), pytest.warns(UserWarning, match="newer than"):
            model = FAMILY.model()
            model.generate(**FAMILY.inputs(), **GREEDY)
