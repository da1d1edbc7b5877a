"""vLLM's worker for CPUs, made to take the path on which a model tells where its visual tokens lie. Only for the tests.

The runner for GPUs sets this flag when it has loaded a model; that for CPUs inherits all else, but loads models itself.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PlacingWorker(CPUWorker):
    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.model_runner.is_multimodal_pruning_enabled = True
