"""Starting vLLM's server with a pruner."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from ..contract import Contract
from ..models import EMBEDDED
from ..pruners import get_pruner
from ..pruners.base import Positions
from ..tokens import Keep
from .families import EXPERIMENTAL, MODULES, served_architecture
from .host import GLM, GRIDS, KEYS, MEDIA, MODELS, PLACES, QWEN_MOE, REQUESTS, TOWER_LAYERS, WOVEN
from .settings import AXES, CONNECTOR, KEEP, METHOD, POSITIONS, TRUST_UUID, served_pruner
from .status import in_a_line, served

SERVER = "vllm.entrypoints.openai.api_server"
"""What runs under all the names that vLLM is packaged by; `vllm serve` is its command where it is called vllm."""

OVERRIDES = "--hf-overrides"
"""The option that chooses a model that prunes, its method and its budget."""

HEALTH_TELLS = "gprune.serve.status.HealthTells"
"""What says at `/health` what is served."""

OF_ALL = (REQUESTS, MEDIA, KEYS, MODELS, PLACES)
"""What gprune relies on in vLLM, whatever is served."""

OF_MODULE = {"woven": (WOVEN,), "qwen": (GRIDS,), "qwen_moe": (GRIDS, QWEN_MOE), "glm": (GRIDS, GLM)}
"""And what beside it, by the module of `MODULES` that has the architecture."""

KEY_FOR_ALL = "gprune.serve.key.KeyForAll"
"""What asks for the server's key at every path."""

THIS_MACHINE = "127.0.0.1"
"""Where the server listens unless it is told otherwise; vLLM itself listens on all addresses."""


def server_arguments(
    model: str,
    config: Any,
    keep: Keep,
    method: str,
    others: Sequence[str] = (),
    *,
    positions: Positions | None = None,
    experimental: bool = False,
    trust_uuid: bool = False,
) -> list[str]:
    """What vLLM's server is to be started with; warns of one that anybody could use.

    Args:
        model: hub id or folder of a transformers checkpoint, or "embedded".
        config: of the model.
        keep: the budget of requests that name none.
        method: see `parse_pruner`.
        others: further options of vLLM.
        positions: of the tokens that are left, those of the unpruned prompt or those of text; None: what vLLM gives.
        experimental: see `architecture`.
        trust_uuid: whether clients may name pictures, and so reach those of others.

    Raises:
        ValueError, TypeError: the model, the method or the budget cannot be served, or `others` override what is set.
    """
    served_pruner(method, keep, config)
    overrides: dict[str, Any] = {
        "architectures": [served_architecture(config, experimental)],
        METHOD: method,
        KEEP: keep,
        **_positions(config, positions, others),
    }
    if trust_uuid:
        overrides[TRUST_UUID] = True
    if OVERRIDES in map(_option, others):
        raise ValueError(
            f"gprune serve sets {OVERRIDES}, which vLLM takes once; start vLLM itself instead, with your own entries "
            f"beside these: {shlex.join([OVERRIDES, json.dumps(overrides)])}"
        )
    own = ["--model", *_checkpoint(model, others), OVERRIDES, json.dumps(overrides)]
    return [*own, "--middleware", HEALTH_TELLS, *_shut(others), *others]


def served_by(arguments: Sequence[str]) -> str:
    """What a server that is started with `server_arguments` serves, in a line."""
    return in_a_line(served(_overrides(arguments)))


def _overrides(arguments: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(arguments[arguments.index(OVERRIDES) + 1])
    return found


def _contracts(overrides: Mapping[str, Any]) -> tuple[Contract, ...]:
    (architecture,) = overrides["architectures"]
    module = next(module for module, names in MODULES.items() if architecture in names)
    reads_tower = get_pruner(overrides[METHOD].partition(":")[0]).needs
    return (*OF_ALL, *OF_MODULE.get(module, ()), *([TOWER_LAYERS] if reads_tower else []))


def server_environment(max_pixels: int) -> dict[str, str]:
    """What vLLM's server is to find in its environment; there an operator may name another way to fetch pictures.

    Args:
        max_pixels: of a picture, width times height; those with more are refused.
    """
    connector = os.environ.get("VLLM_MEDIA_CONNECTOR", CONNECTOR)
    return {"VLLM_MEDIA_CONNECTOR": connector, "VLLM_MAX_IMAGE_PIXELS": str(max_pixels)}


def _positions(config: Any, asked: Positions | None, others: Sequence[str]) -> dict[str, Any]:
    """The entries of the model's config that say which positions the tokens have that are left."""
    if config.model_type in EXPERIMENTAL:
        if asked == "contiguous":
            raise ValueError(
                f"--positions contiguous: a {config.model_type} numbers visual tokens by their place in a grid, which "
                f"those that are kept keep; leave it out"
            )
        return {}
    if asked != "original":
        return {}
    if "--max-model-len" not in map(_option, others):
        most = config.get_text_config().max_position_embeddings
        raise ValueError(
            f"--positions original needs --max-model-len: it is how many tokens a prompt and its answer may have, and "
            f"what it leaves of the model's {most} positions is how many visual tokens a prompt may lose"
        )
    return {POSITIONS: asked, AXES: [1]}


def _shut(others: Sequence[str]) -> list[str]:
    """The options by which nobody reaches the server who is not meant to, as far as those of vLLM leave that open."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--host", nargs="?")
    parser.add_argument("--api-key", "--api_key", nargs="*", default=os.environ.get("VLLM_API_KEY"))
    given, _ = parser.parse_known_args(others)
    if given.host is not None and not _is_this_machine(given.host) and not given.api_key:
        warnings.warn(
            f"the server listens on {given.host} without a key: whoever reaches that address can use it; give "
            f"--api-key, and read docs/security.md",
            stacklevel=3,
        )
    listen = ["--host", THIS_MACHINE] if given.host is None else []
    return [*listen, *(["--middleware", KEY_FOR_ALL] if given.api_key else [])]


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checkpoint(model: str, others: Sequence[str]) -> list[str]:
    """A model by name; that in the package with its own, and in the precision in which it is used elsewhere."""
    if model != EMBEDDED:
        return [model]
    from ..scenes.model import embedded_path

    given = set(map(_option, others))
    defaults = {"--served-model-name": EMBEDDED, "--dtype": "float32"}
    return [str(embedded_path()), *(part for item in defaults.items() if item[0] not in given for part in item)]


def check_installed() -> None:
    """Raise ImportError unless vLLM is installed."""
    if find_spec("vllm") is None:
        raise ImportError("serving needs vLLM, which is not installed; pip install 'gprune[vllm]'")


def run_server(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run vLLM's server in this process until it ends.

    Args:
        arguments: see `server_arguments`.
        environment: see `server_environment`.

    Raises:
        UnsupportedHost: vLLM is not one that gprune can rely on; nobody listens yet.
    """
    with tempfile.TemporaryDirectory(prefix="gprune-metrics-") as folder:
        # Read by prometheus_client when it is imported, here and in the processes that vLLM starts.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        os.environ.update(environment)
        for contract in _contracts(_overrides(arguments)):
            contract.check()
        sys.argv = [SERVER, *arguments]
        runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


def _option(argument: str) -> str:
    """The name of an option as vLLM reads it: `--hf_overrides.x=1` is `--hf-overrides`."""
    return argument.partition("=")[0].partition(".")[0].replace("_", "-")
