"""What a user chose, there and back by an address; whatever an address says, the page can show it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gprune import cover
from gprune.app.choice import LEAST, MAX_ADDRESS, MAX_METHODS, MAX_QUESTION, Choice, read_address
from gprune.app.examples import examples
from gprune.app.picker import BEGINNING, TO_BEGIN_WITH, method_groups
from gprune.app.studio import VARIANTS
from gprune.pruners import PRUNERS

OFFERED = [*PRUNERS, *VARIANTS]
NUMBERS = st.integers(5, 100).map(lambda percent: percent / 100)


@st.composite
def choices(draw: Any) -> Choice:
    """All that the controls can say."""
    count = draw(st.integers(1, 2))
    methods = draw(st.lists(st.sampled_from(OFFERED), min_size=1, max_size=MAX_METHODS // count, unique=True))
    numbers = draw(st.lists(NUMBERS, min_size=count, max_size=count, unique=True))
    unit = draw(st.sampled_from(("share", "cover")))
    return Choice.of(draw(st.text(max_size=50)), unit, *([*numbers, 0][:2]), methods[:1], methods[1:])


@given(choices(), st.integers(0, len(examples()) - 1))
def test_an_address_brings_the_choice_back(choice: Choice, example: int) -> None:
    assert read_address(choice.address(example), OFFERED) == (choice, example, [])
    assert Choice.of(choice.question, choice.unit, *choice.numbers, choice.methods) == choice
    assert len(choice.columns) == len(choice.methods) * len(choice.keeps)


def test_a_slider_gives_ratios() -> None:
    """JSON has one kind of number: 1 is everything, not one token."""
    assert Choice.of("", "share", 1, 0, ["gprune"]).keeps == (1.0,)
    assert isinstance(Choice.of("", "share", 1, 0, ["gprune"]).keeps[0], float)
    assert Choice.of("", "cover", 1, 0.5, [], ["mmr"]).columns == [("mmr", cover(1.0)), ("mmr", cover(0.5))]


def test_an_upload_is_not_part_of_an_address() -> None:
    address = Choice("what is it?", ("auto",), (0.5,)).address(None)
    assert address == "?method=auto&keep=0.5&question=what+is+it%3F"
    assert read_address(address, OFFERED)[1] == 0


def test_the_longest_question_fits() -> None:
    choice = Choice("語" * MAX_QUESTION, OFFERED[:3], (0.5,))  # type: ignore[arg-type]
    assert read_address(choice.address(1), OFFERED)[0].question == choice.question


@pytest.mark.parametrize("address", ["", "?", "?__theme=dark&utm=1"])
def test_an_address_that_says_nothing(address: str) -> None:
    assert read_address(address, OFFERED) == (Choice(examples()[0].question), 0, [])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("?example=-1", "example '-1' is not shown"),
        ("?example=999", "example '999'"),
        ("?example=../../etc/passwd", "example '../../etc/passwd'"),
        ("?example=٣", "example '٣'"),
        ("?example=1&example=2", "one too many"),
        ("?method=foreground:mask=/etc/passwd", "is not offered"),
        ("?method=gprune:iterations=999999999", "is not offered"),
        ("?method=<script>", "is not offered"),
        ("?method=auto&method=gprune&method=random&method=mmr", "one too many"),
        ("?method=auto&method=gprune&keep=0.5&keep=0.3", "second budget of 2 methods"),
        ("?keep=0", "keep '0' cannot be"),
        ("?keep=1", "keep '1' cannot be"),
        ("?keep=own", "keep 'own' cannot be"),
        ("?keep=nan", "keep 'nan' cannot be"),
        ("?keep=1e400", "keep '1e400' cannot be"),
        ("?keep=cover:7", "keep 'cover:7' cannot be"),
        ("?keep=cover:nan", "keep 'cover:nan' cannot be"),
        ("?keep=cover:0.9:at_most=0.5", "at_most=0.5' cannot be"),
        ("?keep=__import__('os')", "cannot be"),
        ("?keep=0.5&keep=cover:0.5", "of another kind"),
        (f"?question={'x' * (MAX_QUESTION + 1)}", f"{MAX_QUESTION + 1} characters"),
        (f"?question={'x' * MAX_ADDRESS}", "the link has"),
        (f"?{'&keep=0.5' * 30}", "Max number of fields"),
    ],
)
def test_what_cannot_be_is_left_out_with_a_word(address: str, words: str) -> None:
    choice, example, ignored = read_address(address, OFFERED)
    assert [words in each for each in ignored] == [True]
    assert example in range(len(examples())) and len(ignored[0]) < 200
    assert set(choice.methods) <= set(OFFERED) and choice.columns and len(choice.question) <= MAX_QUESTION
    assert all(LEAST <= number <= 1 for number in choice.numbers[: len(choice.keeps)])


def test_every_method_is_in_one_group() -> None:
    groups = method_groups(OFFERED)
    assert next(iter(groups)) == BEGINNING and groups[BEGINNING] == list(TO_BEGIN_WITH)
    assert sorted(name for names in groups.values() for name in names) == sorted(OFFERED)
    assert "fastv" in groups["Inside the LLM"] and "cdpruner" in groups["By the question"]
    assert all(method_groups(["auto", "fastv"]).values()) and len(method_groups(["auto", "fastv"])) == 2
