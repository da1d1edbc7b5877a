"""Methods that drop tokens inside the LLM against a full recompute by stock layers, for every family."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from decoding import cache_of, with_cache
from families import BATCH, FAMILIES, IMAGE, Family, is_video, prompt_of
from inside import ALL, Choose, greedy_inside, inside, least_duplicate, matched, most_attended, most_changed, recycled

from gprune import DART, VTW, Chain, FastV, GPrune, ImageReport, PuMer, PyramidDrop, SparseVLM, UnsupportedModel, V2Drop
from gprune.families.table import FAMILIES as TABLE
from gprune.families.table import families_of
from gprune.pruners import Pruner

STEPS = 9  # the prefill and 8 decode steps
LAYERS = 4
GREEDY: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
close = {"rtol": 0, "atol": 1e-5}

SHARES = {
    "fastv": [1, 1, 0.4, 0.4],
    "vtw": [1, 1, 0, 0],
    "pyramiddrop": [1, 0.5, 0.25, 0.125],
    "dart": [1, 1, 0.5, 0.5],
    "v2drop": [1, 0.5, 0.25, 0.125],
    "sparsevlm": [1, 0.25, 0.125, 0.125],
    "pumer": [1, 0.6, 0.36, 0.216],
}
METHODS: dict[str, tuple[Pruner, Choose]] = {
    "fastv": (FastV(keep=0.7), most_attended),
    "vtw": (VTW(keep=0.5), most_attended),
    "pyramiddrop": (PyramidDrop(keep=0.46875), most_attended),
    "dart": (DART(keep=0.75, pivots=2), lambda seen, k: least_duplicate(seen, k, 2)),
    "v2drop": (V2Drop(keep=0.46875), most_changed),
    "sparsevlm": (SparseVLM(keep=0.375, recycled=0.8, clusters=0.3), recycled),
    "pumer": (PuMer(keep=0.544), matched),
}


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def deeper(family: Family) -> Family:
    """The family with four layers of its LLM instead of two."""
    text = {**family.settings["text_config"], "num_hidden_layers": LAYERS}
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if name in text:
            text[name] = (text[name] * LAYERS)[:LAYERS]
    return dataclasses.replace(family, settings={**family.settings, "text_config": text})


DEEPER = {name: deeper(family) for name, family in FAMILIES.items()}
FAMILY = DEEPER["llava_next"]
INSIDE = families_of(FastV())


@pytest.fixture(params=[name for name in DEEPER if name in INSIDE])
def family(request: pytest.FixtureRequest) -> Family:
    return DEEPER[request.param]


def check_generation(family: Family, method: str, steps: int, attention: str = "sdpa") -> None:
    model, inputs = family.model(attention), family.inputs()
    for other in (model, family.model("eager")):
        for name, weight in other.get_decoder().named_parameters():
            if name.endswith("k_norm.weight"):
                weight.copy_(torch.linspace(0.2, 2, len(weight)))  # else all keys have the same norm
    length = inputs["input_ids"].shape[1]
    pruner, choose = METHODS[method]
    runs = [greedy_inside(model, prompt, steps) for prompt in inside(family, SHARES[method], inputs, choose=choose)]
    with pruner(model):
        output = model.generate(**inputs, max_new_tokens=steps, **GREEDY)
    torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([logits for logits, _ in runs]), **close)
    assert torch.equal(output.sequences[:, length:], torch.stack([tokens for _, tokens in runs]))
    lengths = [cache_of(output).get_seq_length(layer) for layer in range(LAYERS)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == length + steps - 1 > lengths[-1]


def test_generation_equals_full_recompute(family: Family) -> None:
    check_generation(family, "fastv", STEPS)


@pytest.mark.parametrize("method", ["vtw", "pyramiddrop", "dart", "v2drop", "sparsevlm", "pumer"])
def test_other_methods_in_every_family(family: Family, method: str) -> None:
    if SHARES[method][1] < 1 and "deepstack levels" in TABLE[family.name].facts:
        pytest.skip("drops in front of layers that get deepstack features; refused")
    check_generation(family, method, steps=2)


@pytest.mark.parametrize("method", METHODS)
def test_eager_attention_and_many_steps(method: str) -> None:
    check_generation(FAMILY, method, STEPS, "eager")
    check_generation(FAMILY, method, STEPS)


def test_keeping_everything_changes_no_bit(family: Family) -> None:
    model, inputs = family.model(), family.inputs()
    stock, stock_forward = model.generate(**inputs, max_new_tokens=3, **GREEDY), model(**inputs)
    with FastV(keep=1.0)(model) as run:
        output, forward = model.generate(**inputs, max_new_tokens=3, **GREEDY), model(**inputs)
    assert all(map(torch.equal, output.logits, stock.logits))
    assert torch.equal(forward.logits, stock_forward.logits)
    assert len(run.images) == 3
    assert all(image.per_layer == (image.n_before,) * LAYERS for image in run.images)


@pytest.mark.parametrize("pruner", [method for method, _ in METHODS.values()], ids=METHODS)
def test_keeping_everything_by_every_method(pruner: Pruner) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    stock = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    with dataclasses.replace(pruner, keep=1.0)(model):
        output = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    assert all(map(torch.equal, output.logits, stock.logits))


def test_chain_with_one_that_merges_equals_full_recompute() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    (pruner, choose), first = METHODS["sparsevlm"], GPrune(keep=0.5)
    prompts = inside(FAMILY, SHARES["sparsevlm"], inputs, choose=choose, first=first)
    logits = torch.stack([greedy_inside(model, prompt, 3)[0] for prompt in prompts])
    with Chain(first, pruner)(model):
        output = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, **close)


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "idefics3"])
def test_chain_equals_full_recompute(name: str, positions: Any) -> None:
    family = DEEPER[name]
    model, inputs = family.model(), family.inputs()
    first = GPrune(keep=0.5, positions=positions)
    runs = [greedy_inside(model, prompt, STEPS) for prompt in inside(family, SHARES["fastv"], inputs, first=first)]
    with first(model) as before:
        model(**inputs)
    with Chain(first, FastV(keep=0.7))(model) as run:
        output = model.generate(**inputs, max_new_tokens=STEPS, **GREEDY)
    torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([logits for logits, _ in runs]), **close)
    for image, alone in zip(run.images, before.images, strict=True):
        assert image.per_layer is not None and image.per_layer[0] == alone.n_after < image.n_before
        assert image.n_after == image.per_layer[-1] == int(0.4 * alone.n_after)
        assert torch.isin(image.kept, alone.kept).all()
        assert image.ratio == pytest.approx(alone.ratio * 0.7, abs=1 / alone.n_after)
        assert image.scores is not None and torch.equal(image.scores.nan_to_num(), alone.scores.nan_to_num())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "glm4v", "kimi_k25", "video_llama_3"])
def test_videos_beside_images(name: str) -> None:
    family = DEEPER[name]
    if not family.takes_videos:
        pytest.skip("this transformers has no videos of it")
    prompts = family.shown()
    model, inputs = family.model(), family.inputs(prompts)
    runs = [greedy_inside(model, prompt, 3) for prompt in inside(family, SHARES["fastv"], inputs, prompts)]
    with FastV(keep=0.7)(model) as run:
        output = model.generate(**inputs, max_new_tokens=3, **GREEDY)
    torch.testing.assert_close(torch.stack(output.logits, 1), torch.stack([logits for logits, _ in runs]), **close)
    media = sorted((one for prompt in prompts for one in prompt), key=is_video)
    for shown, report in zip(media, [*run.images, *run.videos], strict=True):
        size = family.layout(shown)[0]
        assert report.per_layer == (size, size, int(0.4 * size + 1e-6), int(0.4 * size + 1e-6))


def test_choose_that_returns_something_else() -> None:
    @dataclasses.dataclass
    class Greedy(FastV):
        def choose(self, tokens: Any, k: int) -> torch.Tensor:
            return torch.zeros(k, dtype=torch.long)

    model, inputs = FAMILY.model(), FAMILY.inputs()
    text = prompt_of(inputs, 2)
    stock = model.model(**text).last_hidden_state
    with Greedy(keep=0.7)(model):
        with pytest.raises(ValueError, match=r"Greedy.choose.*exactly k=20, all different"):
            model(**inputs)
        assert torch.equal(model.model(**text).last_hidden_state, stock)  # nothing is left of the call that failed


def test_logits_to_keep() -> None:
    """The first of these columns ranks the visual tokens, unless visual tokens follow it."""
    model, prompt = FAMILY.model(), prompt_of(FAMILY.inputs(), 1)
    length = prompt["input_ids"].shape[1]
    logits: list[torch.Tensor] = []
    with FastV(keep=0.7)(model) as run:

        def kept(**settings: Any) -> list[list[int]]:
            logits.append(model(**{**prompt, **settings}).logits)
            return [image.kept.tolist() for image in run.images]

        last = kept()
        assert kept(logits_to_keep=1) == kept(logits_to_keep=length) == kept(logits_to_keep=length - 9) == last
        assert torch.equal(logits[0], logits[2])
        assert kept(logits_to_keep=4) != last
        cut = {name: prompt[name][:, :-3] for name in ("input_ids", "attention_mask")}
        assert kept(**cut) == kept(logits_to_keep=4)
        torch.testing.assert_close(logits[-1][:, 0], logits[-2][:, -1], **close)


def test_half_precision() -> None:
    model = deeper(FAMILIES["llava_next"]).model().to(torch.bfloat16)
    inputs = FAMILY.inputs()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for pruner, _ in METHODS.values():
        with pruner(model) as run:
            output = model.generate(**inputs, max_new_tokens=3, **GREEDY)
        assert all(logits.isfinite().all() for logits in output.logits)
        assert [image.n_after for image in run.images] == [image.n_after for image in reports(pruner)]


def test_forward_by_hand_keeps_the_shape_of_the_logits() -> None:
    model = FAMILY.model()
    prompts = inside(FAMILY, SHARES["fastv"], FAMILY.inputs())
    for prompt in prompts:
        prompt.logits()
    for side in ("left", "right"):
        inputs = FAMILY.inputs(side=side)
        with FastV(keep=0.7)(model):
            logits = model(**inputs).logits
        assert logits.shape[:2] == inputs["input_ids"].shape
        for row, prompt in enumerate(prompts):
            own = logits[row, inputs["attention_mask"][row].bool()]
            gone = prompt.left[-1]
            torch.testing.assert_close(own[~gone], prompt.logits()[~gone], **close)
            assert (own[gone] == 0).all()


def test_batch_of_n_equals_n_batches_of_one() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    with FastV(keep=0.7)(model) as run:
        output = model.generate(**inputs, max_new_tokens=4, **GREEDY)
        reports = iter(run.images)
        for row, sizes in enumerate(BATCH):
            alone = model.generate(**prompt_of(inputs, row), max_new_tokens=4, **GREEDY)
            torch.testing.assert_close(
                torch.stack([step[row] for step in output.logits]), torch.cat(alone.logits), **close
            )
            for report in run.images if sizes else []:
                assert torch.equal(next(reports).kept, report.kept)


def reports(pruner: Pruner) -> list[ImageReport]:
    with pruner(FAMILY.model()) as run:
        FAMILY.model()(**FAMILY.inputs())
    return run.images


def test_report() -> None:
    sizes = [FAMILY.layout(size)[0] for prompt in BATCH for size in prompt]
    for method, (pruner, _) in METHODS.items():
        for report, size in zip(reports(pruner), sizes, strict=True):
            counts = tuple(int(size * share + 1e-6) for share in SHARES[method])
            assert (report.n_before, report.n_after, report.per_layer) == (size, counts[-1], counts)
            assert len(report.kept) == counts[-1]
            assert report.ratio == pytest.approx(sum(counts) / size / LAYERS)
            assert report.ratio == pytest.approx(pruner.keep, abs=1 / size)
            assert report.flops_ratio > report.ratio  # long sequences cost more than their length
    prompts = inside(FAMILY, SHARES["fastv"], FAMILY.inputs())
    images = iter(reports(METHODS["fastv"][0]))
    for prompt in prompts:
        prompt.logits()
        for columns in prompt.prompt.visual.nonzero().squeeze(1).split(list(prompt.sizes)) if prompt.sizes else []:
            assert torch.equal(next(images).kept, (~prompt.left[-1][columns]).nonzero().squeeze(1))


def test_flops_ratio_counts_what_the_llm_computes() -> None:
    """Against the products of a LLaMA layer, written out."""
    text = FAMILY.settings["text_config"]
    d, m, heads, groups, width = 32, text["intermediate_size"], 4, 2, 8

    def flops(n: float) -> float:
        projections = 2 * n * d * (2 * heads * width + 2 * groups * width) + 2 * n * d * m * 3
        return projections + 2 * 2 * n * n * heads * width

    for report in reports(FastV(keep=0.7)):
        assert report.per_layer is not None
        spent = sum(map(flops, report.per_layer)) / LAYERS
        assert flops(report.flops_ratio * report.n_before) == pytest.approx(spent)
    assert all(report.flops_ratio == report.ratio == report.n_after / report.n_before for report in reports(ALL))


@pytest.mark.parametrize(
    "pruner", [FastV(0.8, match="flops"), DART(0.8, match="flops"), PyramidDrop(0.6, match="flops")]
)
def test_match_flops(pruner: Pruner) -> None:
    for report in reports(pruner):
        assert report.flops_ratio == pytest.approx(pruner.keep, abs=1.5 / report.n_before)
        assert report.ratio < pruner.keep
    assert all(
        a.n_after > b.n_after
        for a, b in zip(reports(dataclasses.replace(pruner, match="tokens")), reports(pruner), strict=True)
    )


@pytest.mark.parametrize("method", ["fastv", "pumer"])
def test_beams_and_returned_sequences(method: str) -> None:
    pruner, choose = METHODS[method]
    model, inputs = FAMILY.model(), FAMILY.inputs()
    with pruner(model) as run:
        beams = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=3, num_return_sequences=3)
        assert len(run.images) == 3
        for row in range(3):
            alone = model.generate(
                **prompt_of(inputs, row), max_new_tokens=6, do_sample=False, num_beams=3, num_return_sequences=3
            )
            assert torch.equal(beams[3 * row : 3 * row + 3, -6:], alone[:, -6:])
    (prompt,) = inside(FAMILY, SHARES[method], prompt_of(inputs, 1), BATCH[1:2], choose)
    expected = beam_search(prompt, 3, 6)
    assert torch.equal(beams[3:6, -6:], expected)


def beam_search(prompt: Any, beams: int, steps: int) -> torch.Tensor:
    prompts, totals, tokens = [prompt], torch.zeros(1), torch.zeros(1, 0, dtype=torch.long)
    for _ in range(steps):
        scores = totals[:, None] + torch.stack([one.logits()[-1].log_softmax(-1) for one in prompts])
        totals, best = scores.flatten().topk(beams)
        parents, chosen = best // scores.shape[1], best % scores.shape[1]
        prompts = [
            prompts[parent].followed_by(prompt.model, token) for parent, token in zip(parents, chosen, strict=True)
        ]
        tokens = torch.cat([tokens[parents], chosen[:, None]], dim=1)
    return tokens


def test_sampling() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    prompts = inside(FAMILY, SHARES["fastv"], inputs)
    torch.manual_seed(3)
    expected = []
    for _ in range(5):
        scores = torch.stack([prompt.logits()[-1] for prompt in prompts]).softmax(-1)
        expected.append(scores.multinomial(1)[:, 0])
        prompts = [prompt.followed_by(model, token) for prompt, token in zip(prompts, expected[-1], strict=True)]
    torch.manual_seed(3)
    with FastV(keep=0.7)(model):
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=0)
    assert torch.equal(tokens[:, -5:], torch.stack(expected, 1))


@pytest.mark.parametrize(
    "pruner", [FastV(keep=0.7), PyramidDrop(keep=0.46875), DART(keep=0.75, pivots=20), SparseVLM(keep=0.375)], ids=str
)
def test_drafted_tokens_are_taken_and_rolled_back(pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three drafted tokens the third is always wrong; those of the prefill must not rank the visual tokens."""
    model, prompt = FAMILY.model(), prompt_of(FAMILY.inputs(), 1)
    settings = {"max_new_tokens": 9, "do_sample": False, "suppress_tokens": [IMAGE]}
    length = prompt["input_ids"].shape[1]
    with pruner(model) as run:
        expected = model.generate(**prompt, **settings)
        kept = [image.kept for image in run.images]
        drafted: list[int] = []

        class Drafts:
            requires_model_outputs = False

            def get_candidates(self, ids: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
                tokens = expected[:, ids.shape[1] : ids.shape[1] + 3].clone()
                tokens[:, 2:] = (tokens[:, 2:] + 1) % IMAGE
                drafted.append(tokens.shape[1])
                return torch.cat([ids, tokens], dim=1), None

            def update_candidate_strategy(self, *_: Any) -> None:
                pass

        monkeypatch.setattr(model, "_get_candidate_generator", lambda **_: Drafts())
        output = model.generate(**prompt, **settings, prompt_lookup_num_tokens=3)
    assert torch.equal(output[:, length:], expected[:, length:])
    assert drafted == [3, 3, 3]
    assert all(map(torch.equal, [image.kept for image in run.images], kept))


def test_second_turn_on_the_returned_cache_and_on_a_copy_of_it() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    more = torch.arange(30, 36).view(1, -1)
    for row in range(3):
        prompt = prompt_of(inputs, row)
        (reference,) = inside(FAMILY, SHARES["pyramiddrop"], prompt, BATCH[row : row + 1])
        _, answer = greedy_inside(model, reference, 4)
        reference.logits()
        for token in [*answer, *more[0]]:
            reference = reference.followed_by(model, token)
        expected, tokens = greedy_inside(model, reference, 4)
        with PyramidDrop(keep=0.46875)(model):
            first = model.generate(**prompt, max_new_tokens=4, **GREEDY)
            ids = torch.cat([first.sequences, more], 1)
            cache = copy.deepcopy(cache_of(first))
            model.generate(**inputs, max_new_tokens=2)  # another conversation in between
            for past in (cache_of(first), cache):
                second = model.generate(input_ids=ids, **with_cache(past), max_new_tokens=4, **GREEDY)
                torch.testing.assert_close(torch.cat(second.logits), expected, **close)
                assert torch.equal(second.sequences[0, -4:], tokens)


@pytest.mark.parametrize("layer", [1, 2])
def test_second_image_on_a_pruned_cache(layer: int) -> None:
    """The second prompt's images come one after the other; each is ranked by the last token of its own call."""
    model, inputs = FAMILY.model(), FAMILY.inputs()
    one, two = prompt_of(inputs, 0), prompt_of(inputs, 0)
    (first,) = inside(FAMILY, SHARES["fastv"], one, BATCH[:1])
    with FastV(keep=0.8 if layer == 1 else 0.7, layer=layer)(model) as run:
        cache = cache_of(model(**one))
        kept = run.images[0].kept
    with FastV(keep=0.7)(model) as run:
        start = one["input_ids"].shape[1]
        output = model(
            input_ids=two["input_ids"],
            attention_mask=torch.ones(1, 2 * start),
            pixel_values=two["pixel_values"],
            image_sizes=two["image_sizes"],
            **with_cache(cache),
        )
        kept_two = run.images[0].kept
        step = model(input_ids=torch.tensor([[7, 8]]), **with_cache(cache_of(output)))
    visual = (one["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    gone = torch.zeros(LAYERS, 2 * start, dtype=torch.bool)
    for offset, own, after in ((0, kept, layer), (start, kept_two, 2)):
        gone[after:, visual + offset] = True
        gone[after:, visual[own] + offset] = False
    both = dataclasses.replace(
        first.prompt,
        ids=torch.cat([first.prompt.ids] * 2),
        embeddings=torch.cat([first.prompt.embeddings] * 2, 1),
        positions=torch.arange(2 * start)[None],
        next_position=torch.tensor([[2 * start]]),
        blocks=torch.cat([first.prompt.blocks] * 2),
        visual=torch.cat([first.prompt.visual] * 2),
    )
    whole = dataclasses.replace(first, prompt=both, left=list(gone))
    torch.testing.assert_close(output.logits[0, -1], whole.logits()[-1], **close)
    after = whole.followed_by(model, torch.tensor(7)).followed_by(model, torch.tensor(8))
    torch.testing.assert_close(step.logits[0], after.logits()[-2:], **close)


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "pumer"])
def test_gradient_with_labels(method: str) -> None:
    pruner, choose = METHODS[method]
    model, inputs = FAMILY.model(), FAMILY.inputs(side="right")
    visual = inputs["input_ids"] == IMAGE
    after = visual.roll(1, 1)
    labels = inputs["input_ids"].masked_fill(visual | after | (inputs["attention_mask"] == 0), -100)
    weight = model.model.multi_modal_projector.linear_1.weight
    with torch.enable_grad():
        predicted, wanted = [], []
        for row, prompt in enumerate(inside(FAMILY, SHARES[method], inputs, choose=choose)):
            predicted.append(prompt.logits()[:-1])
            wanted.append(labels[row][inputs["attention_mask"][row].bool()][1:])
        loss = torch.nn.functional.cross_entropy(torch.cat(predicted), torch.cat(wanted))
        (expected,) = torch.autograd.grad(loss, inside_weight())
        with pruner(model):
            output = model(**inputs, labels=labels, use_cache=False)
            torch.testing.assert_close(output.loss, loss, **close)
            torch.testing.assert_close(torch.autograd.grad(output.loss, weight)[0], expected, **close)
            with pytest.raises(ValueError, match="labels ask for a token that follows a visual token"):
                model(**inputs, labels=labels.where(~after | visual, inputs["input_ids"]), use_cache=False)
    assert expected.abs().max() > 1e-4


def inside_weight() -> torch.Tensor:
    return FAMILY.model("eager").model.multi_modal_projector.linear_1.weight


def state(model: Any) -> dict[str, Any]:
    """The attributes of every module, dictionaries by their contents."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize(
    "pruner", [*(method for method, _ in METHODS.values()), Chain(GPrune(0.5), FastV(0.7))], ids=str
)
def test_detached_model_is_what_it_was(pruner: Pruner) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    before, stock = state(model), model(**inputs).logits
    with GPrune(0.5)(model):
        with pruner(model):
            assert not torch.equal(model(**inputs).logits, stock)
            with pytest.raises(ValueError, match="image 0"):
                model(**{**inputs, "pixel_values": inputs["pixel_values"] * torch.nan})
        model(**inputs)
    assert torch.equal(model(**inputs).logits, stock)
    assert state(model) == before


def test_text_and_other_calls_pass_untouched() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    text = prompt_of(inputs, 2)
    stock = model.generate(**text, max_new_tokens=3, **GREEDY)
    with FastV(keep=0.7)(model):
        model(**inputs)
        output = model.generate(**text, max_new_tokens=3, **GREEDY)
        inner = model.model(**text).last_hidden_state
    assert all(map(torch.equal, output.logits, stock.logits))
    assert torch.equal(inner, model.model(**text).last_hidden_state)


def test_a_copy_of_an_attached_model_prunes_by_itself() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    with FastV(keep=0.7)(model) as run:
        expected = model(**inputs).logits
        twin = copy.deepcopy(model)
        assert len(run.images) == 3
    for parameter in model.parameters():
        assert not any(parameter is other for other in twin.parameters())
    assert torch.equal(twin(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3", "sliding_attention"),
        ("gemma4", "sliding_attention"),
        ("aya_vision", "sliding_attention"),
        ("cohere2_vision", "sliding_attention"),
        ("llama4", "chunked_attention"),
        ("lfm2_vl", "conv"),
        ("qwen3_5", "linear_attention"),
    ],
)
def test_families_that_are_refused(name: str, reason: str) -> None:
    if name not in DEEPER:
        pytest.skip(f"this transformers has no {name} that works")
    model = DEEPER[name].model()
    before = state(model)
    for pruner in (FastV(keep=0.7), Chain(GPrune(0.5), VTW(0.5))):
        with pytest.raises(UnsupportedModel, match=rf"{name}: its LLM has layers of {reason}.*llava_next"):
            pruner.attach(model)
    assert state(model) == before


def test_every_family_is_claimed_or_refused() -> None:
    for name in FAMILIES.keys() - INSIDE:
        with pytest.raises(UnsupportedModel, match=f"cannot do in {name}"):
            FastV(keep=0.7).attach(FAMILIES[name].model())


def test_sliding_window_of_a_plain_llm() -> None:
    family = DEEPER["mistral3"]
    text = {**family.settings["text_config"], "sliding_window": 64}
    windowed = dataclasses.replace(family, settings={**family.settings, "text_config": text})
    with pytest.raises(UnsupportedModel, match="sliding window of 64 tokens"):
        FastV(keep=0.7).attach(windowed.model())


def test_deepstack_layers() -> None:
    model = DEEPER["qwen3_vl"].model()
    message = "FastV: qwen3_vl injects deepstack features into layers 0-1, so layer must be >= 2"
    with pytest.raises(ValueError, match=message):
        FastV(keep=0.7, layer=1).attach(model)
    with pytest.raises(ValueError, match=r"PyramidDrop: qwen3_vl injects.*none can be dropped before 2"):
        PyramidDrop(keep=0.5).attach(model)
    with pytest.raises(ValueError, match=r"VTW: qwen3_vl injects"):
        VTW(keep=0.25).attach(model)
    FastV(keep=0.7, layer=2).attach(model).detach()


def test_keep_that_cannot_be_reached() -> None:
    model = FAMILY.model()
    for pruner, least in ((FastV(keep=0.4), "0.5"), (DART(keep=0.3, layer=3), "0.75"), (PyramidDrop(keep=0.2), "0.25")):
        with pytest.raises(ValueError, match=rf"smallest keep is {least}"):
            pruner.attach(model)
    with pytest.raises(ValueError, match=r"no visual token at all.*0\.125"):
        VTW(keep=0.1).attach(model)
    with pytest.raises(ValueError, match="accepted is 1 to 3"):
        FastV(keep=0.9, layer=4).attach(model)
    with pytest.raises(ValueError, match="stages=4 or fewer"):
        PyramidDrop(keep=0.9, stages=5).attach(model)
    assert not model._forward_pre_hooks


def test_attention_without_a_mask() -> None:
    model = deeper(FAMILIES["llava"]).model()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedModel, match=r"flex_attention attention does not take.*eager and sdpa"):
        FastV(keep=0.7).attach(model)
    model.set_attn_implementation("sdpa")
    with FastV(keep=0.7)(model):
        model.set_attn_implementation("eager")
        with pytest.raises(ValueError, match=r"'eager' but was 'sdpa'"):
            model(**FAMILIES["llava"].inputs())


def test_static_cache() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    with FastV(keep=0.7)(model):
        with pytest.raises(ValueError, match=r"StaticLayer.*DynamicCache"):
            model.generate(**inputs, max_new_tokens=3, cache_implementation="static", disable_compile=True)
        model.generate(**prompt_of(inputs, 2), max_new_tokens=3, cache_implementation="static", disable_compile=True)


def test_cache_that_is_cut_into_its_prompt() -> None:
    model, prompt = FAMILY.model(), prompt_of(FAMILY.inputs(), 0)
    with FastV(keep=0.7)(model):
        cache = cache_of(model(**prompt))
        cache.crop(-3)
        assert torch.isfinite(model(input_ids=torch.tensor([[7]]), **with_cache(cache)).logits).all()
        cache.crop(-9)
        with pytest.raises(ValueError, match="cropped"):
            model(input_ids=torch.tensor([[7]]), **with_cache(cache))


def test_cache_that_is_emptied_and_used_again() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs()
    text = prompt_of(inputs, 2)
    stock = model.generate(**text, max_new_tokens=3, **GREEDY)
    with FastV(keep=0.7)(model):
        cache = cache_of(model(**prompt_of(inputs, 0)))
        cache.reset()
        output = model.generate(**text, max_new_tokens=3, **with_cache(cache), **GREEDY)
    assert all(map(torch.equal, output.logits, stock.logits))


def test_gradient_checkpointing() -> None:
    model = deeper(FAMILIES["llava"]).model()
    model.gradient_checkpointing_enable()
    model.train()
    with FastV(keep=0.7)(model), pytest.raises(ValueError, match="gradient checkpointing"):
        model(**FAMILIES["llava"].inputs(), use_cache=False)
