"""What pruning relies on in vLLM: in the one that is installed, and in one that has moved on."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standing import Host

import gprune.contract
from gprune.cli import main
from gprune.contract import Contract
from gprune.serve.families import MODULES
from gprune.serve.host import (
    GLM,
    GRIDS,
    KEYS,
    MEDIA,
    MODELS,
    PLACES,
    QWEN_MOE,
    REQUESTS,
    TOWER_LAYERS,
    WOVEN,
)

CONTRACTS = (REQUESTS, MEDIA, KEYS, MODELS, PLACES, GRIDS, QWEN_MOE, GLM, WOVEN, TOWER_LAYERS)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        main(["serve", *arguments])
    return int(exit.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.names[0])
def test_the_command_refuses_before_vllm_starts(
    contract: Contract, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A port is bound by what is not called here."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "VLLM_MEDIA_CONNECTOR"):
        monkeypatch.setenv(name, str(tmp_path))  # which the command would set for this process
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    hosts = [Host(monkeypatch, each) for each in CONTRACTS]
    monkeypatch.setattr("gprune.serve.launch.check_installed", lambda: None)
    monkeypatch.setattr("runpy.run_module", lambda *_, **__: pytest.fail("vLLM was started"))
    hosts[0].version(contract, "0.41.0")
    missing = contract.names[-1].partition("(")[0]
    owner, last = hosts[0].owner(missing)
    delattr(owner, last)
    served = {GRIDS: "qwen2_vl", QWEN_MOE: "qwen3_vl_moe", GLM: "glm4v", WOVEN: "mistral3"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": served.get(contract, "llava")}))
    method = "clsattention" if contract is TOWER_LAYERS else "gprune"
    code, error = told(capsys, str(tmp_path), "--experimental", "--method", method)
    assert code == 1 and "Traceback" not in error
    assert error.splitlines()[-1] == (
        f"gprune: vllm 0.41.0 is installed, where gprune relies on what is not there: {missing} is missing. "
        "Tested was vllm>=0.32,<0.34: pip install 'vllm>=0.32,<0.34'"
    )


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gprune.serve.launch.find_spec", lambda name: None)
    code, error = told(capsys, "embedded")
    assert code == 2 and "pip install 'gprune[vllm]'" in error


def test_the_plugin_leaves_a_vllm_that_is_shaped_otherwise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called in every vLLM beside which gprune is installed, whatever that serves."""
    from gprune.serve.plugin import register

    registered: list[str] = []
    models = SimpleNamespace(register_model=lambda name, module: registered.append(name))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=models, __path__=[]))
    register()
    assert sorted(registered) == sorted(name for names in MODULES.values() for name in names)


def test_the_installed_vllm_fits() -> None:
    pytest.importorskip("vllm", reason="needs vLLM: make test-serve")
    gprune.contract.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for contract in CONTRACTS:
            contract.check()
    assert not [each for each in warned if "gprune was tested" in str(each.message)]


def test_all_that_is_overridden_is_listed() -> None:
    """A method of vLLM by another name would no longer be overridden, which nothing else would notice."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-serve")
    from gprune.serve import glm, media, one_axis, placing, processing, qwen, qwen_moe, woven

    contracts = (REQUESTS, MEDIA, MODELS, PLACES, GRIDS, QWEN_MOE, GLM, WOVEN)
    listed = {name.rpartition(".")[2].partition("(")[0] for each in contracts for name in each.names}
    kinds = [
        kind
        for module in (media, one_axis, placing, processing, qwen, qwen_moe, glm, woven)
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__.startswith("gprune.serve")
    ]
    overridden = {name for kind in kinds for name in _overridden(kind)}
    assert overridden >= {"embed_multimodal", "get_mrope_input_positions", "_get_prompt_updates", "load_from_url_async"}
    assert overridden - listed == set()


def _overridden(kind: Any) -> set[str]:
    """The methods of vLLM that classes of gprune define anew."""
    own = {name for each in kind.__mro__ if each.__module__.startswith("gprune.") for name in vars(each)}
    theirs = {name for each in kind.__mro__ if each.__module__.startswith("vllm.") for name in vars(each)}
    return {name for name in own & theirs if not name.startswith("__") and inspect.isfunction(getattr(kind, name))}
