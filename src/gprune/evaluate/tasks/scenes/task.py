"""The embedded benchmark as lmms-eval asks it: documents are rendered when the task is loaded."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value
from lmms_eval.api.task import ConfigurableMessagesTask

from gprune.scenes.benchmark import examples

COUNT = 700
"""Questions of the test set."""

_FEATURES = Features(
    {"image": Image(), "category": Value("string"), "question": Value("string"), "answer": Value("string")}
)


class Scenes(ConfigurableMessagesTask):
    """A task whose data set is made, not downloaded."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        documents = [{"image": each.picture, **vars(each.question)} for each in examples("test", COUNT)]
        self.dataset = DatasetDict(test=Dataset.from_list(documents, features=_FEATURES))
        self.dataset_no_image = self.dataset.remove_columns("image")


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match without regard to case, overall and in the document's category."""
    right = float(results[0].strip().lower() == doc["answer"])
    return {"overall": right, doc["category"]: right}
