"""What a user chose on the page, and the same as the query of an address that others can open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

from ..errors import BadValue
from ..pruners import Auto
from ..spec import parse_keep
from ..tokens import Cover, Keep, cover
from .examples import examples

UNITS = ("share", "cover")
"""What the number of a budget means: the share of the tokens, or that of the picture which they cover."""
LEAST = 0.05
"""Budget of either unit."""
MAX_METHODS = 3
"""Columns of the page: methods times budgets."""
MAX_QUESTION = 1000
"""Characters."""
MAX_ADDRESS = 10_000
"""Characters of a query: a question in a script of three bytes a character is nine times as long in it."""


@dataclass(frozen=True)
class Choice:
    """A question, methods, and the budgets of each of them.

    Args:
        question: as it was written.
        methods: names, with settings.
        keeps: ratios and `cover(...)`.
    """

    question: str = ""
    methods: tuple[str, ...] = (Auto.name,)
    keeps: tuple[Keep, ...] = (0.5,)

    @classmethod
    def of(cls, question: str, unit: str, keep: float, second: float, *groups: Sequence[str]) -> Choice:
        """What the controls of the page say.

        Args:
            question: see above.
            unit: of `UNITS`.
            keep, second: budgets; the second is none where it is 0.
            groups: the methods chosen in each group of the picker.

        Raises:
            BadValue: `unit` is none.
            TypeError, ValueError: a budget is no number.
        """
        if unit not in UNITS:
            raise BadValue(f"budget of {unit!r} is none; accepted are {', '.join(UNITS)}; choose one of them")
        numbers = [float(number) for number in (keep, second)]
        numbers = numbers if numbers[1] else numbers[:1]
        keeps = [cover(number) if unit == "cover" else number for number in numbers]
        return cls(question, tuple(method for group in groups for method in group), tuple(keeps))

    @property
    def unit(self) -> str:
        """Of `UNITS`; all budgets have the same."""
        return "cover" if isinstance(self.keeps[0], Cover) else "share"

    @property
    def numbers(self) -> tuple[float, float]:
        """The budgets as the controls of the page have them, the second 0 where there is none."""
        first, second = [keep.share if isinstance(keep, Cover) else float(keep) for keep in (*self.keeps, 0.0)][:2]
        return first, second

    @property
    def columns(self) -> list[tuple[str, Keep]]:
        """Every method at every budget.

        Raises:
            BadValue: there are none, or more than the page has place for.
        """
        columns = [(method, keep) for method in self.methods for keep in self.keeps]
        if not 1 <= len(columns) <= MAX_METHODS:
            raise BadValue(
                f"{len(self.methods)} methods with {len(self.keeps)} budgets each are chosen; accepted are 1 to "
                f"{MAX_METHODS} columns; choose other methods, or one budget"
            )
        return columns

    def address(self, example: int | None) -> str:
        """The query of an address that `read_address` reads; an upload is never part of it.

        Args:
            example: the number of the picture among the examples; None: it is none of them.
        """
        fields = {
            "example": [] if example is None else [example],
            "method": self.methods,
            "keep": self.keeps,
            "question": [self.question],
        }
        return "?" + urlencode(fields, doseq=True)


def read_address(address: str, offered: Sequence[str]) -> tuple[Choice, int, list[str]]:
    """What the query of an address asks for; what cannot be is left out, as if it were not there.

    Args:
        address: the query, as anybody may have written it.
        offered: names of the methods that may be chosen.

    Returns:
        The choice, the number of the example, and for each part that was left out why.
    """
    ignored: list[str] = []
    given: dict[str, list[str]] = {}
    try:
        if len(address) > MAX_ADDRESS:
            raise BadValue(f"the link has {len(address)} characters; accepted are {MAX_ADDRESS}; shorten it")
        given = parse_qs(address.removeprefix("?"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        ignored.append(str(error))

    def usable(name: str, read_one: Callable[[str], Any], most: int) -> list[Any]:
        found: list[Any] = []
        for text in given.get(name, ()):
            try:
                value = read_one(text)
                if len(found) == most:
                    raise BadValue(f"{name} {text!r} is one too many; accepted are {most}; leave one out")
                found += [value] if value not in found else []
            except ValueError as error:
                ignored.append(str(error))
        return found

    def method(text: str) -> str:
        if text not in offered:
            raise BadValue(f"method {text[:40]!r} is not offered; accepted are those of the page; choose one")
        return text

    [example] = usable("example", _example, 1) or [0]
    [question] = usable("question", _question, 1) or [examples()[example].question]
    methods = usable("method", method, MAX_METHODS)
    keeps = usable("keep", _keep, 2)
    if len({type(keep) for keep in keeps}) == 2:
        ignored.append(f"keep '{keeps.pop()}' is of another kind than {keeps[0]}; accepted are two of one; choose one")
    if len(methods) * len(keeps) > MAX_METHODS:
        ignored.append(f"keep '{keeps.pop()}' is a second budget of {len(methods)} methods; accepted is that of one")
    return Choice(question, tuple(methods) or Choice.methods, tuple(keeps) or Choice.keeps), example, ignored


def _example(text: str) -> int:
    count = len(examples())
    if text not in map(str, range(count)):
        raise BadValue(f"example {text[:40]!r} is not shown; accepted are 0 to {count - 1}; choose another")
    return int(text)


def _question(text: str) -> str:
    if len(text) > MAX_QUESTION:
        raise BadValue(f"the question has {len(text)} characters; accepted are {MAX_QUESTION}; shorten it")
    return text


def _keep(text: str) -> Keep:
    wrong = BadValue(f"keep {text[:40]!r} cannot be; accepted are {LEAST} to 1.0, and cover:{LEAST} to cover:1.0")
    try:
        keep = parse_keep(text)
    except ValueError:
        raise wrong from None
    number = keep.share if isinstance(keep, Cover) and keep == cover(keep.share) else keep
    if not isinstance(number, float) or not LEAST <= number <= 1:
        raise wrong
    return keep
