"""What a scene can be made of; every other file of the benchmark reads these names."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "purple": (150, 60, 180),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
BACKGROUNDS = ("sky", "grass", "brick", "sand", "wood")

# Letters and digits that a coarse picture keeps apart: no O beside 0, no S beside 5, no I beside 1.
CHARACTERS = "ACEFHKLMNPRTUXY0123456789"
DIGITS = "0123456789"
WORDS = [
    "CAT",
    "HAT",
    "MAP",
    "NET",
    "PEN",
    "CUP",
    "KEY",
    "TEA",
    "ARM",
    "TAX",
    "HUT",
    "ANT",
    "CAR",
    "FAN",
    "NUT",
    "ELF",
    "PARK",
    "TRAP",
    "LAMP",
    "TREE",
    "FARM",
    "CAKE",
    "LEAF",
    "MEAL",
    "HEAT",
    "NEXT",
    "FUEL",
    "RACE",
    "PATH",
    "CAFE",
    "TRAY",
    "FACE",
]

# Width x height in pixels. Together they give square, wide, tall and extreme pictures, with and without padding.
CANVASES = ((128, 128), (128, 96), (96, 128), (128, 64), (64, 128), (192, 64), (160, 64), (64, 192))
CANVAS_WEIGHTS = (0.36, 0.14, 0.12, 0.10, 0.06, 0.10, 0.06, 0.06)

CATEGORIES = ("text", "attribute", "position", "presence", "counting", "chart", "background")
