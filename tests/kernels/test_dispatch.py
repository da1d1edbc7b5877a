"""Which way of ranking is taken on which device."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from equations import clustered

from gprune import graph


def test_a_gpu_with_triton_takes_the_kernels_with_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    features, calls = clustered(12), []

    def representativeness(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments[1:])
        return torch.zeros(12), torch.ones(12, dtype=torch.int64)

    import gprune.kernels

    stand_in = SimpleNamespace(representativeness=representativeness)
    monkeypatch.setitem(sys.modules, "gprune.kernels.cuda", stand_in)
    monkeypatch.setattr(gprune.kernels, "cuda", stand_in, raising=False)
    monkeypatch.setattr(graph, "_has_kernels", lambda device: True)
    graph.rank_views(features, [5, 7], init="ones", max_memory=77)
    assert calls == [([5, 7], 0.5, 5, 0.03, "ones", 77)]


@pytest.mark.parametrize(
    "cuda, capability, triton, there",
    [
        ("13.0", (9, 0), True, True),
        ("13.0", (8, 0), True, True),
        ("13.0", (7, 5), True, False),
        (None, (9, 0), True, False),
        ("13.0", (9, 0), False, False),
    ],
)
def test_kernels_are_for_recent_nvidia_gpus_with_triton(
    cuda: str | None, capability: tuple[int, int], triton: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(graph, "find_spec", lambda name: object() if triton else None)
    graph._has_kernels.cache_clear()
    assert graph._has_kernels(torch.device("cuda", 0)) is there
    graph._has_kernels.cache_clear()
    assert not graph._has_kernels(torch.device("cpu"))
