"""On and off: the model is afterwards what it was before."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from decoding import cache_of, with_cache
from families import FAMILIES

from gprune.pruners import GPrune, L2Norm, Random, Uniform

FAMILY = FAMILIES["llava_next"]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything on the model object itself, dictionaries by their contents."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(model).items()}


def tokens(model: Any) -> torch.Tensor:
    return model.generate(**FAMILY.inputs(), **GREEDY)


def kept(pruner: Any, model: Any) -> list[int]:
    """How many tokens of the first image reach the LLM under this pruner alone."""
    with pruner(model) as run:
        model(**FAMILY.inputs())
    return [image.n_after for image in run.images]


def test_model_is_identical_after_the_context() -> None:
    model = FAMILY.model()
    before, stock = fingerprint(model), tokens(model)
    with GPrune(keep=0.2)(model):
        assert not torch.equal(tokens(model), stock)
    assert fingerprint(model) == before
    assert torch.equal(tokens(model), stock)


def test_model_is_identical_after_an_exception_inside_the_context() -> None:
    model = FAMILY.model()
    before, stock = fingerprint(model), tokens(model)
    with pytest.raises(RuntimeError, match="mine"), GPrune(keep=0.2)(model):
        raise RuntimeError("mine")
    assert fingerprint(model) == before
    inputs = FAMILY.inputs()
    inputs["pixel_values"][0] = torch.nan
    with pytest.raises(ValueError, match="image 0"), GPrune(keep=0.2)(model):
        model.generate(**inputs, **GREEDY)
    assert fingerprint(model) == before
    assert torch.equal(tokens(model), stock)


def test_what_the_user_put_on_the_model_stays() -> None:
    model = FAMILY.model()
    calls: list[str] = []
    handle = model.register_forward_hook(lambda *_: calls.append("mine"))

    def masks(**arguments: Any) -> Any:
        return arguments.get("attention_mask")

    model.create_masks_for_generate = masks
    try:
        before = fingerprint(model)
        with GPrune(keep=0.2)(model):
            model(**FAMILY.inputs())
        assert calls == ["mine"]
        assert fingerprint(model) == before
    finally:
        handle.remove()
        del model.create_masks_for_generate


def test_attach_and_detach_for_notebooks() -> None:
    model = FAMILY.model()
    before = fingerprint(model)
    run = L2Norm(keep=0.4).attach(model)
    model(**FAMILY.inputs())
    run.detach()
    run.detach()
    assert fingerprint(model) == before
    assert len(run.images) == 3
    with pytest.raises(RuntimeError, match=r"detached.*attach"), run:
        pass


def test_inner_pruner_is_in_force_then_the_outer_again() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    before = fingerprint(model)
    outer_pruner, inner_pruner = L2Norm(keep=0.5), Uniform(keep=3)
    with outer_pruner(model) as outer:
        with inner_pruner(model) as inner:
            model(**inputs)
            assert outer.images == []
            assert [image.n_after for image in inner.images] == kept(inner_pruner, model)
        model(**inputs)
        assert [image.n_after for image in outer.images] == kept(outer_pruner, model)
    assert fingerprint(model) == before


def test_a_run_says_whose_place_it_takes_and_leads_to_it() -> None:
    model = FAMILY.model()
    before, kind = fingerprint(model), type(model).__name__
    first, second, third = (L2Norm(keep=keep).attach(model) for keep in (0.9, 0.6, 0.3))
    assert repr(first) == f"<Run of L2Norm(keep=0.9) on {kind}: no image yet>"
    of_third = f"L2Norm(keep=0.3) on {kind}, until it is detached instead of L2Norm(keep="
    assert repr(third) == f"<Run of {of_third}0.6): no image yet>" and f"{of_third}0.6)" in third._repr_html_()
    second.detach()
    assert repr(third) == f"<Run of {of_third}0.9): no image yet>"
    for run in third.chain():
        run.detach()
    assert repr(third) == f"<Run of L2Norm(keep=0.3) on {kind}, detached: no image yet>"
    assert fingerprint(model) == before


def test_runs_detached_in_any_order() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    before = fingerprint(model)
    runs = [L2Norm(keep=keep).attach(model) for keep in (0.9, 0.6, 0.3)]
    runs[1].detach()
    model(**inputs)
    assert [len(run.images) for run in runs] == [0, 0, 3]
    runs[2].detach()
    model(**inputs)
    assert [len(run.images) for run in runs] == [3, 0, 3]
    runs[0].detach()
    assert fingerprint(model) == before


def test_the_same_pruner_attached_twice_prunes_once() -> None:
    model, pruner = FAMILY.model(), L2Norm(keep=0.4)
    expected = kept(pruner, model)
    with pruner(model) as outer, pruner(model) as inner:
        model(**FAMILY.inputs())
        assert outer.images == []
        assert [image.n_after for image in inner.images] == expected


@pytest.mark.parametrize("order", ["before", "after"])
def test_model_with_accelerate_hooks(order: str) -> None:
    model = FAMILY.model()
    with L2Norm(keep=0.4)(model):
        expected = tokens(model)
    model = copy.deepcopy(model)

    def wrap() -> None:
        for module in model.modules():
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"), append=True)

    if order == "before":
        wrap()
    with L2Norm(keep=0.4)(model):
        if order == "after":
            wrap()
        assert torch.equal(tokens(model), expected)
        inputs = FAMILY.inputs()
        output = model(inputs.pop("input_ids"), inputs.pop("pixel_values"), **inputs)  # by position
        assert torch.equal(output.logits[:, -1].argmax(-1), expected[:, -4])


def test_output_as_a_tuple_continues_like_any_other() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    token = torch.full((3, 1), 9)
    with L2Norm(keep=0.4)(model):
        cache = cache_of(model(**inputs))
        expected = model(input_ids=token, **with_cache(cache)).logits
        (cache,) = (value for value in model(**inputs, return_dict=False) if hasattr(value, "layers"))
        assert torch.equal(model(input_ids=token, **with_cache(cache)).logits, expected)


def test_seeded_pruner_gives_the_same_twice() -> None:
    model = FAMILY.model()
    with Random(keep=0.4)(model):
        first = tokens(model)
    with Random(keep=0.4)(model):
        assert torch.equal(tokens(model), first)


def test_scope_image_reports_views_and_one_share() -> None:
    model, pruner = FAMILY.model(), GPrune(keep=0.4, scope="image")
    with pruner(model) as run:
        model(**FAMILY.inputs())
    report = run.images[1]
    count, views = FAMILY.layout((40, 40))
    assert len(report.views) == len(views) == 2
    tokens_ = sum(len(rows) for rows, _ in views)
    assert report.n_after == int(tokens_ * 0.4) + count - tokens_
    assert report.edge_share is not None and 0 <= report.edge_share <= 1


def test_warning_of_the_method_comes_once_per_model() -> None:
    pruner, inputs = GPrune(keep=0.4, similarity=-1.0), FAMILY.inputs()
    model = FAMILY.model()
    with pytest.warns(UserWarning, match=r"similarity=-1") as caught, pruner(model):
        model(**inputs)
        model(**inputs)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pruner(model):
            model(**inputs)
    other = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"similarity=-1"), pruner(other):
        other(**inputs)
    assert pickle.loads(pickle.dumps(pruner)) == pruner


def test_nothing_keeps_the_model_alive() -> None:
    import weakref

    model, pruner = copy.deepcopy(FAMILY.model()), L2Norm(keep=0.4)
    with pruner(model) as run:
        model(**FAMILY.inputs())
    reference = weakref.ref(model)
    del model, run
    gc.collect()
    assert reference() is None
