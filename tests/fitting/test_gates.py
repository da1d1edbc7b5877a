"""Gates: a token whose gate is closed is dropped, and its gradient says what opening it would change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, Family, Inputs
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from gprune import Random, Uniform, UnsupportedModel, View, VisualTokens, host
from gprune.attach import encoded
from gprune.evaluate.forcing import answer_logits, trained_logits
from gprune.fitting.gates import bounded, check_gates, gated, standardised, straight_through


def trainable(family: Family) -> bool:
    try:
        check_gates(family.model())
    except UnsupportedModel:
        return False
    return True


TRAINABLE = [name for name, family in FAMILIES.items() if trainable(family)]


def answers_of(rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 88, (length,), generator=generator) for length in (5, 1, 7, 2)[:rows]]


def test_the_usual_families_can_be_trained_on_and_others_say_why_not() -> None:
    assert {"llava", "llava_next", "qwen2_5_vl", "internvl"} <= set(TRAINABLE) and len(TRAINABLE) > 15
    with pytest.raises(UnsupportedModel, match=r"cannot be trained on this model: its .*; use an untrained method"):
        check_gates(FAMILIES["gemma3"].model())
    half = copy.deepcopy(FAMILIES["llava"].model()).half()
    with pytest.raises(UnsupportedModel, match="float16 the gradients of dropped tokens vanish; load it in bfloat16"):
        check_gates(half)


@pytest.mark.parametrize("name", TRAINABLE)
def test_closed_gates_are_the_same_as_dropping(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs()
    tokens, call = encoded(Uniform(1.0), model, inputs)
    answers = answers_of(len(inputs["input_ids"]))
    pruner = Random(0.4)
    gates = torch.zeros(len(tokens.features)).index_fill(0, pruner.select(tokens).kept, 1.0)
    with pruner(model):
        expected = answer_logits(model, inputs, answers)
    with gated(model, inputs["input_ids"] == host.placeholder(model.config), gates):
        found = trained_logits(model, call, answers)
    assert 0 < gates.mean() < 1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for own, other in zip(answer_logits(model, inputs, answers), answer_logits(model, call, answers), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def loss_of(model: Any, inputs: Inputs, gates: Tensor) -> Tensor:
    """Cross entropy of fixed answers with these gates on the visual tokens."""
    _, call = encoded(Uniform(1.0), model, inputs)
    answers = answers_of(len(inputs["input_ids"]))
    with gated(model, inputs["input_ids"] == host.placeholder(model.config), gates):
        return cross_entropy(torch.cat(trained_logits(model, call, answers)), torch.cat(answers))


def gates_of(inputs: Inputs) -> Tensor:
    """A third of the visual tokens of a llava_next."""
    gates = torch.zeros(int((inputs["input_ids"] == IMAGE).sum()))
    gates[::3] = 1
    return gates


def test_the_gradient_of_a_closed_gate_is_that_of_opening_it_a_little() -> None:
    family = FAMILIES["llava_next"]
    model = copy.deepcopy(family.model()).double().requires_grad_(False)
    inputs = {name: each.double() if each.is_floating_point() else each for name, each in family.inputs().items()}
    gates = gates_of(inputs).double()
    [gradient] = torch.autograd.grad(loss_of(model, inputs, gates.requires_grad_()), gates)
    start, step = loss_of(model, inputs, gates.detach()), 1e-2  # parts of the model are float32 whatever its dtype
    for row in (1, 2, 3, 40, len(gates) - 1):
        moved = gates.detach().clone()
        moved[row] += step if moved[row] == 0 else -step
        slope = (loss_of(model, inputs, moved) - start) / (moved[row] - gates[row].detach())
        assert gradient[row] == pytest.approx(float(slope), rel=5e-2, abs=1e-6)
    assert gradient.abs().max() > 1e-5


def test_gradients_are_those_of_every_backend() -> None:
    family = FAMILIES["llava_next"]
    found = []
    for backend in host.BACKENDS:
        model = copy.deepcopy(family.model()).requires_grad_(False)
        model.set_attn_implementation(backend)
        gates = gates_of(family.inputs()).requires_grad_()
        found += torch.autograd.grad(loss_of(model, family.inputs(), gates), gates)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model: Any = FAMILIES["llava"].model()
    attentions = [layer.self_attn for layer in model.get_decoder().layers]
    before = [attention.config for attention in attentions]
    with pytest.raises(RuntimeError), gated(model, torch.ones(1, 4, dtype=torch.bool), torch.ones(4)):
        raise RuntimeError
    assert all(
        layer.self_attn.config is config for layer, config in zip(model.get_decoder().layers, before, strict=True)
    )


def test_standardised_scores_keep_their_order_and_are_as_far_apart_in_every_view() -> None:
    views = (View(torch.arange(9)), View(torch.arange(9, 9)), View(torch.arange(10, 30)))
    tokens = VisualTokens(torch.zeros(30, 8), views, (30,))
    scores = 50 * torch.randn(30, generator=torch.Generator().manual_seed(0)) - 7
    found = standardised(scores, tokens)
    for view in (views[0], views[2]):
        own = found[view.rows].double()
        assert own.mean() == pytest.approx(0, abs=1e-5) and own.std(unbiased=False) == pytest.approx(2, rel=1e-5)
        assert torch.equal(own.argsort(), scores[view.rows].argsort())
    assert not standardised(torch.zeros(30), tokens).any()  # scores that are all alike stay so


@given(first=st.integers(1, 16), second=st.integers(1, 24), seed=st.integers(0, 9))
def test_gates_are_open_for_the_highest_noisy_scores_and_learn_by_a_sigmoid(first: int, second: int, seed: int) -> None:
    assume((first, second) != (16, 24))  # where every token is kept, there is nothing to learn
    views = (View(torch.arange(16)), View(torch.arange(17, 41)))
    tokens, generator = VisualTokens(torch.zeros(41, 8), views, (41,)), torch.Generator().manual_seed(seed)
    scores, noise = torch.randn(2, 41, generator=generator)
    scores.requires_grad_()
    gates = straight_through(scores, tokens, [first, second], noise)
    noisy = (scores + noise).detach()
    weights = torch.randn(41, generator=generator)
    told = bounded(weights)
    (gates * weights).sum().backward()
    assert gates[16] == 1 and scores.grad is not None and scores.grad[16] == 0
    for view, k in zip(tokens.views, (first, second), strict=True):
        own = noisy[view.rows].double().sort(descending=True).values
        if k == len(own):
            assert (gates[view.rows] == 1).all() and (scores.grad[view.rows] == 0).all()
            continue
        threshold = (own[k - 1] + own[k]) / 2
        torch.testing.assert_close(gates.detach()[view.rows], (noisy[view.rows] > threshold).float())
        soft = (noisy[view.rows] - threshold).sigmoid()
        torch.testing.assert_close(scores.grad[view.rows], (told[view.rows] * soft * (1 - soft)).float())


@given(values=st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=9))
def test_no_gradient_counts_more_than_twice_the_mean(values: list[float]) -> None:
    gradient = torch.tensor(values)
    found, mean = bounded(gradient), gradient.abs().mean()
    assert (found.abs() <= 2 * mean * (1 + 1e-5)).all() and (found.sign() * gradient.sign() >= 0).all()
    order = gradient.argsort()
    assert (found[order].diff() >= -1e-6 * mean).all()
