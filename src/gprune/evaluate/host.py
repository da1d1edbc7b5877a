"""What the measurements rely on in lmms-eval, beyond what it documents, and what lmms-eval relies on in filelock."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from ..contract import Contract

LMMS_EVAL = Contract(
    "lmms-eval",
    ">=0.7.3,<0.8",
    (
        "lmms_eval.api.model:lmms()",
        "lmms_eval.api.model:lmms.is_simple",
        "lmms_eval.api.model:lmms.generate_until(requests)",
        "lmms_eval.api.model:lmms.loglikelihood(requests)",
        "lmms_eval.api.model:lmms.generate_until_multi_round(requests)",
        "lmms_eval.api.model:lmms.clean()",
        "lmms_eval.api.instance:Instance.args",
        "lmms_eval.api.instance:Instance(metadata, task_name, doc_id, ...)",
        "lmms_eval.api.task:ConfigurableMessagesTask(config)",
        "lmms_eval.api.task:ConfigurableMessagesTask.OUTPUT_TYPE",
        "lmms_eval.api.task:ConfigurableMessagesTask.aggregation()",
        "lmms_eval.api.task:ConfigurableMessagesTask.download(dataset_kwargs)",
        "lmms_eval.evaluator:_clone_padding_request(pad_source)",
        "lmms_eval.evaluator:simple_evaluate"
        "(model, tasks, task_manager, limit, log_samples, bootstrap_iters, cli_args)",
        "lmms_eval.tasks:TaskManager(include_path, include_defaults, model_name)",
        "lmms_eval.tasks:TaskManager._get_config(name)",
        "lmms_eval.tasks:TaskManager.all_tasks",
        "lmms_eval.tasks:TaskManager.load_task_or_group(task_list, task_type)",
        "lmms_eval.tasks:TaskManager.task_index",
        "lmms_eval.utils:Collator(arr, sort_fn, group_fn, grouping)",
        "lmms_eval.utils:Collator.get_batched(n)",
        "lmms_eval.utils:Collator.get_original(newarr)",
        "lmms_eval.utils:handle_non_serializable(o)",
    ),
)
"""A model that it asks, the tasks that it asks about, and the evaluation itself."""

FILELOCK = Contract("filelock", "<4.3", relying="lmms-eval")
"""A package that lmms-eval changes from within when an evaluation begins."""

_PADDING = "__padding_only__"
"""In the metadata of a request: lmms-eval's mark of one that a process repeats so that all have equally many."""


def check_lmms_eval() -> None:
    """Raise UnsupportedHost unless lmms-eval, and the filelock beside it, are shaped as gprune relies on."""
    LMMS_EVAL.check()
    evaluator: Any = import_module("lmms_eval.evaluator")
    if not is_padding(evaluator._clone_padding_request(SimpleNamespace(metadata=None))):
        raise LMMS_EVAL.refusal([f"the mark {_PADDING} of a repeated request"])
    # What it does as the first thing in an evaluation, and only once: better known before a model is loaded.
    change = getattr(evaluator, "_enable_reentrant_filelocks", lambda: None)
    try:
        change()
    except (ImportError, AttributeError) as error:
        raise FILELOCK.refusal([str(error)]) from error


def is_padding(request: Any) -> bool:
    """Whether a request repeats one of the same process, and is not to be counted."""
    return bool(request.metadata.get(_PADDING))
