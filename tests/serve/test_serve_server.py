"""`gprune serve embedded`, for real: what clients send it and get from it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clients import data_url, post, requests, running

from gprune import Auto, Keep
from gprune.prompt import build_inputs
from gprune.scenes.benchmark import LONGEST_ANSWER, Sample, samples
from gprune.scenes.model import load_embedded

DEFAULT = 0.3
TESTS = list(samples("test", 42))
BUDGETS: tuple[Keep | None, ...] = (None, 0.5, 40, 1.0, 0.1, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with running(
        tmp_path_factory.mktemp("server") / "log", "--trust-request-mm-kwargs", keep=DEFAULT
    ) as running_server:
        yield running_server.url


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_embedded()


def asked(url: str, example: Sample, keep: Keep | None) -> tuple[str, int]:
    """Answer and tokens of the prompt."""
    response = post(url, [data_url(example.picture)], example.question.question, keep)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"][0]["message"]["content"].strip(), body["usage"]["prompt_tokens"]


def wanted(embedded: tuple[Any, Any], example: Sample, pruner: Auto) -> tuple[str, int, int, int]:
    """Answer, tokens of the prompt, and visual tokens before and after, in this process."""
    model, processor = embedded
    inputs = build_inputs(model, processor, [([example.picture], example.question.question)])
    with pruner(model) as run:
        output = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    length, (report,) = inputs["input_ids"].shape[1], run.images
    answer = processor.decode(output[0, length:], skip_special_tokens=True).strip()
    return answer, length - report.n_before + report.n_after, report.n_before, report.n_after


def counters(url: str) -> dict[str, float]:
    lines = requests.get(f"{url}/metrics", timeout=30).text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("gprune_")}


def test_answers_of_many_clients_equal_those_in_process(server: str, embedded: tuple[Any, Any]) -> None:
    """Pictures of many sizes, budgets of many kinds, eight clients at once, some of them with a wrong request."""
    cases = [(example, BUDGETS[i % len(BUDGETS)]) for i, example in enumerate(TESTS)]
    before = counters(server)
    with ThreadPoolExecutor(8) as clients:
        wrong = [clients.submit(post, server, [data_url(TESTS[i].picture, cut=0.5)], "?") for i in range(5)]
        wrong += [clients.submit(post, server, [data_url(TESTS[i].picture)], "?", keep=0) for i in range(5)]
        got = list(clients.map(lambda case: asked(server, *case), cases))
    expected = [
        wanted(embedded, example, Auto(DEFAULT if keep is None else keep, positions="contiguous"))
        for example, keep in cases
    ]
    assert got == [(answer, length) for answer, length, _, _ in expected]
    assert all(400 <= request.result().status_code < 500 for request in wrong)

    spent = {name: value - before.get(name, 0) for name, value in counters(server).items()}
    assert spent["gprune_visual_tokens_total"] == sum(number for _, _, number, _ in expected)
    assert spent["gprune_kept_tokens_total"] == sum(number for _, _, _, number in expected)
    assert spent["gprune_selection_seconds_total"] > 0


def test_health_says_what_is_served(server: str) -> None:
    response = requests.get(f"{server}/health", timeout=30)
    assert response.status_code == 200
    told = response.json()
    assert set(told.pop("versions")) == {"gprune", "vllm", "torch", "transformers"}
    assert told == {"method": "auto", "keep": DEFAULT, "positions": "contiguous"}


PICTURE = TESTS[0].picture


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"keep": 0}, "keep=0 keeps no token"),
        ({"keep": 1.5}, "keep=1.5 is not a ratio"),
        ({"keep": -1}, "keep=-1 keeps no token"),
        ({"keep": "0.3"}, "keep='0.3' is a str"),
        ({"keep": [0.3]}, "keep=[0.3] is a list"),
        ({"mm_processor_kwargs": {"size": {"shortest_edge": 8}}}, "mm_processor_kwargs has size"),
        ({"mm_processor_kwargs": 7}, "mm_processor_kwargs"),
        ({"images": [data_url(PICTURE, cut=0.5)]}, "image"),
        ({"images": ["data:image/png;base64," + base64.b64encode(b"no picture").decode()]}, "image"),
        ({"images": ["data:image/png;base64,***"]}, "base64"),
        ({"images": [7]}, "image_url"),
        ({"images": [data_url(PICTURE)] * 30}, "maximum context length"),
    ],
    ids=str,
)
def test_a_wrong_request_is_told_why(server: str, request_: dict[str, Any], reason: str) -> None:
    response = post(server, **{"images": [data_url(PICTURE)], "question": "what is there?", **request_})
    assert 400 <= response.status_code < 500
    assert reason in response.json()["error"]["message"]
    assert asked(server, TESTS[0], None)[0]


def test_a_picture_asked_about_twice_is_answered_the_same(server: str) -> None:
    first, second = (asked(server, TESTS[1], 1.0) for _ in range(2))
    assert first == second


def test_many_pictures_with_a_small_budget_fit(server: str) -> None:
    """The 30 pictures that are too many above."""
    response = post(server, [data_url(PICTURE)] * 30, "what is there?", keep=4)
    assert response.status_code == 200
    assert json.loads(response.text)["usage"]["prompt_tokens"] < 1024
