"""How often the host waits for the device, counted by the operations that read a tensor's values."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import cache_of, with_cache
from families import FAMILIES, prompt_of
from torch.utils._python_dispatch import TorchDispatchMode

import gprune
from gprune import GPrune
from gprune.attach import hooks as attach_hooks
from gprune.attach.conversation import Rows

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait: values read, and sizes that depend on values."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, indices = function._schema.name, args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        masked = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        self.count += name in READS or (name in ("aten::index", "aten::index_put_") and masked)
        return function(*args, **(kwargs or {}))


def reads(name: str, images: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Waits between the encoder and the LLM in the prefill of so many prompts with an image each."""
    family = FAMILIES[name]
    model, inputs, counter = family.model(), family.inputs((((20, 40),),) * images), Reads()
    rewrite = attach_hooks.prune

    def counted(*arguments: Any) -> Any:
        with counter:
            return rewrite(*arguments)

    with monkeypatch.context() as patch, GPrune(keep=0.5)(model), torch.no_grad():
        patch.setattr(attach_hooks, "prune", counted)
        model(**inputs)
    return counter.count


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_the_host_never_waits_while_tokens_are_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    model, inputs, counter, steps = family.model(), family.inputs((((20, 40),),) * 3), Reads(), 0

    def counting(function: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            nonlocal steps
            with counter:
                result = function(*arguments)
            steps += result is not None
            return result

        return counted

    with monkeypatch.context() as patch, GPrune(keep=0.5)(model):
        for name in ("decode", "go_on"):
            patch.setattr(attach_hooks, name, counting(getattr(attach_hooks, name)))
        model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert (steps, counter.count) == (5, 0)


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision"])
def test_the_host_waits_no_more_often_for_many_images_than_for_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reads(name, 12, monkeypatch) == reads(name, 1, monkeypatch) > 0


@pytest.mark.parametrize(("name", "padded", "alone"), [("llava_next", 11, 9), ("qwen2_5_vl", 12, 10)])
def test_a_decoded_token_takes_few_calls_in_four_files(name: str, padded: int, alone: int) -> None:
    """docs/architecture.md says so; what decoding costs is paid for every token of every answer."""
    family, package = FAMILIES[name], Path(gprune.__file__).parent
    model, inputs = family.model(), family.inputs()
    calls: list[tuple[str, str]] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(package)):
            calls.append((code.co_filename, code.co_name))

    def calls_for(prompts: Any, tokens: int) -> Counter[tuple[str, str]]:
        calls.clear()
        sys.setprofile(note)
        try:
            model.generate(**prompts, max_new_tokens=tokens, min_new_tokens=tokens)
        finally:
            sys.setprofile(None)
        return Counter(calls)

    with GPrune(keep=0.5)(model):
        for prompts, limit in ((inputs, padded), (prompt_of(inputs, 1), alone)):
            more = calls_for(prompts, 6) - calls_for(prompts, 5)
            assert 0 < more.total() <= limit and len({file for file, _ in more}) <= 4, more


def test_rows_of_what_was_kept_whole_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoded token leaves other keys, but nobody moved them."""
    family = FAMILIES["llava_next"]
    model, inputs, looked = family.model(), family.inputs(), []
    monkeypatch.setattr(Rows, "moved", lambda rows, keys: looked.append(keys))
    with GPrune(keep=10**6)(model):
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        assert not looked
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, num_beams=2)
        assert looked


@pytest.mark.parametrize("keep", [0.5, 10**6])
def test_keys_that_a_cache_holds_no_more_are_free(keep: float) -> None:
    family = FAMILIES["llava_next"]
    model, inputs = family.model(), family.inputs()
    with GPrune(keep=keep)(model), torch.no_grad():
        cache = cache_of(model(**inputs))
        for token in torch.tensor([[5, 6]] * len(inputs["input_ids"])).split(1, dim=1):
            held = weakref.ref(cache.layers[-1].keys)
            model(input_ids=token, **with_cache(cache))
            assert held() is None
