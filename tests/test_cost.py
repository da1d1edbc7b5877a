"""The cost of a prompt against formulas written down by hand, and against what the models themselves do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, is_visual
from families.parts import VIPLLAVA_LAYERS
from scorers import made_for, scorer_folder
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    PixtralVisionConfig,
    Qwen2Config,
    Qwen2VLConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from gprune.cost import Cost, cost, cost_of_prompt, measure
from gprune.families.architectures import architecture
from gprune.families.tiling import Tiling, tiling
from gprune.prompt import build_inputs
from gprune.pruners import PRUNERS, VTW, Chain, DecoderPruner, GPrune, L2Norm, Learned, Random, ToMe, Uniform, Unpruned
from gprune.scenes.benchmark import samples
from gprune.scenes.model import load_embedded
from gprune.spec import parse_pruner
from gprune.tokens import View, VisualTokens

TILE, PATCH = 28, 7
SIDE = TILE // PATCH
VISION = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2)
TEXT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    vocab_size=50,
)
PINPOINTS = [[TILE * h, TILE * w] for h, w in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]]


def clip(**kwargs: Any) -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, image_size=TILE, patch_size=PATCH, **kwargs)


def llama() -> LlamaConfig:
    return LlamaConfig(**TEXT)


def llava_next(**kwargs: Any) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=clip(),
        text_config=llama(),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=49,
        **kwargs,
    )


def llava_next_video() -> LlavaNextVideoConfig:
    return LlavaNextVideoConfig(
        vision_config=clip(), text_config=llama(), image_grid_pinpoints=PINPOINTS, image_token_index=49
    )


def llava_onevision(most_tiles: int = 9) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=TILE, patch_size=PATCH, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_grid_pinpoints=[[TILE * h, TILE * w] for h in range(1, 5) for w in range(1, 5)],
        vision_aspect_ratio=f"anyres_max_{most_tiles}",
        image_token_index=49,
    )


def llava(**kwargs: Any) -> LlavaConfig:
    return LlavaConfig(vision_config=clip(), text_config=llama(), image_token_index=49, **kwargs)


def on_meta(config: Any, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, **kwargs).eval()


def language_flops(new: int, read: int) -> int:
    """The tiny Llama over `new` positions that attend to `read` in all, and the logits of the last one."""
    d, heads = TEXT["hidden_size"], TEXT["num_attention_heads"] * TEXT["head_dim"]
    kv_heads = TEXT["num_key_value_heads"] * TEXT["head_dim"]
    macs = new * (2 * d * heads + 2 * d * kv_heads + 3 * d * TEXT["intermediate_size"]) + 2 * new * read * heads
    return 2 * (TEXT["num_hidden_layers"] * macs + d * TEXT["vocab_size"])


def vision_flops(tiles: int) -> int:
    """The tiny CLIP tower, all its layers, with a class token."""
    d, tokens = VISION["hidden_size"], SIDE**2 + 1
    layer = tokens * (4 * d * d + 2 * d * VISION["intermediate_size"]) + 2 * tokens**2 * d
    return 2 * tiles * (SIDE**2 * 3 * PATCH**2 * d + VISION["num_hidden_layers"] * layer)


def projector_flops(tiles: int) -> int:
    return 2 * tiles * SIDE**2 * (VISION["hidden_size"] * TEXT["hidden_size"] + TEXT["hidden_size"] ** 2)


def test_every_part_is_what_the_formulas_say() -> None:
    # 30 x 40 pixels go onto 2 x 2 tiles: a grid of 8 x 8 tokens of which 6 rows are left, each with a newline
    visual = SIDE**2 + 6 * (8 + 1)
    found = cost(llava_next(dtype="float16"), [(30, 40)], text_tokens=5)
    prompt = visual + 5
    assert found == Cost(
        visual_tokens=visual,
        kept_tokens=visual,
        text_tokens=5,
        flops={
            "vision": vision_flops(5),
            "projector": projector_flops(5),
            "selection": 0,
            "prefill": language_flops(prompt, prompt),
        },
        decode_flops=language_flops(1, prompt + 1),
        kv_bytes=2 * 2 * 2 * 6 * prompt * 2,  # layers, keys and values, KV heads, head size, tokens, bytes
    )
    assert found.prompt_tokens == prompt
    assert found.total == vision_flops(5) + projector_flops(5) + language_flops(prompt, prompt)
    assert found.macs * 2 == found.total


def test_pruned_parts_are_what_the_formulas_say() -> None:
    found = cost(llava_next(), [(30, 40)], text_tokens=5, keep=GPrune(0.3, iterations=4))
    kept = int(0.3 * 16) + int(0.3 * 48) + 6
    assert (found.visual_tokens, found.kept_tokens, found.prompt_tokens) == (70, kept, kept + 5)
    assert found.flops["vision"] == vision_flops(5)
    assert found.flops["selection"] == sum(2 * n**2 * 16 + 2 * 4 * n**2 for n in (16, 48))
    assert found.flops["prefill"] == language_flops(kept + 5, kept + 5)
    assert found.decode_flops == language_flops(1, kept + 6)
    assert found.kv_bytes == 2 * 2 * 2 * 6 * (kept + 5) * 4


def test_sdpa_is_counted_like_eager_attention() -> None:
    net = on_meta(llava_next(), attn_implementation="sdpa")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(inputs_embeds=torch.empty(1, 75, 16, device="meta"), logits_to_keep=1)
    assert counter.get_total_flops() == cost(llava_next(), [(30, 40)], text_tokens=5).flops["prefill"]


@pytest.mark.parametrize("make", [llava_next, llava_next_video, llava_onevision, lambda: llava_onevision(2)])
def test_closed_form_agrees_with_the_features_models_make(make: Any) -> None:
    config = make()
    net = on_meta(config)
    rng = random.Random(0)
    sizes = [(rng.randint(20, 2500), rng.randint(20, 2500)) for _ in range(25)]
    sizes += [(1, 1), (4000, 40), (40, 4000), (28, 28), (1700, 2200), (1, 4000)]
    for size in sizes:
        tiles = tiling(config, size)
        pixels = torch.empty(1, tiles.tiles, 3, TILE, TILE, device="meta")
        features = net.get_image_features(pixel_values=pixels, image_sizes=[list(size)]).pooler_output[0]
        assert sum(tiles.views) + tiles.newlines == len(features), size


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (llava(), SIDE**2),
        (llava(vision_feature_select_strategy="full"), SIDE**2 + 1),
        (
            VipLlavaConfig(
                vision_config=clip(), text_config=llama(), image_token_index=49, **{VIPLLAVA_LAYERS: [-2, -1]}
            ),
            SIDE**2,
        ),
    ],
)
def test_models_without_tiling_see_one_view(config: Any, tokens: int) -> None:
    found = cost(config, [(30, 40), (500, 10)], text_tokens=5, keep=0.5)
    assert (found.visual_tokens, found.kept_tokens) == (2 * tokens, 2 * (tokens // 2))


def test_several_images_add_up() -> None:
    first, second = (cost(llava_next(), [size], 5, keep=0.3) for size in [(30, 40), (90, 20)])
    both = cost(llava_next(), [(30, 40), (90, 20)], 5, keep=0.3)
    assert both.visual_tokens == first.visual_tokens + second.visual_tokens
    assert both.kept_tokens == first.kept_tokens + second.kept_tokens
    for part in ("vision", "projector"):
        assert both.flops[part] == first.flops[part] + second.flops[part]


def test_onevision_tiles_a_lone_image_only() -> None:
    alone = cost(llava_onevision(), [(60, 60)], 5)
    pair = cost(llava_onevision(), [(60, 60), (60, 60)], 5, keep=0.5)
    assert alone.visual_tokens > SIDE**2 + 1
    assert (pair.visual_tokens, pair.kept_tokens) == (2 * (SIDE**2 + 1), 2 * (SIDE**2 // 2 + 1))


def test_text_only() -> None:
    found = cost(llava_next(), [], text_tokens=9, keep=GPrune(0.3))
    flops = {"vision": 0, "projector": 0, "selection": 0, "prefill": language_flops(9, 9)}
    assert found == Cost(0, 0, 9, flops, language_flops(1, 10), 2 * 2 * 2 * 6 * 9 * 4)


def test_a_count_is_per_image_and_leaves_newlines_alone() -> None:
    assert cost(llava_next(), [(30, 40), (30, 40)], 5, keep=20).kept_tokens == 2 * (20 + 6)
    assert cost(llava_next(), [(30, 40)], 5, keep=10_000).kept_tokens == 70


def test_scope_image_ranks_all_tokens_of_an_image_together() -> None:
    found = cost(llava_next(), [(30, 40)], 5, keep=GPrune(0.3, scope="image"))
    assert found.kept_tokens == int(0.3 * 64) + 6
    assert found.flops["selection"] == 2 * 64**2 * 16 + 2 * 5 * 64**2


@pytest.mark.parametrize("keep", [0.3, 1, 20, 1.0])
@pytest.mark.parametrize("size", [(30, 40), (90, 20), (16, 16)])
def test_tiles_that_share_a_budget_keep_no_more_and_no_less(size: tuple[int, int], keep: float) -> None:
    own, shared = (cost(llava_next(), [size], 5, keep=GPrune(keep, shares=shares)) for shares in ("own", "global"))
    assert shared.kept_tokens == own.kept_tokens
    assert shared.flops["prefill"] == own.flops["prefill"]


@pytest.mark.parametrize("pruner", [Random(0.3), Uniform(0.3), L2Norm(0.3)])
def test_methods_without_products_choose_for_nothing(pruner: Any) -> None:
    assert cost(llava_next(), [(30, 40)], 5, keep=pruner) == cost(llava_next(), [(30, 40)], 5, keep=0.3)


def test_a_model_costs_what_its_config_does_and_is_left_as_it_was() -> None:
    net = AutoModelForImageTextToText.from_config(llava_next(), dtype=torch.bfloat16)
    before = net.config.to_dict()
    found = cost(net, [(30, 40)], 5)
    assert found == cost(llava_next(dtype="bfloat16"), [(30, 40)], 5)
    assert net.config.to_dict() == before
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}


def test_named_architecture_has_the_published_sizes() -> None:
    net = on_meta(architecture("llava-next-8b"))
    language = sum(p.numel() for m in (net.model.language_model, net.lm_head) for p in m.parameters())
    # Llama-3-8B has 8,030,261,248 parameters; the checkpoint pads its vocabulary by 64 rows, in and out
    assert language == 8_030_261_248 + 2 * 64 * 4096
    # CLIP ViT-L/14 at 336 pixels
    assert sum(p.numel() for p in net.model.vision_tower.parameters()) == 303_507_456


def test_the_papers_reduction() -> None:
    full, pruned = (cost("llava-next-8b", [(480, 640)], 75, keep) for keep in (1.0, GPrune(0.3)))
    assert 0.60 < 1 - pruned.total / full.total < 0.70
    assert pruned.macs / 1e12 == pytest.approx(6.76, rel=0.01)
    assert pruned.flops["selection"] < 0.003 * pruned.total


@pytest.mark.parametrize("keep", [0, 0.0, -0.5, 1.5, float("nan")])
def test_keep_out_of_range(keep: float) -> None:
    for sizes in ([(30, 40)], []):
        with pytest.raises(ValueError, match="keep="):
            cost(llava_next(), sizes, 5, keep=keep)


@pytest.mark.parametrize("keep", [True, "0.3", None])
def test_keep_of_a_wrong_type(keep: Any) -> None:
    with pytest.raises(TypeError, match="keep="):
        cost(llava_next(), [(30, 40)], 5, keep=keep)


@pytest.mark.parametrize(
    ("sizes", "text_tokens", "error", "message"),
    [
        ([(0, 40)], 5, ValueError, "image height=0"),
        ([(30, 40), (30, -1)], 5, ValueError, "image width=-1"),
        ([(30.5, 40)], 5, TypeError, "image height=30.5"),
        ([(30, 40, 3)], 5, ValueError, "not a pair"),
        ([(30, 40)], 0, ValueError, "text_tokens=0"),
        ([], True, TypeError, "text_tokens=True"),
    ],
)
def test_bad_sizes_and_counts(sizes: Any, text_tokens: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cost(llava_next(), sizes, text_tokens)


def test_unknown_models_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'llava-9000' is unknown; known are llava-next-8b"):
        cost("llava-9000", [(30, 40)], 5)
    with pytest.raises(ValueError, match=r"'qwen2_vl'.* supported .* llava_onevision.*measure"):
        cost(Qwen2VLConfig(), [(30, 40)], 5)
    with pytest.raises(ValueError, match="fixed input size"):
        cost(LlavaConfig(vision_config=PixtralVisionConfig(**VISION), text_config=llama()), [(30, 40)], 5)


def test_features_that_do_not_fit_the_expected_layout_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    too_tall = Tiling(tiles=5, base=(SIDE, SIDE), grid=(7, 8))
    monkeypatch.setattr("gprune.cost.tiling", lambda config, size: too_tall)
    with pytest.raises(RuntimeError, match=r"makes 70 visual tokens .* 7 newlines"):
        cost(llava_next(), [(30, 40)], 5)


def test_the_docs_show_the_committed_results() -> None:
    root = Path(__file__).parents[1]
    results = (root / "benchmarks/results/cost_llava_next_8b.md").read_text().splitlines()
    shown = (root / "docs/cost.md").read_text().split("## LLaVA-NeXT-8B")[1].splitlines()
    rows = [line for line in shown if line.startswith("|")]
    assert len(rows) > 10
    assert set(rows) <= set(results)


@pytest.mark.parametrize("pruner", [VTW(0.5), ToMe(0.5), Chain(GPrune(0.5), VTW(0.5))], ids=lambda p: p.name)
def test_methods_inside_the_model_are_measured_not_counted(pruner: Any) -> None:
    with pytest.raises(ValueError, match=r"acts inside.*measure"):
        cost(llava_next(), [(30, 40)], 5, keep=pruner)
    family = FAMILIES["llava_next"]
    model, inputs = family.model(), family.inputs([[(20, 40)]])
    full, less = measure(model, inputs), measure(model, inputs, pruner)
    assert less.total < full.total and less.kv_bytes < full.kv_bytes
    assert 0.2 < less.kept_tokens / full.kept_tokens < 0.6


def test_measured_cost_is_the_counted_one() -> None:
    family = FAMILIES["llava_next"]
    model, inputs = family.model("eager"), family.inputs([[(20, 40)]])
    text = int((inputs["input_ids"] != IMAGE).sum())
    for pruner in (Unpruned(), L2Norm(keep=0.3)):
        counted = cost(model, [(20, 40)], text, keep=pruner)
        found = measure(model, inputs, pruner)
        assert (found.visual_tokens, found.kept_tokens) == (counted.visual_tokens, counted.kept_tokens)
        assert (found.prompt_tokens, found.kv_bytes) == (counted.prompt_tokens, counted.kv_bytes)
        assert found.total == counted.total
        assert found.decode_flops == counted.decode_flops


INSIDE = [name for name, kind in PRUNERS.items() if issubclass(kind, DecoderPruner)]
BEFORE = [name for name in (*PRUNERS, "tome:where=tokens") if name not in ("tome", "evovit", "pixeldedup", *INSIDE)]
OF_VIDEOS = [name for name, kind in PRUNERS.items() if "frames" in kind.needs]


def method_of(name: str, keep: float, width: int) -> Any:
    """A method before the LLM, by its name, for tokens of this width."""
    masked = name in PRUNERS and "place" in PRUNERS[name].needs
    if name == "learned":
        return Learned(keep, weights=scorer_folder(width))
    return PRUNERS[name](keep, mask=torch.ones(2, 2, dtype=torch.bool)) if masked else parse_pruner(name, keep)


@pytest.mark.parametrize("keep", [0.5, 0.1])
@pytest.mark.parametrize("name", BEFORE)
def test_choosing_costs_what_is_measured(name: str, keep: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for count, width, key_width in ((64, 160, 32), (300, 48, 16)):
        pruner = method_of(name, keep, width)
        signals = {"attention": torch.rand(count, generator=generator)}
        signals["keys"] = torch.randn(count, key_width, generator=generator)
        signals["middle attention"] = torch.rand(count, generator=generator)
        features = torch.randn(count, width, generator=generator)
        questions = (torch.randn(5, width, generator=generator),)
        tokens = VisualTokens(features, (View(torch.arange(count), (count // 4, 4)),), (count,), signals, questions)
        with FlopCounterMode(display=False) as counter:
            pruner.select(tokens)
        counted = pruner.selection_flops(count, int(keep * count), width, key_width)
        # What the steps of a cover read depends on the picture; of noise it is most.
        covers = name in ("graphcover", "scope", "mmtok") or (name == "auto" and keep == 0.1)
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.7 if covers else 0, abs=2**12)


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any, list[tuple[int, int]]]:
    """The model in the package, a question about a picture, and the size of that."""
    model, processor = load_embedded()
    picture = next(samples("test", 1)).picture
    return model, build_inputs(model, processor, [([picture], "what is it?")]), [picture.size[::-1]]


@pytest.mark.parametrize("name", [name for name in BEFORE if name not in OF_VIDEOS])
def test_counted_and_measured_cost_agree_for_every_method(name: str, asked: Any, tmp_path: Path) -> None:
    model, inputs, sizes = asked
    pruner = made_for(model, tmp_path, 0.3) if name == "learned" else method_of(name, 0.3, 160)
    text = int((inputs["input_ids"] != model.config.image_token_id).sum())
    counted, found = cost(model, sizes, text, pruner), measure(model, inputs, pruner)
    assert counted.total == pytest.approx(found.total, rel=0.005)
    assert (counted.kept_tokens, counted.kv_bytes) == (found.kept_tokens, found.kv_bytes)
    assert cost_of_prompt(model, inputs, sizes, pruner) == counted


def test_a_method_inside_the_llm_is_measured(asked: Any) -> None:
    model, inputs, sizes = asked
    assert cost_of_prompt(model, inputs, sizes, VTW(0.5)) == measure(model, inputs, VTW(0.5))


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "vipllava"])
@pytest.mark.parametrize("method", ["clsattention", "zerotprune", "hiprune", "gprune:shares=global"])
def test_reading_the_tower_costs_what_is_measured(name: str, method: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model("eager"), family.inputs([[(20, 40)]])
    text = int((inputs["input_ids"] != IMAGE).sum())
    pruner = parse_pruner(method, 0.5)
    assert cost(model, [(20, 40)], text, pruner).total == measure(model, inputs, pruner).total


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_measured_and_pruning_saves(name: str) -> None:
    family = FAMILIES[name]
    inputs = family.inputs()
    full, pruned = (measure(family.model(), inputs, pruner) for pruner in (Unpruned(), L2Norm(keep=0.3)))
    eager = measure(family.model("eager"), inputs)
    assert eager.total == pytest.approx(full.total, rel=0.02)  # fused attention is counted, not left out
    assert pruned.visual_tokens == full.visual_tokens == int(is_visual(inputs["input_ids"]).sum())
    assert pruned.kept_tokens < 0.7 * full.kept_tokens
    assert pruned.total < full.total and pruned.kv_bytes < full.kv_bytes
