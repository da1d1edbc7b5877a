"""Models inside other things: spread over devices, with adapters, quantised, in a pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from decoding import MAIN, PLACEHOLDERS, beam_search
from families import FAMILIES, Family
from reference import kept_prompts, text_logits
from torch import Tensor
from transformers import pipeline

from gprune.attach import UnsupportedModel
from gprune.pruners import GPrune
from gprune.scenes.model import load_embedded
from gprune.scenes.scene import make_scene, render

STEPS = 4
SETTINGS: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
PRUNER = GPrune(keep=0.4)


@pytest.fixture(params=MAIN)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def generated(family: Family, model: Any) -> Tensor:
    with torch.no_grad(), PRUNER(model) as run:
        output = model.generate(**family.inputs(), **SETTINGS)
    assert [image.n_after < image.n_before for image in run.images] == [True] * 3
    return output[:, -STEPS:]


@torch.no_grad()
def expected(family: Family, model: Any) -> Tensor:
    """What the long way generates with the weights of this model."""
    prompts = kept_prompts(family, model, PRUNER, family.inputs())
    return torch.cat([beam_search(model, prompt, 1, STEPS) for prompt in prompts])


@pytest.mark.parametrize("way", ["dispatched", "on the disk", "offloaded"])
def test_models_spread_by_accelerate(family: Family, way: str, tmp_path: Path) -> None:
    """With hooks that bring the weights of a module when it is called, and take them away."""
    if way != "dispatched" and hasattr(family.model().model, "image_newline"):
        pytest.skip("stock encodes images before anything brings the newline row back")
    wanted = expected(family, family.model())
    model = copy.deepcopy(family.model())
    if way == "dispatched":
        places = {name: "cpu" for name, _ in model.named_children()}
        places |= {f"model.{name}": "cpu" for name in (*dict(model.model.named_children()), "image_newline")}
        places["model.language_model" if hasattr(model.model, "language_model") else "model.text_model"] = "disk"
        del places["model"]
        model = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    elif way == "on the disk":
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        cpu_offload(model, execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(generated(family, model), wanted)


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


def adapted(peft: Any, family: Family, **settings: Any) -> Any:
    """With an adapter on the LLM that is no longer without effect."""
    config = peft.LoraConfig(r=2, target_modules=r".*(language|text)_model.*\.(q|v)_proj", **settings)
    model = peft.get_peft_model(copy.deepcopy(family.model()), config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_adapters_of_peft(peft: Any, family: Family, task: str | None) -> None:
    model = adapted(peft, family, task_type=task)
    wanted = expected(family, model.get_base_model())
    assert not torch.equal(wanted, expected(family, family.model()))
    assert torch.equal(generated(family, model), wanted)
    with model.disable_adapter():
        assert torch.equal(generated(family, model), expected(family, family.model()))


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_training_of_adapters(peft: Any, family: Family, task: str | None) -> None:
    model, inputs = adapted(peft, family, task_type=task), family.inputs()
    prompts = kept_prompts(family, model.get_base_model(), PRUNER, inputs)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(weights) == 4 * model.config.get_text_config().num_hidden_layers
    last = torch.stack([text_logits(model.get_base_model(), prompt)[-1] for prompt in prompts])
    gradients = torch.autograd.grad(last.logsumexp(-1).sum(), weights)
    with PRUNER(model):
        logits = model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, last, rtol=0, atol=1e-4)
    for gradient, wanted in zip(torch.autograd.grad(logits.logsumexp(-1).sum(), weights), gradients, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompts_learned_by_peft_are_refused(peft: Any, kind: str) -> None:
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, token_dim=32)
    config.num_attention_heads, config.num_transformer_submodules = 4, 1
    model = peft.get_peft_model(copy.deepcopy(FAMILIES["llava_next"].model()), config)
    with pytest.raises(UnsupportedModel, match=r"virtual tokens.*LoRA.*without the adapter"):
        PRUNER.attach(model)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_linear_layers(family: Family, bits: int) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(family.model())
    quantised = {
        8: lambda *sizes: bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False),
        4: lambda *sizes: bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=torch.float32),
    }
    for module in list(model.get_decoder().modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                linear = quantised[bits](child.in_features, child.out_features, child.bias is not None)
                linear.load_state_dict(child.state_dict())
                setattr(module, name, linear.to("cpu"))
    dtypes = {weight.dtype for name, weight in model.get_decoder().named_parameters() if name.endswith("q_proj.weight")}
    assert dtypes == {torch.int8 if bits == 8 else torch.uint8}
    assert torch.equal(generated(family, model), expected(family, model))


@torch.no_grad()
def test_pipeline() -> None:
    model, processor = load_embedded()
    pictures = [render(make_scene("test", index, size=(128, 64), needs="text"))[0] for index in range(3)]
    asked = {"type": "text", "text": "what text is written?"}
    chats = [[{"role": "user", "content": [{"type": "image", "image": picture}, asked]}] for picture in pictures]
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    templated = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for batch_size in (1, 3):
        with PRUNER(model) as run:
            answers = ask(text=chats, batch_size=batch_size, return_full_text=False, generate_kwargs=settings)
            assert len(run.images) == batch_size
            assert all(image.n_after < image.n_before for image in run.images)
            for chat, (answer,) in zip(chats, answers, strict=True):
                inputs = processor.apply_chat_template(chat, **templated)
                output = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
                assert answer["generated_text"].strip() == processor.decode(output, skip_special_tokens=True).strip()
