"""The contract with transformers: its names stand in one file, and what is missing is refused by name."""

from __future__ import annotations

import ast
import copy
import inspect
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from packaging.version import Version
from transformers import DynamicCache, StaticCache

import gprune
from gprune import UnsupportedModel, host

SOURCE = Path(gprune.__file__).parent

NAMES = {
    *host.CACHES[1:],
    host.ENCODED,
    *(name for name in host.TOKEN_TYPES if name != "mm_token_type_ids"),  # noise.py makes Qwen's as its processor does
    "image_token_id",
    "video_token_id",
    "get_image_features",
    "get_video_features",
    host.POOLED,
    host.UNPOOLED,
    host.DEEPSTACK,
    "deepstack_visual_indexes",
    host.MASK_MAKER,
    "is_first_iteration",
    "get_decoder",
    "self_attn",
    host.ROPE,
    "_attn_implementation",
    "_attn_implementation_internal",
    "eager_attention_forward",
    "sdpa_attention_forward",
    "AttentionInterface",
    "layer_types",
    "sliding_window",
    "gradient_checkpointing",
    "compute_3d_position_ids",
    "rope_deltas",
    "fullatt_block_indexes",
    "get_seq_length",
    "get_max_length",
    "Cache",
    "DynamicCache",
    "DynamicLayer",
    "StaticCache",
    "select_best_resolution",
    "smart_resize",
}
"""Names of transformers that may change."""

SAYS = {
    # Configs of published models say what transformers' config classes call things, and nothing is read by these names.
    "families/architectures.py": {"image_token_id", "fullatt_block_indexes"},
    # vLLM's names, in its own contract, which are the same words.
    "serve/tower_signals.py": {"self_attn"},
}


def said(source: str) -> set[str]:
    """Every name, attribute, keyword and string of a file, without what it says in prose."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Attribute(attr=name)
                | ast.Name(id=name)
                | ast.keyword(arg=str(name))
                | ast.Constant(value=str(name))
            ):
                names.add(name)
            case ast.alias(name=name):
                names.add(name.rpartition(".")[2])
    return names


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_names_of_transformers_stand_in_one_file(file: Path) -> None:
    where = str(file.relative_to(SOURCE))
    if where == "host.py":
        assert NAMES - {"image_token_id", "video_token_id", "get_image_features", "get_video_features"} - said(
            file.read_text()
        ) == {"Cache", "DynamicCache"} - said(file.read_text())
        return
    assert said(file.read_text()) & NAMES == SAYS.get(where, set())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_keeps_the_contract(name: str) -> None:
    model = FAMILIES[name].model()
    arguments = host.forward_arguments(model)
    assert arguments[0] == "input_ids"
    assert host.placeholder(model.config) > 0
    assert len([argument for argument in arguments if argument in host.CACHES]) == 1


def test_the_cache_is_found_under_every_name() -> None:
    cache, other = DynamicCache(), DynamicCache()
    for name in host.CACHES:
        assert host.cache_of({name: cache}) is cache
    assert host.cache_of({}) is None
    assert host.cache_of(dict.fromkeys(host.CACHES)) is None
    # transformers reads the new name where both are given.
    assert host.cache_of({host.CACHES[1]: other, host.CACHES[0]: cache}) is cache


def test_the_cache_is_handed_over_under_the_name_that_is_taken() -> None:
    cache = DynamicCache()
    model = FAMILIES["llava"].model()
    (name,) = host.with_cache(model.forward, cache)
    assert name in inspect.signature(model.forward).parameters
    assert host.with_cache(lambda past_key_values: None, cache) == {"past_key_values": cache}
    assert host.with_cache(lambda cache: None, cache) == {"cache": cache}
    with pytest.raises(UnsupportedModel, match=r"no argument cache or past_key_values.*pip install"):
        host.with_cache(lambda memory: None, cache)


def test_lengths_of_caches() -> None:
    config = FAMILIES["llava"].model().config.get_text_config()
    static = StaticCache(config=config, max_cache_len=17)
    assert host.columns_of(None) == host.columns_of(DynamicCache()) == host.columns_of(static) == 0
    assert (host.capacity_of(static), host.capacity_of(DynamicCache())) == (17, None)
    assert not host.uneven_layers(DynamicCache(config=config))
    assert host.uneven_layers(static) == {"StaticLayer"}


def test_a_config_without_the_placeholder_of_images() -> None:
    with pytest.raises(UnsupportedModel, match=r"SimpleNamespace has no image_token_id in transformers"):
        host.placeholder(SimpleNamespace())
    assert host.placeholder(SimpleNamespace(), "video") == -1


def test_a_forward_that_hands_its_arguments_on() -> None:
    base = type(FAMILIES["llava"].model())

    class Subclass(base):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Widened(base):  # type: ignore[misc, valid-type]
        def forward(self, input_ids: Any = None, extra: Any = None, *args: Any, **kwargs: Any) -> Any:
            return super().forward(input_ids, *args, **kwargs)

    model = copy.copy(FAMILIES["llava"].model())
    stock = host.forward_arguments(model)
    model.__class__ = Subclass
    assert host.forward_arguments(model) == stock
    model.__class__ = Widened
    assert host.forward_arguments(model)[:2] == ["input_ids", "extra"]
    assert set(host.forward_arguments(model)) == {*stock, "extra"}


def test_a_forward_that_was_overridden_says_so() -> None:
    class Patched(type(FAMILIES["llava"].model())):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, pixel_values: Any = None) -> None:
            return None

    model = copy.copy(FAMILIES["llava"].model())
    model.__class__ = Patched
    with pytest.raises(UnsupportedModel, match=r"Patched.forward was overridden by test_host\..*mm_encoder_outputs"):
        host.forward_arguments(model)


def test_the_bounds_and_the_newest_tested_agree() -> None:
    low, high = host.SUPPORTED.removeprefix("transformers>=").split(",<")
    assert Version(low) < host.NEWEST_TESTED < Version(high)
    assert Version(high) <= Version(f"{host.NEWEST_TESTED.major}.{host.NEWEST_TESTED.minor + 1}")
    assert f'"{host.SUPPORTED}"' in (SOURCE.parents[1] / "pyproject.toml").read_text()


def test_the_installed_version_is_read_once_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(host.installed()) == metadata.version("transformers")
    for version, newer in (("5.19.0", False), (str(host.NEWEST_TESTED), False), ("5.99.0", True), ("6.0.0.dev0", True)):
        monkeypatch.setattr(host.transformers, "__version__", version)
        assert host.untested() == newer


@pytest.mark.parametrize("name", [name for name in FAMILIES if host.has_rope_3d(FAMILIES[name].model())])
def test_three_axes_that_are_gone_are_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[name].model()
    monkeypatch.setattr(host, "_POSITIONS_3D", "compute_positions_anew")
    with pytest.raises(UnsupportedModel, match=r"has no compute_positions_anew in transformers"):
        gprune.GPrune(0.5).attach(model)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("gemma3", "kinds of layers"),
        ("lfm2_vl", "kinds of layers"),
        ("qwen3_5", "kinds of layers"),
        ("qwen3_vl", "deepstack levels"),
        ("qwen2_5_vl", "layers without windows"),
    ],
)
def test_configs_that_say_no_longer_what_they_said(name: str, fact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[name].model()
    gprune.GPrune(0.5).attach(model).detach()
    part, attribute = host._FACTS[fact]
    monkeypatch.setitem(host._FACTS, fact, (part, f"{attribute}_anew"))
    with pytest.raises(UnsupportedModel, match=rf"has no {attribute}_anew in transformers"):
        gprune.GPrune(0.5).attach(model)


def test_three_axes_that_are_new_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llava"].model()
    monkeypatch.setattr(type(model.base_model), "compute_3d_position_ids", lambda self: None, raising=False)
    with pytest.raises(UnsupportedModel, match=r"numbers visual tokens along three axes"):
        gprune.GPrune(0.5).attach(model)


def test_positions_that_a_model_makes_itself() -> None:
    family = FAMILIES["qwen2_vl"]
    model, inputs = family.model(), family.inputs((((20, 40),),))
    prompt = family.prompt_of(inputs, 0, (((20, 40),),))
    positions = host.positions_3d(model, prompt, torch.ones_like(prompt["input_ids"], dtype=torch.bool))
    assert positions is not None
    assert torch.equal(positions[-3:], family.positions(model, prompt)[-3:])
