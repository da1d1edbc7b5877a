"""What pruning relies on in vLLM: in the one that is installed, and in one that has moved on."""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standing import Host

import gprune.contract
from gprune.cli import main
from gprune.contract import UnsupportedHost
from gprune.serve.families import MODULES
from gprune.serve.host import GLM, GRIDS, KEYS, MEDIA, MODELS, QWEN_MOE, REQUESTS, TOWER_LAYERS, WOVEN


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        main(["serve", *arguments])
    return int(exit.value.code or 0), capsys.readouterr().err


def test_the_command_refuses_before_vllm_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("PROMETHEUS_MULTIPROC_DIR", "VLLM_MEDIA_CONNECTOR"):
        monkeypatch.setenv(name, str(tmp_path))  # which the command would set for this process
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    host = Host(monkeypatch, REQUESTS)
    host.version(REQUESTS, "0.41.0")
    monkeypatch.setattr("gprune.serve.launch.check_installed", lambda: None)
    monkeypatch.setattr("runpy.run_module", lambda *_, **__: pytest.fail("vLLM was started"))
    owner, last = host.owner("vllm.multimodal.processing:BaseMultiModalProcessor._get_prompt_updates")
    delattr(owner, last)
    code, error = told(capsys, "embedded")
    assert code == 1 and "Traceback" not in error
    assert error.splitlines()[-1] == (
        "gprune: vllm 0.41.0 is installed, where gprune relies on what is not there: "
        "vllm.multimodal.processing:BaseMultiModalProcessor._get_prompt_updates is missing. "
        "Tested was vllm>=0.32,<0.33: pip install 'vllm>=0.32,<0.33'"
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
        for contract in (REQUESTS, MEDIA, KEYS, MODELS, GRIDS, QWEN_MOE, GLM, WOVEN, TOWER_LAYERS):
            contract.check()
    assert not [each for each in warned if "gprune was tested" in str(each.message)]


def test_all_that_is_overridden_is_listed() -> None:
    """A method of vLLM by another name would no longer be overridden, which nothing else would notice."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-serve")
    from gprune.serve import glm, media, one_axis, processing, qwen, qwen_moe, woven

    contracts = (REQUESTS, MEDIA, MODELS, GRIDS, QWEN_MOE, GLM, WOVEN)
    listed = {name.rpartition(".")[2].partition("(")[0] for each in contracts for name in each.names}
    kinds = [
        kind
        for module in (media, one_axis, processing, qwen, qwen_moe, glm, woven)
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__.startswith("gprune.serve")
    ]
    overridden = {name for kind in kinds for name in _overridden(kind)}
    assert overridden >= {"embed_multimodal", "recompute_mrope_positions", "_get_prompt_updates", "load_from_url_async"}
    assert overridden - listed == set()


def test_a_model_whose_own_pruning_cannot_be_put_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its columns after the features would be read as places."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-serve")
    from gprune.serve import one_axis, qwen

    class Renamed(qwen.PlacingModel):
        pass

    monkeypatch.setattr(qwen, "check_offered", lambda config: None)
    monkeypatch.setattr(one_axis.PruningModel, "__init__", lambda self, **_: None)
    with pytest.raises(UnsupportedHost, match=r"Renamed\.is_multimodal_pruning_enabled is missing"):
        Renamed(vllm_config=None)
    Renamed.is_multimodal_pruning_enabled = True  # type: ignore[attr-defined]
    assert vars(Renamed(vllm_config=None)) == {"is_multimodal_pruning_enabled": False}


def _overridden(kind: Any) -> set[str]:
    """The methods of vLLM that classes of gprune define anew."""
    own = {name for each in kind.__mro__ if each.__module__.startswith("gprune.") for name in vars(each)}
    theirs = {name for each in kind.__mro__ if each.__module__.startswith("vllm.") for name in vars(each)}
    return {name for name in own & theirs if not name.startswith("__") and inspect.isfunction(getattr(kind, name))}
