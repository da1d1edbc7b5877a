"""Rows through Ray Data: their pictures read by tasks, and answered by a pool of workers."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from .cluster import ray_running
from .engine import ANSWERED, Worker
from .inputs import Source
from .pictures import read_pictures

if TYPE_CHECKING:
    from .job import Job


def answer_rows(job: Job, source: Source) -> Generator[pa.Table, None, None]:
    """Answer all rows of a source, with Ray started if it does not run.

    Yields:
        Tables of the schema `ANSWERED`, as they come.

    Raises:
        ValueError: the cluster cannot be used, or has no room for so many workers.
        RuntimeError: a worker can answer nothing, or none did for long.
    """
    if not len(source):
        return
    with ray_running(job.address, (job.actors or 1) + 1):
        root = None if job.root is None else os.path.abspath(job.root)  # a task may run in another folder
        share = _share(job, len(source), ray.cluster_resources())
        rows = ray.data.from_arrow(list(source.blocks)).map_batches(
            read_pictures,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"filesystem": source.filesystem, "columns": job.columns, "root": root},
        )
        # However many small pictures one task has read, they are shared among the workers.
        answered = rows.repartition(target_num_rows_per_block=job.batch_size).map_batches(
            Worker,
            batch_size=job.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=share.workers),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            fn_constructor_args=(job.engine, job.max_pixels),
        )
        answered.context.enable_progress_bars = False
        answered.context.wait_for_min_actors_s = job.patience
        answered.context.execution_no_progress_timeout_s = job.patience
        batches = iter(answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for sent in batches:
                _heed(sent)
                yield sent.select(ANSWERED.names)
        except ExecutionTimeoutError as error:
            raise RuntimeError(
                f"no row was answered for {job.patience} seconds; perhaps one kills its worker by the memory it needs: "
                f"try smaller batches; what is finished is kept, do the same again to go on"
            ) from error
        finally:
            # Ray's threads are to end before Ray does; what they would write then is of no use on a full disk.
            with suppress(OSError):
                batches.close()


def _heed(sent: pa.Table) -> None:
    """Pass on what workers say beside their answers."""
    for failure in sent["failure"].drop_null():
        raise RuntimeError(f"a worker cannot answer ({failure}); what is finished is kept, do the same again to go on")
    for warning in sent["warning"].drop_null():
        warnings.warn(warning.as_py(), stacklevel=2)


@dataclass(frozen=True)
class _Share:
    """Workers, and what each of them has."""

    workers: int
    cpus: int
    gpus: int


def _share(job: Job, rows: int, resources: dict[str, float]) -> _Share:
    """What the workers get of a cluster: all but one CPU, which reads; without it all would wait for ever.

    Raises:
        ValueError: the cluster is too small for so many workers.
    """
    cpus, all_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpus = all_gpus if job.engine.on_gpu else 0
    workers = min(job.actors or gpus or 1, math.ceil(rows / job.batch_size))
    if cpus < workers + 1 or 0 < gpus < workers:
        wanted = f"{workers + 1} CPUs{f' and {workers} GPUs' if gpus else ''}"
        raise ValueError(f"{workers} workers need {wanted}; Ray has {cpus} CPUs and {all_gpus} GPUs; give fewer actors")
    # On a cluster a worker has to fit on a machine, whose size is not known here.
    return _Share(workers, 1 if gpus or job.address else (cpus - 1) // workers, 1 if gpus else 0)
