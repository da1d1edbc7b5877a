"""Pruning inside vLLM (extra `vllm`), and the features for a vLLM that knows nothing of it."""

from .embeds import embed

__all__ = ["embed"]
