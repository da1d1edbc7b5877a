"""The image and the service of deploy/: what they start, as whom, and where the key is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gprune
import gprune.serve.launch
from gprune.cli import app

DEPLOY = Path(gprune.__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "gprune.service").read_text()
IMAGE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
SETTINGS = {"MODEL": "embedded", "KEEP": "0.5", "VLLM_API_KEY": "secret"}


def lines(text: str, start: str) -> list[str]:
    """What follows this start of a line, for each such line."""
    return [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]


def started(monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str]) -> list[str]:
    """The arguments with which `gprune` would start vLLM."""
    found: list[list[str]] = []
    monkeypatch.setattr(gprune.serve.launch, "check_installed", lambda: None)
    monkeypatch.setattr(gprune.serve.launch, "run_server", lambda given, _: found.append(list(given)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return found[0]


def test_the_service_starts_a_server_with_a_key_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    [command] = lines(UNIT, "ExecStart=")
    program, *arguments = shlex.split(command)
    filled = [re.sub(r"\$\{(\w+)\}", lambda name: SETTINGS[name[1]], each) for each in arguments]
    given = started(monkeypatch, filled, {"VLLM_API_KEY": SETTINGS["VLLM_API_KEY"]})
    assert Path(program).name == "gprune"
    assert given[given.index("--host") + 1] == "127.0.0.1"
    assert gprune.serve.launch.KEY_FOR_ALL in given
    assert json.loads(given[given.index("--limit-mm-per-prompt") + 1]) == {"image": 4}
    assert SETTINGS["VLLM_API_KEY"] not in given


@pytest.mark.parametrize("text", [UNIT, IMAGE])
def test_no_key_is_written_where_others_read_it(text: str) -> None:
    assert "--api-key" not in text
    assert not re.search(r"VLLM_API_KEY\s*=\s*[^.\s]", text)


def test_the_service_does_not_start_without_a_key() -> None:
    [command] = lines(UNIT, "ExecStartPre=")
    check = [part.replace("$$", "$") for part in shlex.split(command)]
    without = subprocess.run(check, env={}, capture_output=True, text=True, timeout=30)
    assert without.returncode != 0 and "has to be in /etc/gprune/environment" in without.stderr
    assert subprocess.run(check, env={"VLLM_API_KEY": "secret"}, timeout=30).returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_service(tmp_path: Path) -> None:
    unit = tmp_path / "gprune.service"
    unit.write_text(UNIT.replace("/opt/gprune/bin/gprune", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_shut() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.splitlines() if "=" in line and not line.startswith("#"))
    wanted = {"DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "CapabilityBoundingSet": ""}
    assert wanted.items() <= settings.items()
    assert settings["EnvironmentFile"] == "/etc/gprune/environment"


def test_the_image_serves_as_nobody_of_importance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And only with a key, since a container is reached from outside."""
    steps = [line.split()[0] for line in IMAGE.splitlines() if re.match("[A-Z]+ ", line)]
    assert lines(IMAGE, "USER ") == ["10001"] and steps.index("USER") < steps.index("ENTRYPOINT")
    [entry] = lines(IMAGE, "ENTRYPOINT ")
    seen = tmp_path / "seen"
    (tmp_path / "gprune").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\n')
    (tmp_path / "gprune").chmod(0o755)
    command, environment = [*json.loads(entry), "embedded", "--keep", "0.5"], {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    without = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert without.returncode != 0 and "give it by --env-file" in without.stderr and not seen.exists()
    subprocess.run(command, env={**environment, "VLLM_API_KEY": "secret"}, check=True, timeout=30)
    given = started(monkeypatch, seen.read_text().splitlines(), {"VLLM_API_KEY": "secret"})
    assert given[given.index("--host") + 1] == "0.0.0.0"
    assert gprune.serve.launch.KEY_FOR_ALL in given
