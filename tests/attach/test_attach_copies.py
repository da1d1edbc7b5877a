"""A model that is copied, pickled or saved while a pruner is on it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from decoding import MAIN, PLACEHOLDERS, beam_search
from families import FAMILIES, Family
from reference import kept_prompts
from torch import Tensor

from gprune.pruners import GPrune

STEPS = 4
SETTINGS: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
PRUNER = GPrune(keep=0.4)


@pytest.fixture(params=MAIN)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def expected(family: Family, model: Any) -> Tensor:
    prompts = kept_prompts(family, model, PRUNER, family.inputs())
    return torch.cat([beam_search(model, prompt, 1, STEPS) for prompt in prompts])


def generated(family: Family, model: Any) -> Tensor:
    return model.generate(**family.inputs(), **SETTINGS)[:, -STEPS:]


def never_called(family: Family) -> Any:
    """The model of the matrix anew: stock puts hooks that cannot be pickled on some when they are first called."""
    config, kind = family.build()
    model = kind(config).eval()
    model.load_state_dict(family.model().state_dict())
    model.generation_config = copy.deepcopy(family.model().generation_config)
    return model


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copy_prunes_with_its_own_weights(family: Family, duplicate: Any) -> None:
    model = never_called(family)
    with PRUNER(model) as run:
        other = duplicate(model)
        wanted = expected(family, family.model())
        generator = torch.Generator().manual_seed(0)
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        own = generated(family, other)
        assert run.images == []  # nothing reached the model that was copied
        assert torch.equal(generated(family, model), wanted)
    assert torch.equal(generated(family, other), own)  # detached is the one that was attached
    bare = copy.deepcopy(family.model())
    bare.load_state_dict(other.state_dict())
    assert torch.equal(own, expected(family, bare))
    assert not torch.equal(own, wanted)


def test_weights_are_saved_under_their_own_names(family: Family) -> None:
    model = family.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with PRUNER(model):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
    file.seek(0)
    weights = torch.load(file, weights_only=True)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_saved_checkpoint_is_that_of_the_bare_model(tmp_path: Any) -> None:
    model = FAMILIES["llava_next"].model()
    with PRUNER(model):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded._forward_pre_hooks
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
