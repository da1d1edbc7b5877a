"""Wrong input of every command: exit code 2, one line that says what to do, nothing loaded, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Run

import gprune.cli.options
from gprune.scenes.model import build_model, build_processor, build_tokenizer, embedded_path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--keep", "0"), "keep=0 keeps no token"),
        (("--keep", "1.5"), "keep=1.5 is not a ratio"),
        (("--keep", "-0.5"), "keep=-0.5 is not a ratio"),
        (("--keep", "nan"), "keep=nan is not a ratio"),
        (("--keep", "abc"), "--keep abc: 'abc' is no budget; accepted are a ratio"),
        (("--keep", "0.5,"), "--keep 0.5,: '' is no budget"),
        (("--method", "magic"), "method 'magic' is unknown; methods are gprune, random, uniform, l2norm"),
        (("--method", ""), "method '' is unknown"),
        (("--method", "gprune:speed=3"), "gprune has the settings scope, shares, positions, similarity"),
        (("--method", "gprune:keep=0.5"), "gprune has the settings scope"),
        (("--method", "gprune:similarity"), "write name:setting=value"),
        (("--method", "gprune:similarity=2"), "similarity=2 is out of range"),
        (("--method", "gprune:iterations=two"), "iterations='two' is a str"),
        (("--method", "gprune:iterations=[1]"), "iterations=[1] is a list"),
        (("--method", "random:seed=-1"), "seed=-1 is out of range"),
        (("--method", "uniform:scope=all"), "scope='all' is unknown; accepted is 'view' or 'image'"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "show", "scenes", "cost"])
def test_methods_and_budgets(
    run: Run, nothing_loads: None, photos: dict[str, Path], command: str, arguments: tuple[str, ...], reason: str
) -> None:
    given: dict[str, tuple[object, ...]] = {"ask": (photos["coffee"], "hi"), "show": (photos["coffee"],)}
    refused(run(command, *given.get(command, ()), *arguments), reason)


def refused(result: Any, reason: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gprune: ") and result.err.count("\n") == 1
    assert reason in result.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ask", "PHOTO", ""), "the question is empty"),
        (("ask", "PHOTO", "  \n"), "the question is empty"),
        (("ask", "PHOTO", "hi", "--picture", "kept.jpg"), "must end in .png"),
        (("ask", "PHOTO", "hi", "--picture", "nowhere/kept.png"), "the folder nowhere does not exist"),
        (("show", "PHOTO", "-o", "kept.gif"), "must end in .png"),
        (("show", "PHOTO", "-o", "nowhere/kept.png"), "the folder nowhere does not exist"),
        (("show", "PHOTO", "-o", "/proc/kept.png"), "output /proc/kept.png cannot be written"),
        (("show", "PHOTO", "--method", "none", "--keep", "1.0"), "nothing to show"),
        (("ask", "PHOTO", "hi", "--method", "foreground"), "a picture that is black outside: foreground:mask=mask.png"),
        (("ask", "PHOTO", "hi", "--keep", "cover:x"), "'x' is no budget"),
        (("ask", "PHOTO", "hi", "--method", "random,uniform", "--keep", "own"), "Random finds none"),
        (("show", "PHOTO", "--iterations", "1,two"), "--iterations 1,two: 'two' is not a whole number"),
        (("show", "PHOTO", "--iterations", ""), "--iterations : '' is not a whole number"),
        (("show", "PHOTO", "--iterations", "-1"), "iterations=-1 is out of range"),
        (("scenes", "-o", "PHOTO"), "cannot be made a folder"),
        (("scenes", "--sample", "3"), "add -o FOLDER"),
        (("scenes", "--sample", "3", "-o", "PHOTO"), "cannot be made a folder"),
        (("scenes", "--sample", "3", "-o", "PHOTO/below"), "cannot be made a folder"),
        (("cost", "--image-size", "640"), "'640' is not WIDTHxHEIGHT"),
        (("cost", "--image-size", "640x480,x"), "'x' is not WIDTHxHEIGHT"),
        (("cost", "--image-size", "-640x480"), "'-640x480' is not WIDTHxHEIGHT"),
        (("cost", "--image-size", "0x480"), "image width=0 is too small"),
    ],
)
def test_options_of_one_command(
    run: Run, nothing_loads: None, photos: dict[str, Path], arguments: tuple[str, ...], reason: str
) -> None:
    refused(run(*(argument.replace("PHOTO", str(photos["coffee"])) for argument in arguments)), reason)


def test_an_output_that_is_a_folder(run: Run, nothing_loads: None, photos: dict[str, Path]) -> None:
    Path("kept.png").mkdir()
    result = run("show", photos["coffee"], "-o", "kept.png")
    assert result.code == 2 and "is a folder" in result.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ask", "hi"), "Missing argument"),
        (("ask",), "Missing argument"),
        (("show",), "Missing argument"),
        (("scenes", "--limit", "0"), "Invalid value for '--limit'"),
        (("scenes", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("scenes", "--batch-size", "0"), "Invalid value for '--batch-size'"),
        (("scenes", "--sample", "0", "-o", "x"), "Invalid value for '--sample'"),
        (("scenes", "--limit", "many"), "Invalid value for '--limit'"),
        (("ask", "a.png", "hi", "--max-new-tokens", "0"), "Invalid value for '--max-new-tokens'"),
        (("cost", "--text-tokens", "0"), "Invalid value for '--text-tokens'"),
        (("cost", "--speed", "1"), "No such option"),
        (("prune",), "No such command"),
    ],
)
def test_usage(run: Run, nothing_loads: None, arguments: tuple[str, ...], reason: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert reason in " ".join(result.err.replace("│", " ").split())
    assert not list(Path().iterdir())


def _copy(folder: Path) -> Path:
    shutil.copytree(embedded_path(), folder)
    return folder


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without("config.json"), "cannot be loaded"),
        (_cut("config.json"), "cannot be loaded"),
        (_without("model.safetensors"), "no file named model.safetensors"),
        (_cut("model.safetensors"), "cannot be loaded"),
        (_without("processor_config.json"), "cannot be loaded"),
        (_without("tokenizer.json"), "cannot be loaded"),
        (_without("chat_template.jinja"), "it has no chat template"),
    ],
)
def test_damaged_checkpoint(
    run: Run, photos: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = _copy(tmp_path / "checkpoint")
    damage(folder)
    refused(run("ask", photos["coffee"], "hi", "--model", folder), reason)


@pytest.mark.parametrize("command", ["ask", "show", "scenes", "cost"])
def test_unknown_model(run: Run, nothing_loads: None, photos: dict[str, Path], command: str) -> None:
    given: dict[str, tuple[object, ...]] = {"ask": (photos["coffee"], "hi"), "show": (photos["coffee"],)}
    refused(
        run(command, *given.get(command, ()), "--model", "./no/such/model"), "model ./no/such/model cannot be loaded"
    )


def _llama() -> Any:
    return T.LlamaConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )


def _blip2() -> Any:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = T.OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16)
    return T.Blip2Config(
        vision_config=T.Blip2VisionConfig(**size, image_size=16, patch_size=8),
        qformer_config=T.Blip2QFormerConfig(**size, encoder_hidden_size=16),
        text_config=text,
    )


@pytest.mark.parametrize(("config", "reason"), [(_llama, "it does not take images"), (_blip2, "its Q-Former")])
@pytest.mark.parametrize("command", ["ask", "show", "scenes"])
def test_model_of_another_family(
    run: Run,
    nothing_loads: None,
    photos: dict[str, Path],
    tmp_path: Path,
    command: str,
    config: Callable[[], Any],
    reason: str,
) -> None:
    config().save_pretrained(tmp_path / "model")
    given: dict[str, tuple[object, ...]] = {"ask": (photos["coffee"], "hi"), "show": (photos["coffee"],)}
    result = run(command, *given.get(command, ()), "--model", tmp_path / "model")
    refused(result, reason)
    assert "supported are models with model_type aria, " in result.err
    assert repr(config().model_type) in result.err


def test_cost_of_a_model_of_another_family(run: Run, tmp_path: Path) -> None:
    _blip2().save_pretrained(tmp_path / "model")
    refused(run("cost", "--model", tmp_path / "model"), "supported are llava, ")


def test_a_model_in_a_folder_is_used(run: Run, photos: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_model().save_pretrained(tmp_path / "model")
    build_processor().save_pretrained(tmp_path / "model")
    result = run("ask", photos["coffee"], "hi", "--model", tmp_path / "model", "--json", "--max-new-tokens", "2")
    assert result.code == 0, result.err
    assert result.rows[0]["kept_tokens"] < result.rows[0]["visual_tokens"]
    assert "Warning" not in result.err


def test_any_other_error_is_one_line_and_code_1(
    run: Run, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError

    monkeypatch.setattr("gprune.answering.reply", fail)
    result = run("ask", photos["coffee"], "hi", "--json", "--picture", "kept.png")
    assert (result.code, result.out) == (1, "") and result.err.endswith("\ngprune: ArithmeticError\n")
    assert not list(Path().iterdir())


def test_tokenizer_of_text_models_is_no_processor(run: Run, photos: dict[str, Path], tmp_path: Path) -> None:
    build_model().save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    refused(run("ask", photos["coffee"], "hi", "--model", tmp_path / "model"), "cannot be loaded")


def test_values_may_have_blanks_around_them() -> None:
    pruners, _ = gprune.cli.options.read_runs(" gprune , random ", "0.5, 3")
    assert [(name, pruner.keep) for name, pruner in pruners] == [
        ("gprune", 0.5),
        ("gprune", 3),
        ("random", 0.5),
        ("random", 3),
    ]
