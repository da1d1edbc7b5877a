"""Prompts of the matrix against the processors of transformers."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, IMAGE, Size
from families.parts import BEGIN, BREAK, END, GLOBAL, LINE, TAG
from transformers import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import gprune
from gprune import host
from gprune.families.table import FAMILIES as TABLE

WORDS = {
    **{"[begin]": BEGIN, "[image]": IMAGE, "[break]": BREAK, "[end]": END, "[tag]": TAG, "[global]": GLOBAL},
    **{"<|image_start|>": BEGIN, "<|patch|>": IMAGE, "<|tile_x_separator|>": BREAK, "<|tile_y_separator|>": LINE},
    **{"<|image|>": GLOBAL, "<|image_end|>": END, "\n": LINE},
    **{"<low_res_im_start>": TAG, "<im_start>": BEGIN, "<im_patch>": IMAGE, "<im_col>": BREAK, "<im_end>": END},
    **{"<patch_start>": TAG, "<patch_end>": BREAK, "<patch_newline>": LINE},
    **{f"[tag]_{tile}": TAG for tile in range(1, 10)},
    **{f"<row_{row + 1}_col_{column + 1}>": 10 + 6 * row + column for row in range(3) for column in range(3)},
    **{f"<|img_row_{row + 1}_col_{column + 1}|>": 10 + 6 * row + column for row in range(3) for column in range(3)},
}
"""Token ids of the matrix for the words that processors write."""

SPELLED = SimpleNamespace(
    **dict.fromkeys(("start_of_img_token", "boi_token", "start_image_token", "fake_image_token"), "[begin]"),
    **dict.fromkeys(("end_of_img_token", "eoi_token", "end_image_token", "image_end_token"), "[end]"),
    **dict.fromkeys(("img_patch_token", "image_token"), "[image]"),
    **dict.fromkeys(("tile_global_token", "global_image_tag", "global_image_token"), "[global]"),
    **dict.fromkeys(("tile_token", "image_thumbnail_token"), "[tag]"),
    **dict.fromkeys(("image_seq_len", "image_seq_length"), 9),
    image_start_token="[begin]",
    img_line_break_token="\n",
    image_feature_placeholder="[image]" * 9,
    patch_feature_placeholder="[image]" * 4,
    slice_start_token="[tag]",
    slice_end_token="[break]",
    slice_mode=True,
    img_size=3,
    patch_size=1,
    image_use_col_tokens=True,
    use_single_crop_col_tokens=None,
    use_single_crop_start_token=True,
)
"""What a processor finds its tokens called, and how many of them it finds."""

PROCESSORS = {
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "internvl": "InternVL",
    "aya_vision": "AyaVision",
    "cohere2_vision": "Cohere2Vision",
    "llama4": "Llama4",
    "lfm2_vl": "Lfm2Vl",
    "gemma4": "Gemma4",
    "molmo2": "Molmo2",
    "step3p7": "Step3p7",
    "minicpmv4_6": "MiniCPMV4_6",
    "minicpmv4_7": "MiniCPMV4_7",
}


def written(family: Any, size: Size) -> str:
    """What the family's processor puts in the place of an image, its tokens spelled as above."""
    name = family.name
    module = pytest.importorskip(f"transformers.models.{name}.processing_{name}")
    processor = getattr(module, f"{PROCESSORS[name]}Processor")
    count, views = family.layout(size)
    if name == "llama4":
        return processor._prompt_split_image(SPELLED, family.tiles(size), 9)
    if name == "lfm2_vl":
        return processor._build_image_tokens(SPELLED, *family.tiles(size), 9, len(views[-1][0]), True, True)
    spelled = SimpleNamespace(**vars(SPELLED))
    found: dict[str, Any] = {"num_patches": [len(views)], "num_soft_tokens_per_image": [count]}
    if name == "molmo2":
        found["image_grids"] = [[*views[0][1], *views[1][1]]]
    if name in ("idefics3", "smolvlm"):
        rows, columns = family.tiles(size) if len(views) > 1 else (0, 0)
        found |= {"rows": [[rows]], "cols": [[columns]]}
    if name == "cohere2_vision":
        spelled.patch_size = 3
    if name == "step3p7":
        rows, columns = family.tiles(size)
        ends = [column == columns - 1 and row < rows - 1 for row in range(rows) for column in range(columns)]
        found = {"num_local_patches": [len(views) - 1], "patch_newline_masks": [ends]}
    if name.startswith("minicpm"):
        sizes = family.image_pixels(size, torch.Generator())["target_sizes"]
        grid = family.tiles(size) if len(sizes) > 1 else (0, 0)
        found = {"grids": [grid], "num_patches_per_image": [len(sizes)], "target_sizes": sizes}
        return processor.replace_image_token(spelled, found, 0, image_token_divisor=family.merged**2)
    return processor.replace_image_token(spelled, found, 0)


@pytest.mark.parametrize("size", [(20, 40), (40, 40), (30, 18), (90, 70)])
@pytest.mark.parametrize("name", [name for name in PROCESSORS if name in FAMILIES])
def test_images_stand_in_prompts_as_the_processors_write_them(name: str, size: Size) -> None:
    text = written(FAMILIES[name], size)
    words = re.findall("|".join(map(re.escape, sorted(WORDS, key=len, reverse=True))), text)
    assert "".join(words) == text
    assert [WORDS[word] for word in words] == FAMILIES[name].image_ids(size, lambda count: [])


@pytest.mark.parametrize("document", ["README.md", "docs/families.md"])
def test_documents_name_every_family_of_the_table(document: str) -> None:
    table = (Path(__file__).parents[1] / document).read_text().partition("| family | `model_type` |")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.partition("\n\n")[0].splitlines()[2:]]
    for refused in (False, True):
        named = " ".join(row[1] for row in rows if row[2].startswith("refused") == refused)
        names = [name for name, family in TABLE.items() if bool(family.refused) == refused]
        assert sorted(re.findall(r"`([\w.-]+)`", named)) == names


def generating() -> dict[str, str]:
    """Every model of transformers that puts image features in the place of placeholders: model_type -> class."""
    encoder, found = host.encoder_name("image"), {}
    for file in Path(transformers.models.__file__).parent.glob("*/modeling_*.py"):
        if f"def {encoder}(" not in file.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for kind in vars(module).values():
            if not (inspect.isclass(kind) and issubclass(kind, GenerationMixin) and hasattr(kind, "config_class")):
                continue
            placeholders = any(hasattr(kind.config_class, f"image_token_{name}") for name in ("id", "index"))
            encodes = hasattr(kind, encoder) or host.ENCODED in inspect.signature(kind.forward).parameters
            if placeholders and encodes:
                found[kind.config_class.model_type] = kind.__name__
    classes = set(found.values())
    return found | {name: kind for name, kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items() if kind in classes}


def test_every_family_of_transformers_is_offered_or_refused_with_its_own_reason() -> None:
    models = generating()
    assert {"llava", "deepseek_vl", "fuyu", "florence2"} <= set(models)
    assert {name: kind for name, kind in models.items() if name not in TABLE} == {}


def test_families_import_nothing_that_is_above_them() -> None:
    rooms = {
        room
        for file in Path(gprune.__file__).parent.glob("families/*.py")
        for room in re.findall(r"^ *from \.\.([\w.]+) import", file.read_text(), re.MULTILINE)
    }
    assert rooms <= {"host", "pruners.base", "tokens"}
