"""What the settings of a method accept, and how it is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from gprune.checks import Above, Accepted, Between, Count, OneOf, check_settings, check_value, setting
from gprune.errors import BadType, BadValue


@dataclass
class Settings:
    share: float = setting(0.5, Between(0, 1))
    limit: int | None = setting(None, Count(0))
    anything: Any = None

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("accepted", "values"),
    [
        (Between(-1, 1), (-1, 0.3, 1.0)),
        (Above(0), (5e-324, 7, 1e308)),
        (Count(2), (2, 10**400)),
        (Count(0, 3), (0, 3)),
        (OneOf(("a", "b")), ("a", "b")),
        (OneOf((1.0,)), (1.0,)),
    ],
)
def test_all_that_is_accepted_passes(accepted: Accepted, values: tuple[Any, ...]) -> None:
    for value in values:
        check_value("it", value, accepted)


@pytest.mark.parametrize(
    ("value", "accepted", "error", "sentence"),
    [
        (2, Between(-1, 1), BadValue, "it=2 is out of range; accepted is a number in [-1, 1]; leave it out for 0"),
        (0, Above(0), BadValue, "it=0 is out of range; accepted is a finite number > 0; leave it out for 0"),
        (True, Between(0, 1), BadType, "it=True is a bool; accepted is a number in [0, 1]; leave it out for 0"),
        (1, Count(2), BadValue, "it=1 is out of range; accepted is an int >= 2; leave it out for 0"),
        ("2", Count(0, 9), BadType, "it='2' is a str; accepted is an int in [0, 9]; leave it out for 0"),
        ("c", OneOf(("a", "b")), BadValue, "it='c' is unknown; accepted is 'a' or 'b'; leave it out for 0"),
        (3, OneOf(("a", "b")), BadType, "it=3 is an int; accepted is 'a' or 'b'; leave it out for 0"),
    ],
)
def test_an_error_says_what_came_what_is_accepted_and_what_to_do(
    value: Any, accepted: Accepted, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        check_value("it", value, accepted, 0)


def test_none_is_accepted_where_it_is_the_default() -> None:
    assert Settings(limit=None, anything=object()).limit is None
    with pytest.raises(BadValue, match=r"limit=-1 is out of range; accepted is an int >= 0; leave it out$"):
        Settings(limit=-1)
    with pytest.raises(BadType, match="share=None is a NoneType; accepted is a number in"):
        Settings(share=None)  # type: ignore[arg-type]
