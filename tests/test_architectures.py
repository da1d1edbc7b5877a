"""Architectures by name have as many parameters as the published checkpoints, where there is one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from gprune.families.architectures import ARCHITECTURES, architecture

PARAMETERS = {
    "llava-next-8b": 8_355_276_800,
    "llava-next-0.5b": 581_513_984,
    "llava-1.5-7b": 7_063_427_072,
    "qwen2.5-vl-7b": 8_292_166_656,
    "smolvlm-256m": 256_484_928,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        net = AutoModelForImageTextToText.from_config(architecture(name))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


def test_a_config_is_fresh() -> None:
    changed = architecture("smolvlm-256m")
    changed.text_config.num_hidden_layers = 1
    assert architecture("smolvlm-256m").text_config.num_hidden_layers == 30


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'llava-9000' is unknown; known are llava-next-8b, .*, smolvlm-256m;"):
        architecture("llava-9000")
