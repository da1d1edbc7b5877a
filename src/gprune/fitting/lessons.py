"""What a scorer is trained on and how: settings, and pictures to learn from and to be judged by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from ..checks import Above, Count, OneOf, check_settings, setting
from ..errors import BadValue
from ..evaluate.items import Query, open_query
from ..images import UnreadableImage

HELD_OUT = 5
"""One in so many pictures is not learned from."""

MOST_HELD_OUT = 100
"""Pictures that are not learned from, at most."""


@dataclass(frozen=True)
class FitSettings:
    """How a scorer is trained.

    Args:
        question: whether it reads the question too.
        steps: of the optimizer.
        batch_size: items in a step.
        rate: the learning rate of the first step; it falls to 0 by a cosine.
        max_new_tokens: of the answers of the model that are learned from.
        validate_every: steps between two validations, after each of which the state is saved.
        seed: of the weights, the order of items and the noise.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    question: bool = setting(False, OneOf((False, True)))
    steps: int = setting(1000, Count(1))
    batch_size: int = setting(8, Count(1))
    rate: float = setting(1e-3, Above(0))
    max_new_tokens: int = setting(64, Count(1))
    validate_every: int = setting(100, Count(1))
    seed: int = setting(0, Count(0))

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Lessons:
    """Items that can be read, apart by their pictures.

    Args:
        training: that are learned from.
        validation: that are not, a fifth of the pictures and at most 100.
        errors: items that cannot be read, with the reasons.
        fingerprint: of pictures and questions.
    """

    training: list[Query]
    validation: list[Query]
    errors: list[str]
    fingerprint: str


def split_items(items: Sequence[Query]) -> Lessons:
    """Divide items by the fingerprints of their pictures, so that no picture is on both sides, whatever their order.

    Raises:
        BadValue: there are not two different pictures that can be read.
    """
    errors: list[str] = []
    by_picture: dict[str, list[Query]] = defaultdict(list)
    for number, item in enumerate(items):
        try:
            by_picture[open_query(item).seen].append(item)
        except UnreadableImage as error:
            errors.append(f"item {number}: {error}")
    pictures = sorted(by_picture)
    if len(pictures) < 2:
        raise BadValue(
            f"{len(items)} items have {len(pictures)} different pictures that can be read"
            f"{f' ({errors[0]})' if errors else ''}; accepted are at least 2, one to learn from and one to be judged "
            f"by, and some hundred are better; give more"
        )
    held_out = min(max(1, len(pictures) // HELD_OUT), MOST_HELD_OUT)
    shown = "".join(f"{seen} {question}\n" for seen in pictures for _, question in by_picture[seen])
    return Lessons(
        training=[item for seen in pictures[held_out:] for item in by_picture[seen]],
        validation=[item for seen in pictures[:held_out] for item in by_picture[seen]],
        errors=errors,
        fingerprint=sha256(shown.encode()).hexdigest()[:32],
    )
