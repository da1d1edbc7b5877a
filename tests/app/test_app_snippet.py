"""The code on the page does what the page shows."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from gprune import GPrune, ToMe, VisionZip, cover
from gprune.app import snippet
from gprune.app.choice import Choice
from gprune.app.examples import examples
from gprune.app.studio import Studio, Subject
from gprune.cli import main

METHODS = ("gprune:init=ones", "tome")
QUESTION = "describe the picture."


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("a.png", Choice(QUESTION, ("graphcover",), (cover(0.9), cover(0.7)))),
        ('it\'s a "scene"; $(x) `y`.png', Choice(QUESTION, METHODS)),
        ("-a.png", Choice(QUESTION, METHODS)),
    ],
)
def test_both_answer_as_the_page_does(
    name: str, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = examples()[1].picture
    picture.save(name)
    studio = Studio("embedded")
    *_, answers = studio.ask(Subject(picture, name), choice)
    capsys.readouterr()

    exec(snippet.python("embedded", name, choice, 128), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" tokens: ")[2] for line in lines] == [answer.text for answer in answers[1:]]

    ask, show = snippet.commands("embedded", name, choice, 2, 128).splitlines()
    for command in (ask, show):
        program, *arguments = shlex.split(command)
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert program == "gprune" and not exit.value.code
    printed = capsys.readouterr().out
    assert all(answer.text in printed for answer in answers)
    assert min(Image.open("kept.png").size) > 100


def test_a_question_that_looks_like_an_option() -> None:
    [ask, _] = snippet.commands("org/model", "a.png", Choice("--help me"), 5, 8).splitlines()
    words = shlex.split(ask)
    assert words[words.index("--") + 1 :] == ["a.png", "--help me"]
    assert words[words.index("--model") + 1] == "org/model"


def test_where_the_picture_comes_from_stands_first() -> None:
    lines = snippet.commands("embedded", "a.png", Choice("?"), 5, 8, origin="make a").splitlines()
    assert lines[0] == "make a" and len(lines) == 3


def test_only_settings_that_differ() -> None:
    assert snippet.constructor(GPrune(0.3)) == "GPrune(keep=0.3)"
    assert snippet.constructor(GPrune(0.3, init="ones")) == "GPrune(keep=0.3, init='ones')"
    for pruner in (ToMe(0.5, where="tokens"), VisionZip(0.2)):
        assert eval(snippet.constructor(pruner)) == pruner
