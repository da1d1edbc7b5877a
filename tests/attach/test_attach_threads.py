"""Several threads, tasks and conversations on one model: each gets its own answers, and the model is left as it was."""

from __future__ import annotations

import asyncio
import copy
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as T
from decoding import cache_of, with_cache
from families import FAMILIES, Inputs, prompt_of
from torch import Tensor

from gprune import (
    DART,
    CDPruner,
    Chain,
    DivPrune,
    EvoViT,
    FastV,
    GPrune,
    L2Norm,
    Method,
    PyramidDrop,
    Random,
    ToMe,
    Unpruned,
    VisionZip,
)
from gprune.attach.llm_attention import with_look
from gprune.errors import AmbiguousRun

FAMILY = FAMILIES["llava"]
STEPS = 5
SETTINGS: dict[str, Any] = {
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "do_sample": False,
    "suppress_tokens": [90],
}
METHODS: dict[str, Method] = {
    "gprune": GPrune(0.4),
    "contiguous": GPrune(0.3, positions="contiguous"),
    "divprune": DivPrune(0.4),
    "cdpruner": CDPruner(0.5),
    "visionzip": VisionZip(0.4),
    "tome": ToMe(0.5),
    "evovit": EvoViT(0.5),
    "tokens": ToMe(0.5, where="tokens"),
    "fastv": FastV(keep=0.6, layer=1),
    "dart": DART(keep=0.6, layer=1),
    "pyramiddrop": PyramidDrop(keep=0.7, stages=2),
    "chain": Chain(GPrune(0.5), FastV(keep=0.6, layer=1)),
    "none": Unpruned(),
}
FEW = ("gprune", "cdpruner", "visionzip", "tome", "fastv", "chain", "none")


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    """Threads take turns some hundred times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the graph says little")
        yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def model() -> Any:
    model = copy.deepcopy(FAMILY.model())
    answer(model, prompts()[0])  # stock puts hooks of its own on what is called for the first time
    return model


def fingerprint(model: Any) -> list[Any]:
    gc.collect()
    modules = [model, *model.modules()]
    return [{name: dict(v) if isinstance(v, dict) else v for name, v in vars(module).items()} for module in modules]


def prompts() -> list[Inputs]:
    """A padded batch, and its prompts by themselves."""
    batch = FAMILY.inputs()
    return [batch, *(prompt_of(batch, row) for row in range(3))]


def answer(model: Any, inputs: Any, **more: Any) -> Tensor:
    with torch.no_grad():
        return model.generate(**inputs, **SETTINGS, **more)[:, -STEPS:]


def answers(model: Any, names: Any = METHODS) -> dict[str, list[Tensor]]:
    """What each method answers, one after the other."""
    expected = {}
    for name in names:
        with METHODS[name](model):
            expected[name] = [answer(model, inputs) for inputs in prompts()]
    return expected


def together(works: list[Callable[[], None]]) -> None:
    """Run them in threads of their own; the first error is raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(timeout=240)


@pytest.mark.parametrize("name", FEW)
def test_one_run_for_all_threads(model: Any, name: str) -> None:
    before, expected = fingerprint(model), answers(model, [name])[name]

    def work(index: int) -> Callable[[], None]:
        def repeat() -> None:
            for _ in range(4):
                assert torch.equal(answer(model, prompts()[index]), expected[index])

        return repeat

    with METHODS[name](model):
        together([work(index) for index in range(4)])
    assert fingerprint(model) == before


def test_a_block_in_every_thread(model: Any) -> None:
    """As a web service has one for each request, with a method and a ratio of its own."""
    before, expected = fingerprint(model), answers(model)

    def work(seed: int) -> Callable[[], None]:
        def serve() -> None:
            draw = random.Random(seed)
            for _ in range(8):
                name, index = draw.choice(list(METHODS)), draw.randrange(4)
                with METHODS[name](model) as run:
                    assert torch.equal(answer(model, prompts()[index]), expected[name][index]), name
                    assert len(run.images) == (0 if name == "none" else [3, 1, 2, 0][index])

        return serve

    together([work(seed) for seed in range(4)])
    assert fingerprint(model) == before


def test_reports_are_those_of_the_thread(model: Any) -> None:
    meet = threading.Barrier(2)

    def work(index: int, images: int) -> Callable[[], None]:
        def look() -> None:
            answer(model, prompts()[index])
            meet.wait(60)
            assert len(run.images) == images

        return look

    with GPrune(0.4)(model) as run:
        together([work(1, 1), work(2, 2)])
        assert len(run.images) in (1, 2)  # made no call itself: those of the last
        answer(model, prompts()[0])
        assert len(run.images) == 3


@pytest.mark.parametrize("name", ["gprune", "contiguous", "visionzip", "tome", "fastv", "chain"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_generation_that_outlives_its_block(model: Any, name: str, index: int) -> None:
    """As a streamer's does, that is read after the block: what was begun pruned ends pruned."""
    before, inputs = fingerprint(model), prompts()[index]
    expected, unpruned = answers(model, [name])[name][index], answer(model, inputs)
    begun, detached, answered = threading.Event(), threading.Event(), []

    class Hold(T.StoppingCriteria):
        steps = 0

        def __call__(self, ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            self.steps += 1
            if self.steps == 2:
                begun.set()
                assert detached.wait(60)
            return torch.zeros(len(ids), dtype=torch.bool)

    def generate() -> None:
        answered.append(answer(model, inputs, stopping_criteria=[Hold()]))

    with METHODS[name](model):
        thread = threading.Thread(target=generate)
        thread.start()
        assert begun.wait(60)
    assert torch.equal(answer(model, inputs), unpruned)  # nothing else is pruned any more
    detached.set()
    thread.join(60)
    assert torch.equal(answered[0], expected)
    assert fingerprint(model) == before


def test_a_conversation_that_goes_on_after_its_block(model: Any) -> None:
    before, prompt = fingerprint(model), prompts()[1]
    token, mask = torch.tensor([[7]]), torch.ones(1, prompt["input_ids"].shape[1] + 1)
    for pruner in (GPrune(0.4), GPrune(0.4, positions="contiguous"), FastV(keep=0.6, layer=1)):
        with pruner(model):
            cache = cache_of(model(**prompt))
            expected = model(input_ids=token, attention_mask=mask, **with_cache(copy.deepcopy(cache))).logits
            copied = copy.deepcopy(cache)
        for own in (cache, copied):
            assert torch.equal(model(input_ids=token, attention_mask=mask, **with_cache(own)).logits, expected)
        del cache, copied, own
        assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["gprune", "fastv"])
def test_a_cache_that_is_emptied_after_its_block(model: Any, name: str) -> None:
    """It holds no conversation any more, so that a new one in it is not pruned."""
    prompt = prompts()[1]
    expected = model(**prompt).logits
    cache = T.DynamicCache(config=model.config.get_text_config())
    with METHODS[name](model):
        assert not torch.equal(model(**prompt, **with_cache(cache)).logits[:, -1], expected[:, -1])
    cache.crop(-cache.get_seq_length())
    assert cache.get_seq_length() == 0
    assert torch.equal(model(**prompt, **with_cache(cache)).logits, expected)


def test_a_thread_without_a_run_beside_several(model: Any) -> None:
    """Which is meant cannot be told, so that it is said; a run of one's own, or none, can."""
    inside, leave = threading.Barrier(3), threading.Event()

    def hold(keep: float) -> Callable[[], None]:
        def work() -> None:
            with L2Norm(keep)(model):
                inside.wait(60)
                leave.wait(60)

        return work

    expected = answers(model, ["gprune", "none"])
    threads = [threading.Thread(target=hold(keep)) for keep in (0.3, 0.6)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    try:
        with pytest.raises(AmbiguousRun, match=r"2 runs are attached by other threads.*Unpruned"):
            answer(model, prompts()[0])
        with GPrune(0.4)(model):
            assert torch.equal(answer(model, prompts()[0]), expected["gprune"][0])
        with Unpruned()(model):
            assert torch.equal(answer(model, prompts()[0]), expected["none"][0])
    finally:
        leave.set()
        for thread in threads:
            thread.join(60)
    assert torch.equal(answer(model, prompts()[0]), expected["none"][0])


def test_tasks_of_one_thread(model: Any) -> None:
    """Tasks of asyncio that generate in other threads have runs of their own."""
    expected = answers(model, ["gprune", "fastv", "none"])

    async def serve(name: str) -> None:
        for index in (1, 0, 2):
            with METHODS[name](model):
                await asyncio.sleep(0)
                assert torch.equal(await asyncio.to_thread(answer, model, prompts()[index]), expected[name][index])

    async def main() -> None:
        await asyncio.gather(*(serve(name) for name in expected))

    asyncio.run(main())


def test_unpruned_inside_another_block(model: Any) -> None:
    before, expected = fingerprint(model), answers(model, ["gprune", "none"])
    with GPrune(0.4)(model) as outer:
        with Unpruned()(model) as inner:
            assert torch.equal(answer(model, prompts()[0]), expected["none"][0])
            assert outer.images == inner.images == []
        assert torch.equal(answer(model, prompts()[0]), expected["gprune"][0])
    assert fingerprint(model) == before


def test_models_beside_each_other(model: Any) -> None:
    """What one thread puts on its model does not wait for, nor get lost by, what others do on theirs."""
    models = [model, *(copy.deepcopy(model) for _ in range(3))]
    before = [fingerprint(each) for each in models]
    expected = answers(model, ["gprune", "fastv"])

    def work(own: Any) -> Callable[[], None]:
        def serve() -> None:
            for round in range(30):
                name = ("gprune", "fastv")[round % 2]
                with METHODS[name](own) as run:
                    assert torch.equal(answer(own, prompts()[1]), expected[name][1])
                    assert len(run.images) == 1

        return serve

    together([work(own) for own in models])
    assert [fingerprint(each) for each in models] == before


def test_what_is_replaced_is_there_at_every_moment(model: Any) -> None:
    """Another thread may compute with an attention module whose config is being put back."""
    gone: list[str] = []

    class Noting(dict[str, Any]):
        def __delitem__(self, name: str) -> None:
            gone.append(name)
            super().__delitem__(name)

    attention = model.get_decoder().layers[0].self_attn
    config, attention.__dict__ = attention.config, Noting(vars(attention))
    METHODS["fastv"](model).detach()
    assert gone == ["_gprune_look"] and attention.config is config


def test_an_attention_that_lost_its_look_computes_all_the_same(model: Any) -> None:
    prompt = prompts()[0]
    expected = model(**prompt).logits
    attention = model.get_decoder().layers[0].self_attn
    config = attention.config
    attention.config = with_look(attention, lambda *_: None)["config"]
    try:
        assert torch.equal(model(**prompt).logits, expected)
    finally:
        attention.config = config


def test_soak(model: Any) -> None:
    """Threads, methods, batches, detaching in between and failures, mixed: no wrong answer, and an untouched model."""
    before, expected = fingerprint(model), answers(model)
    bad = FAMILY.inputs()
    bad["pixel_values"][0] = torch.nan
    counts = {"answered": 0, "failed": 0, "left": 0}
    lock = threading.Lock()

    class Leave(T.StoppingCriteria):
        def __init__(self, run: Any) -> None:
            self.run = run

        def __call__(self, ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            self.run.detach()
            return torch.zeros(len(ids), dtype=torch.bool)

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def work(seed: int) -> Callable[[], None]:
        def serve() -> None:
            draw = random.Random(seed)
            for _ in range(100):
                name, index = draw.choice(list(METHODS)), draw.randrange(4)
                way = draw.choice(["whole", "whole", "leave", "fail"])
                with METHODS[name](model) as run:
                    if way == "fail" and name != "none":
                        with pytest.raises(ValueError, match="image 0"):
                            answer(model, bad)
                        count("failed")
                    elif way == "leave":
                        output = answer(model, prompts()[index], stopping_criteria=[Leave(run)])
                        assert torch.equal(output, expected[name][index]), name
                        count("left")
                    else:
                        assert torch.equal(answer(model, prompts()[index]), expected[name][index]), name
                        count("answered")

        return serve

    together([work(seed) for seed in range(4)])
    assert sum(counts.values()) == 400 and all(counts.values())
    assert fingerprint(model) == before
    assert torch.equal(answer(model, prompts()[0]), expected["none"][0])
    with Random(0.5)(model) as run:
        answer(model, prompts()[0])
        assert len(run.images) == 3
