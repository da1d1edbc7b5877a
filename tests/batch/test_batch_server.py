"""The engine that asks a server, against a stand-in for one."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
import standin
from PIL import Image
from rayenv import QUESTION, requests
from standin import StandIn, serving

from gprune.batch import Server
from gprune.evaluate.answers import Response


def pictures(*widths: int) -> list[tuple[Image.Image, str]]:
    return [(Image.new("RGB", (width, 9), (width, 2, 3)), f"{QUESTION} {width}") for width in widths]


def engine(server: StandIn) -> Server:
    return Server(server.url, "llava", max_new_tokens=5)


def test_what_is_asked_and_answered() -> None:
    with serving(StandIn()) as server:
        given = replace(engine(server), keep=0.3)
        given.check()
        assert server.tried == {64: 1}
        asked = len(server.requests)
        answers = given.start()(pictures(4, 5, 6))
    assert [each.text for each in answers] == [f"{w}x9 {QUESTION} {w} ({w}, 2, 3)" for w in (4, 5, 6)]
    assert all(each.error is None and each.seconds > 0 and each.visual_tokens == 0 for each in answers)
    for body in server.requests[asked:]:
        assert len(body.pop("messages")) == 1
        assert body.pop("mm_processor_kwargs") == {"gprune_keep": 0.3}
        assert body == {"model": "llava", "max_tokens": 5, "temperature": 0}


def test_a_batch_is_asked_at_once() -> None:
    server = StandIn()
    server.all_at_work = threading.Barrier(8)  # none is answered before all are there
    with serving(server):
        answers = engine(server).start()(pictures(*range(1, 9)))
    assert [each.text.split("x")[0] for each in answers] == [str(width) for width in range(1, 9)]


def test_passing_troubles_are_waited_for() -> None:
    with serving(StandIn({4: [503], 5: [429, 502]})) as server:
        answers = engine(server).start()(pictures(4, 5, 6))
    assert [each.error for each in answers] == [None] * 3
    assert server.tried == {4: 2, 5: 3, 6: 1}


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_row_that_the_server_refuses(status: int) -> None:
    with serving(StandIn({5: [status] * 9})) as server:
        answers = engine(server).start()(pictures(4, 5, 6))
    assert [each.error is None for each in answers] == [True, False, True]
    assert f"the server says {status}: " in str(answers[1].error) and "no to 5" in str(answers[1].error)
    assert server.tried[5] == (2 if status == 500 else 1)


def test_a_failure_inside_the_server_that_passes() -> None:
    with serving(StandIn({5: [500]})) as server:
        answers = engine(server).start()(pictures(4, 5, 6))
    assert [each.error for each in answers] == [None] * 3


def test_a_server_that_dies_makes_no_row_an_error() -> None:
    server = StandIn(fatal=5)
    server.all_at_work = threading.Barrier(3)  # all are under way when it dies
    with serving(server), pytest.raises(requests.RequestException):
        replace(engine(server), retries=1).start()(pictures(4, 5, 6))
    assert server.dead


def test_a_server_without_its_engine_makes_no_row_an_error() -> None:
    with serving(StandIn({5: [500] * 9}, health=503)) as server, pytest.raises(requests.RequestException):
        replace(engine(server), retries=1).start()(pictures(4, 5, 6))


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_server_that_refuses_everything(status: int) -> None:
    with serving(StandIn({5: [status] * 9})) as server, pytest.raises(requests.RequestException):
        replace(engine(server), retries=1).start()(pictures(5))


@pytest.mark.parametrize("seed", range(10))
def test_a_server_that_is_killed_answers_all_or_ends_the_job(seed: int) -> None:
    asked = pictures(*range(1, 65))
    with subprocess.Popen([sys.executable, standin.__file__], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ask = Server(process.stdout.readline().strip(), "llava", retries=0).start()
        threading.Timer(random.Random(seed).uniform(0, 0.2), process.kill).start()
        answers: list[Response] = []
        with suppress(requests.RequestException):
            for _ in range(100):
                answers += ask(asked)
        process.kill()
    assert len(answers) < 6400  # it was killed while asked
    for (picture, question), answer in zip(asked * 100, answers, strict=False):
        width = picture.width
        assert (answer.error, answer.text) == (None, f"{width}x9 {question} ({width}, 2, 3)")


def test_a_server_that_takes_no_budgets() -> None:
    with serving(StandIn({64: [400] * 2})) as server:
        with pytest.raises(ValueError, match=r"keep=0.3 \(the server says 400: .*--trust-request-mm-kwargs"):
            replace(engine(server), keep=0.3).check()
        engine(server).check()  # without a budget nothing is asked
    assert server.tried == {64: 1}


def test_what_is_known_before() -> None:
    with serving(StandIn()) as server:
        with pytest.raises(ValueError, match="has no model 'other'; it has llava"):
            replace(engine(server), model="other").check()
        with pytest.raises(ValueError, match="does not list its models"):
            replace(engine(server), url=server.url.removesuffix("/v1")).check()
    for url in (server.url, "localhost:8000/v1", "nonsense"):
        with pytest.raises(ValueError, match=r"does not list its models .* such as http://localhost:8000/v1"):
            Server(url, "llava").check()
