"""Cells measured by lmms-eval, the model loaded once for all of them."""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from numbers import Real
from pathlib import Path
from typing import Any

from ..models import load
from .cells import Cell, Key, load_cell, versions
from .host import check_lmms_eval
from .runs import measure_cells, refusal_of

PAPER_METRICS = {"mme": "mme_perception_score", "pope": "pope_f1_score", "chartqa": "relaxed_overall"}
"""Of tasks with several metrics, the one to put first."""


class Harness:
    """Measures cells of one model, in one process or, under `accelerate launch`, in several.

    Args:
        model: hub id, folder, or "embedded".
        batch_size: documents at once, in each process.
        device: of PyTorch; None: a GPU for each process if there are any.
        log_samples: folder for a file per cell with every document, prompt and answer; None writes none.
        tasks: where tasks are looked up; None: those of lmms-eval and of this package.
        answered: called with the number of documents answered by this process and the number of all of its own.

    Raises:
        UnusableModel: the model cannot be loaded or pruned.
        ImportError: lmms-eval is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 1,
        device: str | None = None,
        log_samples: Path | None = None,
        tasks: Tasks | None = None,
        answered: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.tasks = tasks or Tasks()
        from .processes import default_device

        self._model, self._processor = load(model, device or default_device())
        self.model, self.batch_size = model, batch_size
        self.log_samples, self._answered = log_samples, answered

    def refusal(self, key: Key) -> str | None:
        """Why the method of a cell does not go on the model; None if it does."""
        return refusal_of(key.method, key.keep, self._model)

    def measure(self, key: Key) -> Cell:
        """Run one task with one method; every process gets the cell of all documents.

        Raises:
            ValueError, TypeError: a key of another model, an unknown task, one that cannot be run, or a method that
                cannot be put on the model.
            RuntimeError: not one document could be answered.
        """
        if key.model != self.model:
            raise ValueError(f"{key} is of another model than {self.model}; make a harness for it")
        self.tasks.check(key.task, key.limit)
        task = self.tasks.load(key.task)
        from accelerate.utils import broadcast_object_list

        from .lmms import PrunedModel, read_method

        pruner = read_method(key.method, key.keep, key.seed)
        with ExitStack() as stack:
            attached = stack.enter_context(pruner.attach(self._model))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gprune-")))
            asked = PrunedModel(self._model, self._processor, attached, self.batch_size, self._answered)
            stack.enter_context(_quiet())
            results = _evaluate(asked, task, self.tasks, key, folder, log_samples=self.log_samples is not None)
        cells = [None if results is None else _cell(key, asked.costs[key.task], _scores(key.task, task, results))]
        if results is not None and self.log_samples is not None:
            _write_samples(self.log_samples / f"{key.name}.jsonl", results["samples"][key.task])
        cell = broadcast_object_list(cells)[0]
        assert cell is not None
        return cell


def run_together(
    harness: Harness,
    wanted: Sequence[Key],
    folder: Path,
    *,
    started: Callable[[Key], None] = lambda key: None,
    finished: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """`measure_cells` in every process of `accelerate launch`: all of them measure, the first one reads and writes.

    Args:
        harness: measures.
        wanted, folder, started, finished: see `measure_cells`; the last two are called in the first process alone.

    Returns:
        The cells, in the order of `wanted`; none but in the first process.
    """
    from accelerate.utils import broadcast_object_list

    from .processes import is_first

    missing = [key for key in wanted if load_cell(key, folder) is None] if is_first() else []
    missing = broadcast_object_list([missing])[0]
    if is_first():
        return measure_cells(wanted, folder, harness.measure, started=started, finished=finished)
    for key in missing:
        harness.measure(key)
    return []


class Tasks:
    """The tasks of lmms-eval, those of this package and those of further folders.

    Args:
        include: folders with further tasks.

    Raises:
        ImportError: lmms-eval is not installed, or not one that gprune can rely on.
    """

    def __init__(self, include: Sequence[Path] = ()) -> None:
        with _quiet():
            try:
                import lmms_eval  # noqa: F401
            except ImportError as error:
                raise ImportError(f"tasks need lmms-eval ({error}); pip install 'gprune[eval]'") from error
            check_lmms_eval()
        _send_logs_to_stderr()
        self._folders = [str(Path(__file__).parent / "tasks"), *map(str, include)]
        # Reading lmms-eval's own thousands of tasks takes seconds: only where one of them is asked for.
        self.manager = self._read(defaults=False)
        self._all = False
        self._last: tuple[str, Any] = ("", None)

    def check(self, name: str, limit: int | None = None) -> None:
        """Raise ValueError unless `name` is a task that can be run on so many documents, saying what can."""
        if name not in self.manager.all_tasks and not self._all:
            self.manager, self._all = self._read(defaults=True), True
        kind = self.manager.task_index.get(name, {}).get("type")
        if kind in ("task", "python_task"):
            return _check_known(name, limit)
        if kind is not None:
            raise ValueError(f"task {name!r} is a group of tasks; name those wanted: {', '.join(self._members(name))}")
        close = difflib.get_close_matches(name, self.manager.all_tasks, n=5, cutoff=0.5)
        hint = f"close names are {', '.join(close)}" if close else "`python -m lmms_eval --tasks list` shows all"
        raise ValueError(f"task {name!r} is unknown; {hint}")

    def load(self, name: str) -> Any:
        """The task with its documents; the last one is kept.

        Raises:
            ValueError: unknown, or not one that is answered by generating text.
        """
        self.check(name)
        if self._last[0] != name:
            with _quiet():
                task = self.manager.load_task_or_group(name, "chat")[name]
            if task.OUTPUT_TYPE != "generate_until":
                raise ValueError(
                    f"task {name!r} has output_type {task.OUTPUT_TYPE}; accepted are tasks with generate_until, which "
                    f"are answered by generating text"
                )
            self._last = (name, task)
        return self._last[1]

    def _read(self, *, defaults: bool) -> Any:
        from lmms_eval.tasks import TaskManager

        with _quiet():
            return TaskManager(include_path=self._folders, include_defaults=defaults, model_name="gprune")

    def _members(self, name: str) -> list[str]:
        members = self.manager.task_index[name]["task"]
        if members == -1:
            members = self.manager._get_config(name)["task"]
        return [each if isinstance(each, str) else each["task"] for each in members]


def _check_known(name: str, limit: int | None) -> None:
    """What lmms-eval would notice only after all documents are answered, or not at all."""
    if name == "mme" and limit is not None and limit % 2:
        raise ValueError(f"task mme asks two questions of every image and scores them together; limit={limit} is odd")
    if name == "mmbench_en_dev" and "OPENAI_API_KEY" not in os.environ:
        raise ValueError(
            "task mmbench_en_dev asks an OpenAI model which option an answer means and guesses without one; set "
            "OPENAI_API_KEY, or take mmbench_en_dev_static, which goes by rules"
        )


def _evaluate(
    asked: Any, task: Any, tasks: Tasks, key: Key, folder: Path, *, log_samples: bool
) -> dict[str, Any] | None:
    """What lmms-eval returns: its results in the first process, None in the others.

    Args:
        folder: for files that tasks write beside their scores.
    """
    from lmms_eval.evaluator import simple_evaluate

    # Without media, documents are scored without decoding their images again, among them damaged ones.
    arguments = Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None)
    return simple_evaluate(
        asked,
        tasks=[task],
        task_manager=tasks.manager,
        limit=key.limit,
        log_samples=log_samples,
        bootstrap_iters=0,
        cli_args=arguments,
    )


def _scores(name: str, task: Any, results: Mapping[str, Any]) -> dict[str, float]:
    """The value of every metric, the one for tables first."""
    found: dict[str, float] = {}
    for entry, value in results["results"][name].items():
        metric = entry.partition(",")[0]
        if metric in task.aggregation() and isinstance(value, Real):
            found[metric if metric not in found else entry] = float(value)
    listed = [each["metric"] for each in task.config.metric_list or () if isinstance(each["metric"], str)]
    order = [PAPER_METRICS.get(name), *listed]
    return dict(sorted(found.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order)))


def _cell(key: Key, costs: Any, scores: dict[str, float]) -> Cell:
    return Cell(key=key, scores=scores, versions=versions(), **vars(costs))


def _write_samples(path: Path, samples: Sequence[Any]) -> None:
    from lmms_eval.utils import handle_non_serializable

    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) for sample in samples)
    path.write_text("".join(f"{line}\n" for line in lines))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what is printed, and show it if there is an error; the warnings of gprune itself are shown."""
    said = StringIO()
    with warnings.catch_warnings(record=True) as caught:
        try:
            with redirect_stdout(said), redirect_stderr(said):
                yield
        except BaseException:
            print(said.getvalue(), end="", file=sys.stderr)
            raise
    package = Path(__file__).parents[1]
    for each in caught:
        if Path(each.filename).is_relative_to(package):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _send_logs_to_stderr() -> None:
    """lmms-eval logs to the standard output that it found when it was imported."""
    from loguru import logger

    logger.remove()
    logger.add(lambda message: print(message, end="", file=sys.stderr), level="WARNING")
