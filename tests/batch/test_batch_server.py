"""The engine that asks a server, against a stand-in for one."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from PIL import Image
from rayenv import QUESTION, requests
from standin import StandIn, serving

from gprune.batch import Server


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
    assert server.tried[5] == 1


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_server_that_refuses_everything(status: int) -> None:
    with serving(StandIn({5: [status] * 9})) as server, pytest.raises(requests.RequestException):
        replace(engine(server), retries=1).start()(pictures(5))


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
