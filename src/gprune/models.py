"""Checkpoints by name: a hub id, a folder, or the model in the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import GpruneError

EMBEDDED = "embedded"
"""The name of the model in the package."""


class UnusableModel(GpruneError, ValueError):
    """A checkpoint cannot be loaded or pruned; the message says why and what is accepted."""


def load(name: str, device: str | None = None) -> tuple[Any, Any]:
    """Load a model that can be pruned and its processor.

    Args:
        name: hub id or folder of a transformers checkpoint, or "embedded".
        device: of PyTorch; None: the GPU if there is one.

    Returns:
        The model in the dtype of its checkpoint, for inference, and its processor.

    Raises:
        UnusableModel: no such checkpoint, or one that is damaged, of another family or without a chat template.
    """
    import torch
    import transformers

    from .attach import family_of
    from .errors import UnsupportedModel

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == EMBEDDED:
        from .scenes.model import load_embedded

        embedded = load_embedded(device)
        embedded[0].config.name_or_path = EMBEDDED  # wherever the package is installed
        return embedded
    _check_family(name, read_config(name))
    with _reading(name):
        processor = transformers.AutoProcessor.from_pretrained(name)
        if getattr(processor, "chat_template", None) is None:
            raise ValueError("it has no chat template")
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    try:
        family_of(model)
    except UnsupportedModel as error:
        raise UnusableModel(str(error)) from error
    return model.eval().to(device), processor


def read_config(name: str, *others: str) -> Any:
    """The config of a checkpoint, without its weights; `others` are names that the caller knows besides.

    Raises:
        UnusableModel: no such checkpoint.
    """
    from transformers import AutoConfig

    if name == EMBEDDED:
        from .scenes.model import build_config

        return build_config()
    with _reading(name, *others):
        return AutoConfig.from_pretrained(name)


def _check_family(name: str, config: Any) -> None:
    """Refuse a model of another family before its weights are read, or downloaded."""
    from .families.table import unsupported

    if reason := unsupported(config):
        raise UnusableModel(f"model {name} has model_type {config.model_type!r} and cannot be pruned: {reason}")


@contextmanager
def _reading(name: str, *others: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        names = ", ".join((EMBEDDED, *others))
        raise UnusableModel(
            f"model {name} cannot be loaded ({reason}); accepted are {names}, and the hub id or "
            f"the folder of an instruction-tuned image-text-to-text checkpoint with its processor; check the name"
        ) from error
