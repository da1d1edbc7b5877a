"""Measuring speed: who is measured when, how long the answers are, and what happens without memory; never how fast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gprune import FastV, GPrune, Random, Unpruned
from gprune.cost import cost, measure
from gprune.evaluate import throughput
from gprune.evaluate.noise import process_prompts
from gprune.evaluate.throughput import Lap, Speed, Workload, measure_speed
from gprune.scenes.model import load_embedded

RUNS = [("none", Unpruned()), ("random", Random(keep=0.5)), ("gprune", GPrune(keep=0.3))]
PHOTO = Workload(batch_size=2, image_size=(48, 64), text_tokens=12, new_tokens=3)


@pytest.fixture(scope="module")
def net() -> Any:
    return load_embedded()


@pytest.fixture
def prompts(net: Any) -> Any:
    def make(setting: Workload) -> Any:
        return process_prompts(*net, setting.image_size, setting.text_tokens, setting.batch_size)

    return make


@pytest.fixture
def laps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """Laps are numbered, not timed: which pruner, how many prompts and how many new tokens each was of."""
    done: list[tuple[Any, ...]] = []

    def lap(model: Any, inputs: Any, pruner: Any, new_tokens: int) -> Lap:
        done.append((pruner, len(inputs["input_ids"]), new_tokens))
        return Lap(first=len(done), total=2.0 * len(done), peak=None)

    monkeypatch.setattr(throughput, "_lap", lap)
    yield done


def test_runs_take_turns(net: Any, prompts: Any, laps: list[Any]) -> None:
    single = Workload(1, (48, 64), 12, 4)
    seen: list[tuple[str, int]] = []
    speeds = measure_speed(
        net[0], prompts, RUNS, [PHOTO, single], 2, finished=lambda speed: seen.append((speed.method, len(speed.laps)))
    )
    methods = [pruner for _, pruner in RUNS]
    order = [methods[0], *methods * 2]  # the first one warms up
    assert laps == [(pruner, 2, 3) for pruner in order] + [(pruner, 1, 4) for pruner in order]
    assert seen == [(RUNS[0][0], 0), *((name, lap) for lap in (1, 2) for name, _ in RUNS)] * 2
    assert [(speed.method, speed.keep, speed.setting) for speed in speeds] == [
        (name, keep, setting)
        for setting in (PHOTO, single)
        for name, keep in (("none", 1.0), ("random", 0.5), ("gprune", 0.3))
    ]
    assert [[lap.first for lap in speed.laps] for speed in speeds[:3]] == [[2, 5], [3, 6], [4, 7]]


def test_an_answer_has_exactly_the_tokens_asked_for(net: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = net[0], []
    generate = type(model).generate
    end = model.generation_config.eos_token_id

    def recorded(self: Any, **kwargs: Any) -> Any:
        output = generate(self, **kwargs)
        made.append(output[:, kwargs["input_ids"].shape[1] :])
        return output

    monkeypatch.setattr(type(model), "generate", recorded)
    monkeypatch.setattr(throughput, "_cost", lambda *_: None)
    # A model that would end every answer at once.
    monkeypatch.setattr(
        model.lm_head,
        "forward",
        lambda hidden: torch.eye(len(model.get_input_embeddings().weight))[torch.full(hidden.shape[:2], end)],
    )
    speeds = measure_speed(model, prompts, RUNS, [PHOTO], 1)
    assert [tokens.shape for tokens in made] == [(2, 3)] * 4
    assert all((tokens != end).all() for tokens in made)
    assert all(0 < lap.first < lap.total and lap.peak is None for speed in speeds for lap in speed.laps)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_an_answer_that_is_cut_short_is_an_error(net: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(net[0]), "generate", lambda self, input_ids, **_: input_ids)
    with pytest.raises(RuntimeError, match="made 0 new tokens; 3 were asked for"):
        throughput._lap(net[0], prompts(PHOTO), Unpruned(), 3)


def test_cost_is_of_one_prompt(net: Any, prompts: Any, laps: list[Any]) -> None:
    runs = [*RUNS, ("fastv", FastV(keep=0.5))]
    speeds = measure_speed(net[0], prompts, runs, [PHOTO], 1)
    alone = process_prompts(*net, PHOTO.image_size, PHOTO.text_tokens)
    counted = [cost(net[0], [PHOTO.image_size], PHOTO.text_tokens, keep) for keep in (1.0, *(r[1] for r in RUNS[1:]))]
    assert [speed.cost for speed in speeds] == [*counted, measure(net[0], alone, runs[-1][1])]
    ids = alone["input_ids"]
    assert counted[0].prompt_tokens == ids.shape[1]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu"])
def test_where_memory_runs_out_the_others_go_on(
    net: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = []

    def lap(model: Any, inputs: Any, pruner: Any, new_tokens: int) -> Lap:
        tried.append(pruner)
        if pruner == Unpruned() and len(tried) > 1:
            raise error
        return Lap(1.0, 2.0, 10)

    monkeypatch.setattr(throughput, "_lap", lap)
    full, *pruned = measure_speed(net[0], prompts, RUNS, [PHOTO], 2)
    assert (full.error, full.laps) == ("out of memory", [])
    assert [(speed.error, len(speed.laps)) for speed in pruned] == [(None, 2)] * 2
    assert tried.count(Unpruned()) == 2  # not tried again


def test_prompts_too_large_for_memory(net: Any, prompts: Any, laps: list[Any]) -> None:
    def make(setting: Workload) -> Any:
        if setting.batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prompts(setting)

    small, seen = Workload(1, (48, 64), 12, 3), []
    speeds = measure_speed(net[0], make, RUNS, [PHOTO, small], 1, finished=lambda speed: seen.append(speed.error))
    assert [speed.error for speed in speeds] == ["out of memory"] * 3 + [None] * 3
    assert seen == ["out of memory"] * 3 + [None] * 4


def test_other_errors_are_not_hidden(net: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lap(*_: Any) -> Lap:
        raise RuntimeError("the sizes of tensors must match")

    monkeypatch.setattr(throughput, "_lap", lap)
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        measure_speed(net[0], prompts, RUNS, [PHOTO], 1)


def test_the_graph_of_noise_is_not_warned_of(net: Any, prompts: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete = GPrune(keep=0.5, similarity=-1.0)
        measure_speed(net[0], prompts, [("gprune", complete)], [PHOTO], 1)
    with pytest.warns(UserWarning, match="the graph says little"), GPrune(keep=0.6, similarity=-1.0)(net[0]):
        net[0](**prompts(PHOTO))


def test_a_speed_that_failed_keeps_no_laps() -> None:
    speed = Speed("none", 1.0, PHOTO, laps=[Lap(1.0, 2.0, None)])
    speed.fail()
    assert (speed.laps, speed.error) == ([], "out of memory")


def test_on_a_gpu_events_are_timed_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Recorded one after the other, 500 ms apart, and readable only once the GPU is done."""

        count, done = 0, False

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "stream of cuda:1"
            Event.count += 1
            self.at = 500 * Event.count

        def elapsed_time(self, other: Event) -> int:
            assert Event.done
            return other.at - self.at

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: setattr(Event, "done", True))
    watch = throughput._Watch(torch.device("cuda:1"))
    watch.mark()
    for _ in range(3):  # of the logits, only the first are noted
        assert watch("ids", "scores") == "scores"
    watch.mark()
    assert watch.seconds() == (0.5, 1.0)
