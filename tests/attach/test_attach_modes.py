"""The documents' table of ways to generate, measured: mode by mode and kind of method by kind of method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers as T
from decoding import cache_of, present, with_cache
from families import FAMILIES, IMAGE, Family, Inputs, prompt_of
from torch import Tensor
from torch.nn.functional import pad

from gprune import Chain, FastV, GPrune, Method, ToMe

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/families.md")
FAMILY = FAMILIES["llava"]
STEPS = 6
GREEDY: dict[str, Any] = {
    "max_new_tokens": STEPS,
    "min_new_tokens": STEPS,
    "do_sample": False,
    "suppress_tokens": [IMAGE],
}
KINDS: dict[str, Method] = {
    "before the LLM": GPrune(0.4, positions="contiguous"),
    "in the tower": ToMe(0.5),
    "in the LLM": FastV(keep=0.7, layer=1),
    "`Chain`": Chain(GPrune(0.5), FastV(keep=0.7, layer=1)),
}

ANEW = "`use_cache=False`"
"""Without a cache each token ranks the visual tokens anew inside the LLM, by what the last token looks at then."""

Way = Callable[[Any, Inputs], Tensor]
"""(model, a padded batch) -> int64 [B, STEPS], what is said."""


def generating(**settings: Any) -> Way:
    """Plain `generate()`, told something."""

    def way(model: Any, inputs: Inputs) -> Tensor:
        output = model.generate(**inputs, **{**GREEDY, **settings})
        return output[:, inputs["input_ids"].shape[1] :]

    return way


def each(way: Way) -> Way:
    """Prompt by prompt, for what takes one at a time; the last prompt is text alone."""
    return lambda model, inputs: torch.cat([way(model, prompt_of(inputs, row)) for row in range(3)])


def streamed(model: Any, inputs: Inputs) -> Tensor:
    class Tokens(T.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.seen.append(value.reshape(1, -1))

        def end(self) -> None: ...

    streamer = Tokens()
    thread = Thread(target=lambda: generating(streamer=streamer)(model, inputs))
    thread.start()
    thread.join(120)
    return torch.cat(streamer.seen, dim=1)[:, -STEPS:]


def assisted(**more: Any) -> Way:
    def way(model: Any, inputs: Inputs) -> Tensor:
        output = model.generate(**inputs, **GREEDY, assistant_model=_helper(), **more)
        output = output if isinstance(output, Tensor) else output.sequences
        return output[:, inputs["input_ids"].shape[1] :]

    return each(way)


def _helper() -> Any:
    return copy.deepcopy(T.LlamaForCausalLM(FAMILY.model().config.text_config)).eval()


def continued(copied: bool) -> Way:
    """The second half on the cache that the first returned."""

    def way(model: Any, inputs: Inputs) -> Tensor:
        half = {**GREEDY, "max_new_tokens": 3, "min_new_tokens": 3}
        first = model.generate(**inputs, **half, return_dict_in_generate=True)
        cache = copy.deepcopy(cache_of(first)) if copied else cache_of(first)
        mask = pad(inputs["attention_mask"], (0, 3), value=1)
        ids = {"input_ids": first.sequences, "attention_mask": mask}
        return model.generate(**ids, **half, **with_cache(cache))[:, inputs["input_ids"].shape[1] :]

    return way


def by_hand(model: Any, inputs: Inputs) -> Tensor:
    output, mask, said = model(**inputs), inputs["attention_mask"], []
    for _ in range(STEPS):
        scores = output.logits[:, -1].clone()
        scores[:, IMAGE] = -torch.inf
        said.append(scores.argmax(-1, keepdim=True))
        mask = pad(mask, (0, 1), value=1)
        output = model(input_ids=said[-1], attention_mask=mask, **with_cache(cache_of(output)))
    return torch.cat(said, dim=1)


def from_embeddings(model: Any, inputs: Inputs) -> Tensor:
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    return model.generate(inputs_embeds=embeddings, **others, **GREEDY)


WAYS: dict[str, Way] = {
    "greedy, in a padded batch": generating(),
    "sampling (the likeliest token of one), several sequences": lambda model, inputs: generating(
        do_sample=True, top_k=1, num_return_sequences=2
    )(model, inputs)[::2],
    "streaming, in a thread": each(streamed),
    '`cache_implementation="static"`': generating(cache_implementation="static", disable_compile=True),
    ANEW: generating(use_cache=False),
    "assisted decoding": assisted(),
    "prompt lookup": each(generating(prompt_lookup_num_tokens=3)),
    "assisted, with hidden states": assisted(output_hidden_states=True, return_dict_in_generate=True),
    "going on with the returned cache": continued(copied=False),
    "going on with a copy of it": continued(copied=True),
    "`forward` by hand": by_hand,
    "`inputs_embeds` with pixels": from_embeddings,
    "`prefill_chunk_size`": each(generating(prefill_chunk_size=8)),
}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def outcome(name: str, method: Method, family: Family = FAMILY) -> str:
    """What a way to generate makes of a method, beside greedy decoding of every prompt alone."""
    if name == ANEW and method.acts == "in the LLM":
        return "ranks anew"
    way = WAYS[name]
    model, inputs = family.model(), family.inputs()
    with method(model):
        expected = each(generating())(model, inputs)
        try:
            output = way(model, inputs)
        except ValueError:
            return "refused"
        return "equal" if torch.equal(output, expected) else "differs"


def table() -> list[str]:
    """Its rows."""
    lines = [f"| `generate()` | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    return lines + [f"| {name} | {' | '.join(outcome(name, method) for method in KINDS.values())} |" for name in WAYS]


def test_beams_are_those_of_every_prompt_alone() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    for method in KINDS.values():
        with method(model):
            expected = each(generating(num_beams=3))(model, inputs)
            assert torch.equal(generating(num_beams=3)(model, inputs), expected)


HANDED = {
    "`inputs_embeds` with pixels": "refused",  # by generate() itself, which takes none in these families
    "`prefill_chunk_size`": "refused",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", present("exaone4_5", "hyperclovax_vision_v2"))
def test_families_whose_generate_hands_no_positions_on(name: str, way: str) -> None:
    assert outcome(way, KINDS["before the LLM"], FAMILIES[name]) == HANDED.get(way, "equal")


@pytest.mark.parametrize("name", present("exaone4_5", "hyperclovax_vision_v2"))
def test_what_is_new_cannot_be_told_without_positions(name: str) -> None:
    """Of what goes on in pieces, or with a mask of what the cache holds."""
    model, inputs = FAMILIES[name].model(), prompt_of(FAMILIES[name].inputs(), 0)
    settings = {**GREEDY, "return_dict_in_generate": True}
    with KINDS["before the LLM"](model):
        turn = model.generate(**inputs, **settings)
        ids = pad(turn.sequences, (0, 9), value=7)
        for way in ({"prefill_chunk_size": 4}, {"attention_mask": torch.ones(1, ids.shape[1] - 3, dtype=torch.long)}):
            cache = copy.deepcopy(cache_of(turn))
            with pytest.raises(ValueError, match=r"generate\(\) goes on with .* accepted are all tokens"):
                model.generate(ids, **way, **with_cache(cache), **settings)


@pytest.mark.skipif(T.__version__.startswith(("5.19.", "5.20.")), reason="this transformers hides chunked prefill")
def test_the_table_of_the_documents_is_what_happens() -> None:
    rows = "\n".join(table())
    for document in DOCUMENTS:
        assert rows in (ROOT / document).read_text(), f"{document} should have:\n{rows}"
