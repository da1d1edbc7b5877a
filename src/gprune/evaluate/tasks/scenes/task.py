"""The embedded benchmark as lmms-eval asks it: documents are rendered when the task is loaded."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value
from lmms_eval.api.task import ConfigurableMessagesTask

from gprune.scenes.benchmark import FALSE_YES, QUESTIONS, samples

_FEATURES = Features(
    {"image": Image(), "category": Value("string"), "question": Value("string"), "answer": Value("string")}
)


class Scenes(ConfigurableMessagesTask):
    """A task whose data set is made, not downloaded."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Make the documents; nothing is fetched."""
        documents = [{"image": each.picture, **vars(each.question)} for each in samples("test", QUESTIONS)]
        self.dataset = DatasetDict(test=Dataset.from_list(documents, features=_FEATURES))
        self.dataset_no_image = self.dataset.remove_columns("image")


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The pictures of a document."""
    return [doc["image"]]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match without regard to case, overall and in the document's category; a yes to what is not there."""
    answer = results[0].strip().lower()
    right = float(answer == doc["answer"])
    absent = {FALSE_YES: float(answer == "yes")} if (doc["category"], doc["answer"]) == ("presence", "no") else {}
    return {"overall": right, doc["category"]: right, **absent}
