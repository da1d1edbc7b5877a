"""What lmms-eval finds under the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model `gprune` of `lmms-eval --model gprune`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="gprune", chat_class_path="gprune.evaluate.lmms.GPruneModel")
