"""Whether a model can be pruned."""

from __future__ import annotations

from typing import Any

from packaging.version import Version
from transformers import PreTrainedModel

from .. import host
from ..errors import UnsupportedModel
from ..families.table import FAMILIES, Family, unsupported


def unwrapped(model: Any) -> Any:
    """The model that PEFT has put adapters on; any other model itself."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not hasattr(model, "get_base_model"):
        return model
    if adapter.is_prompt_learning:
        raise UnsupportedModel(
            f"cannot prune a {type(model).__name__} with {adapter.peft_type}: it puts virtual tokens in front of the "
            f"prompt as embeddings; accepted are adapters of the weights, such as LoRA; attach without the adapter"
        )
    return model.get_base_model()


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        UnsupportedModel: not a generating model of a supported family, or transformers is too old.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if reason := unsupported(config):
        raise UnsupportedModel(f"cannot prune a {type(model).__name__} (model_type={model_type!r}): {reason}")
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise UnsupportedModel(
            f"cannot prune a {type(model).__name__} (model_type={model_type!r}): it is not a model of transformers "
            f"that generates; pass the ...ForConditionalGeneration model; if this wraps one, pass the wrapped model"
        )
    family = FAMILIES[model.config.model_type]
    installed = host.installed()
    if installed < Version(family.since):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be pruned rightly in transformers {installed}; accepted is "
            f"{host.SUPPORTED} from {family.since} on; pip install 'transformers>={family.since}'"
        )
    if str(installed) == family.broken:
        raise UnsupportedModel(
            f"{type(model).__name__} does not work in transformers {installed} itself, with or without a pruner; "
            f"accepted is any other of {host.SUPPORTED}; pip install '{host.SUPPORTED},!={installed}'"
        )
    _check_contract(model, family)
    return family


def fields_of(model: PreTrainedModel, family: Family) -> tuple[str, ...]:
    """The fields of an encoder's output that lose the rows of dropped tokens."""
    return (family.output, host.DEEPSTACK) if host.deepstack_levels(model.config) else (family.output,)


def _check_contract(model: PreTrainedModel, family: Family) -> None:
    """Raise UnsupportedModel if something is missing of what every pruner relies on in the model."""
    host.forward_arguments(model)
    host.placeholder(model.config)
    host.check_encoder(model, "image", (host.UNPOOLED, *fields_of(model, family)))
    host.check_preparing()
    host.check_rope_3d(model, family.rope_3d)
    host.check_facts(model.config, family.facts)
