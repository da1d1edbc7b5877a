"""Training through a pruned model: gradients, checkpointing, dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoding import MAIN
from families import FAMILIES, Family, Inputs
from reference import kept_prompts, text_logits
from torch import Tensor
from torch.nn.functional import cross_entropy

from gprune.pruners import GPrune

PRUNER = GPrune(keep=0.4)
close = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=MAIN)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def labels_of(inputs: Inputs) -> Tensor:
    """int64 [B, q]: the last five tokens of every prompt are learned."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -5:] = inputs["input_ids"][:, -5:]
    return labels


def weights_of(model: Any) -> list[Tensor]:
    """The first matrix of the projector, or of what stands for it, and one of the LLM."""
    towers = ("projector", "connector", "merger")
    weights = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    projector = next(name for name in weights if any(tower in name for tower in towers))
    return [weights[projector], model.get_decoder().layers[0].mlp.down_proj.weight]


def loss_and_gradients(model: Any, inputs: Inputs) -> list[Tensor]:
    model.zero_grad()
    loss = model(**inputs, labels=labels_of(inputs), use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in weights_of(model))]


@pytest.fixture(params=["plain", "checkpointing", "reentrant checkpointing"])
def training(request: pytest.FixtureRequest, family: Family) -> Any:
    """A model in training mode; no family drops out by itself."""
    model = copy.deepcopy(family.model()).train()
    if request.param != "plain":
        settings = {"use_reentrant": request.param == "reentrant checkpointing"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        model.enable_input_require_grads()
        assert model.is_gradient_checkpointing
    return model


def test_loss_and_gradients_equal_the_long_way(family: Family, training: Any) -> None:
    model, inputs = family.model(), family.inputs()
    prompts = kept_prompts(family, model, PRUNER, inputs)
    predicted = torch.cat([text_logits(model, prompt)[-6:-1] for prompt in prompts])
    loss = cross_entropy(predicted, inputs["input_ids"][:, -5:].flatten())
    expected = [loss.detach(), *torch.autograd.grad(loss, weights_of(model))]
    with PRUNER(training) as run:
        found = loss_and_gradients(training, inputs)
    assert [image.n_after < image.n_before for image in run.images] == [True] * 3
    for value, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(value, wanted, **close)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_dropout(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = copy.deepcopy(family.model()), family.inputs()
    for module in model.get_decoder().modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    model.train()
    with PRUNER(model):
        torch.manual_seed(0)
        first = loss_and_gradients(model, inputs)
        torch.manual_seed(0)
        again = loss_and_gradients(model, inputs)
        other = loss_and_gradients(model, inputs)
    torch.testing.assert_close(first, again)
    assert abs(first[0] - other[0]) > 1e-3


def test_a_step_of_training_lowers_the_loss(family: Family) -> None:
    model, inputs = copy.deepcopy(family.model()).train(), family.inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    with PRUNER(model):
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(**inputs, labels=labels_of(inputs), use_cache=False).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[2] < losses[0]
