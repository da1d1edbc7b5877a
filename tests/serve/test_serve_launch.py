"""`gprune serve`: what it hands to vLLM, and what it refuses before vLLM starts."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import gprune.serve.launch
from gprune.cli import app
from gprune.cli.options import WrongInput
from gprune.scenes.model import embedded_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments with which vLLM would have been started."""
    started: list[list[str]] = []
    monkeypatch.setattr(gprune.serve.launch, "check_installed", lambda: None)
    monkeypatch.setattr(gprune.serve.launch, "run_server", lambda arguments, _: started.append(list(arguments)))
    for name in ("VLLM_API_KEY", "VLLM_MAX_IMAGE_PIXELS", "VLLM_MEDIA_CONNECTOR"):
        monkeypatch.delenv(name, raising=False)
    return started


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def options(arguments: list[str]) -> dict[str, Any]:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def test_the_embedded_model(started: list[list[str]]) -> None:
    result = run("embedded", "--keep", "0.5", "--method", "gprune:init=ones", "--port", "8001", "--max-model-len=512")
    assert result.exit_code == 0
    assert started[0][-3:] == ["--port", "8001", "--max-model-len=512"]
    given = options(started[0][:-1])
    assert given["--model"] == str(embedded_path())
    assert (given["--served-model-name"], given["--dtype"]) == ("embedded", "float32")
    assert json.loads(given["--hf-overrides"]) == {
        "architectures": ["GPruneLlavaNextForConditionalGeneration"],
        "gprune_method": "gprune:init=ones",
        "gprune_keep": 0.5,
    }
    settings = "VLLM_MEDIA_CONNECTOR=gprune VLLM_MAX_IMAGE_PIXELS=40000000"
    command, line = result.stderr.splitlines()
    assert command.startswith(f"gprune: {settings} vllm serve /")
    assert line.startswith("gprune: serves with method gprune:init=ones, keep 0.5, positions contiguous; gprune ")


def test_a_model_in_a_folder(started: list[list[str]]) -> None:
    run(embedded_path(), "--keep", "40")
    given = options(started[0])
    assert set(given) == {"--model", "--hf-overrides", "--host", "--middleware"}
    assert given["--model"] == str(embedded_path())
    assert json.loads(given["--hf-overrides"])["gprune_keep"] == 40


def test_what_the_user_says_of_the_embedded_model_holds(started: list[list[str]]) -> None:
    run("embedded", "--served-model-name", "small", "--dtype=bfloat16")
    (arguments,) = started
    assert arguments[-3:] == ["--served-model-name", "small", "--dtype=bfloat16"]
    assert (arguments.count("--served-model-name"), arguments.count("--dtype")) == (1, 0)


@pytest.mark.parametrize("others", [(), ("--port", "8001"), ("--uds", "socket")])
def test_only_this_machine_is_listened_to(started: list[list[str]], others: tuple[str, ...]) -> None:
    run("embedded", *others)
    assert options(started[0])["--host"] == "127.0.0.1"


@pytest.mark.parametrize(
    "others",
    [("--host", "127.0.0.1"), ("--host=::1",), ("--host", "localhost"), ("--host", "0.0.0.0", "--api-key", "a", "b")],
)
def test_what_is_shut_is_not_warned_of(
    started: list[list[str]], recwarn: pytest.WarningsRecorder, others: tuple[str, ...]
) -> None:
    run("embedded", *others)
    own = started[0][: -len(others)]
    assert started[0] == [*own, *others] and "--host" not in own
    assert ("gprune.serve.key.KeyForAll" in own) == ("--api-key" in others)
    assert not [each for each in recwarn if "without a key" in str(each.message)]


@pytest.mark.parametrize("others", [("--host", "0.0.0.0"), ("--host=::",), ("--host", ""), ("--host", "example.org")])
def test_what_anybody_can_use_is_warned_of(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, others: tuple[str, ...]
) -> None:
    with pytest.warns(UserWarning, match="without a key: whoever reaches that address can use it; give --api-key"):
        run("embedded", *others)
    assert started[0][-len(others) :] == list(others)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("embedded", *others).exit_code == 0
    assert options(started[1][: -len(others)])["--middleware"] == "gprune.serve.key.KeyForAll"


def test_what_an_operator_may_set(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    result = run("embedded", "--max-pixels", "100", "--trust-uuid")
    assert "VLLM_MAX_IMAGE_PIXELS=100 " in result.stderr
    assert json.loads(options(started[0])["--hf-overrides"])["gprune_trust_uuid"] is True
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "200")
    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")
    assert run("embedded").stderr.startswith("gprune: VLLM_MEDIA_CONNECTOR=http VLLM_MAX_IMAGE_PIXELS=200 vllm")
    assert run("embedded", "--max-pixels", "0").exit_code == 2


def _other_family(folder: Path, model_type: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["embedded", "--keep", "0"], "keep=0 keeps no token"),
        (["embedded", "--keep", "1.5"], "keep=1.5 is not a ratio"),
        (["embedded", "--keep", "many"], "'many' is no budget"),
        (["embedded", "--method", "fastest"], "method 'fastest' is unknown"),
        (["embedded", "--method", "fastv"], "method 'fastv' cannot be served by vLLM"),
        (["embedded", "--method", "gprune:colour=red"], "has the settings"),
        (["embedded", "--method", "gprune:positions=original"], "give it --positions"),
        (["embedded", "--positions", "original"], "needs --max-model-len: .* of the model's 2048 positions"),
        (["embedded", "--hf-overrides", "{}"], "gprune serve sets --hf-overrides"),
        (["embedded", "--hf_overrides.x=1"], "gprune serve sets --hf-overrides"),
        (["/no/such/folder"], "/no/such/folder cannot be loaded"),
    ],
)
def test_refused_before_vllm_starts(started: list[list[str]], arguments: list[str], reason: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, WrongInput)
    assert re.search(reason, str(result.exception))
    assert not started


def test_a_family_that_vllm_cannot_prune(started: list[list[str]], tmp_path: Path) -> None:
    result = run(_other_family(tmp_path, "gemma3"), "--experimental")
    assert isinstance(result.exception, WrongInput)
    assert "model_type 'gemma3' pruned: its language model lets the tokens of an image see" in str(result.exception)
    assert not started


def test_an_experiment(started: list[list[str]], tmp_path: Path) -> None:
    model = _other_family(tmp_path, "qwen2_5_vl")
    result = run(model)
    assert isinstance(result.exception, WrongInput)
    assert "start gprune serve with --experimental" in str(result.exception)
    assert not started
    result = run(model, "--experimental", "--positions", "contiguous")
    assert "a qwen2_5_vl numbers visual tokens by their place in a grid" in str(result.exception)
    assert not started
    for others in ([], ["--positions", "original"]):
        run(model, "--experimental", *others)
        given = options(started.pop())
        assert set(given) == {"--model", "--hf-overrides", "--middleware", "--host"}
        overrides = json.loads(given["--hf-overrides"])
        assert set(overrides) == {"architectures", "gprune_method", "gprune_keep"}
        assert overrides["architectures"] == ["GPruneQwen2_5_VLForConditionalGeneration"]


def test_positions(started: list[list[str]]) -> None:
    run("embedded", "--positions", "original", "--max-model-len", "1024")
    overrides = json.loads(options(started.pop())["--hf-overrides"])
    assert (overrides["gprune_positions"], overrides["mrope_section"]) == ("original", [1])
    run("embedded", "--positions", "contiguous")
    assert not {"gprune_positions", "mrope_section"} & set(json.loads(options(started.pop())["--hf-overrides"]))


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gprune.serve.launch, "find_spec", lambda name: None)
    result = run("embedded")
    assert isinstance(result.exception, WrongInput)
    assert "pip install 'gprune[vllm]'" in str(result.exception)
