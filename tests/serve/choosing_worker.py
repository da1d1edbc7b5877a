"""vLLM's worker for CPUs with a method that can be changed, which an engine cannot. Only for the tests.

An engine takes a minute to start, so one serves all methods, one after the other.
"""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from gprune.serve.one_axis import reader_of
from gprune.serve.settings import served_pruner


class ChoosingWorker(CPUWorker):
    def choose_by(self, method: str) -> None:
        """What a server does that is started with this method."""
        model = self.model_runner.get_model()
        model._pruner = served_pruner(method, 0.3, model.config)
        model._reader = reader_of(model, model._pruner, self.vllm_config)
