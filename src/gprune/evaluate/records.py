"""What was measured of one item, under every method, and the folder that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..tokens import Keep
from .cells import write_whole


@dataclass(frozen=True)
class Score:
    """What a model under a method says of the answer that the unpruned model gives to an item.

    Args:
        nll: negative log-likelihood of the answer in nats, the sum over its tokens.
        agreed: tokens of the answer that are the likeliest there.
        first_kl: Kullback-Leibler divergence KL(p || q) in nats, where p is the unpruned model's distribution of the
            first token and q that under the method.
        visual_tokens: of the prompt, before pruning.
        kept_tokens: the same after pruning, on average over the LLM's layers.
        coverage, worst_coverage: of the features of all tokens by those kept to the last layer, see
            `likeness.Coverage`; None where none is kept.
        edge_share: of the method's own graph; None for methods without.
        flops: floating-point operations up to the first new token; None where not counted.
        seconds: for reading the prompt and the answer, as an equal share of the batch.
    """

    nll: float
    agreed: int
    first_kl: float
    visual_tokens: int
    kept_tokens: float
    coverage: float | None
    worst_coverage: float | None
    edge_share: float | None
    flops: float | None
    seconds: float


@dataclass(frozen=True)
class Record:
    """An item, the unpruned model's greedy answer to it, and what every method makes of that.

    Args:
        pictures: their names.
        seen: fingerprint of the pictures; items with the same are not independent.
        question: about them.
        answer: as the processor decodes it.
        tokens: ids of the answer, with the one that ends it if it came.
        edge_share, tenth: of the unpruned features, see `likeness.Likeness`; None where there are no pairs.
        scores: by `label`.
    """

    pictures: list[str]
    seen: str
    question: str
    answer: str
    tokens: list[int]
    edge_share: float | None
    tenth: float | None
    scores: dict[str, Score] = field(default_factory=dict)


def label(method: str, keep: Keep) -> str:
    """A method at a budget, by the name that scores are kept under: 1 is one token, 1.0 is all."""
    return f"{method} keep={keep}"


def save_record(record: Record, path: Path) -> None:
    """Write a record to a file, whole or not at all."""
    write_whole(asdict(record), path)


def load_record(path: Path) -> Record | None:
    """The record in a file; None if there is none.

    Raises:
        ValueError: the file is not one that `save_record` wrote.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return Record(**{**values, "scores": {name: Score(**each) for name, each in values["scores"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no measured item ({error}); delete it, and the run measures it anew") from error
