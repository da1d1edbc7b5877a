"""Features that are not numbers must not end a server."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-serve")

from gprune import GPrune, VisualTokens
from gprune.serve.one_axis import select_rows


def test_broken_features_still_give_as_many_rows_as_were_promised(caplog: pytest.LogCaptureFixture) -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    features[5:25] = torch.nan
    features[30, 3] = torch.inf
    with caplog.at_level(logging.ERROR):
        selection = select_rows(GPrune(0.25), VisualTokens.of(features))
    assert len(selection.kept) == 10
    assert "21 of its 40 visual tokens contain NaN or Inf" in caplog.text


def test_whole_features_are_chosen_from_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select_rows(GPrune(0.25), VisualTokens.of(features)).kept, GPrune(0.25).select(features).kept)
    assert not caplog.records
