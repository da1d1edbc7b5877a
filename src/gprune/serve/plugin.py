"""vLLM's way in: an entry point of `vllm.general_plugins`."""

from __future__ import annotations

import os

from .families import MODULES
from .settings import CONNECTOR


def register() -> None:
    """Tell vLLM of the architectures that prune; it calls this in each of its processes, sometimes twice.

    They are imported when a model asks for one (`--hf-overrides`); all others are served as ever. So is the way to
    fetch pictures (`VLLM_MEDIA_CONNECTOR`).
    """
    from vllm import ModelRegistry

    if os.environ.get("VLLM_MEDIA_CONNECTOR") == CONNECTOR:
        from . import media  # noqa: F401

    for module, architectures in MODULES.items():
        for name in architectures:
            ModelRegistry.register_model(name, f"gprune.serve.{module}:{name}")
