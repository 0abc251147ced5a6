"""Distinct colours for words."""

import colorsys

import numpy as np

# Neighbours differ in hue and lightness, so that colour-blind readers can tell the first words apart.
_FIRST = (
    (255, 99, 71), (64, 156, 255), (255, 200, 40), (46, 184, 114), (190, 110, 255), (255, 138, 196),
    (28, 200, 205), (240, 140, 30), (160, 200, 50), (110, 120, 240), (200, 90, 90), (120, 170, 150),
)  # fmt: skip


def colours(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB: a fixed list, then hues a golden angle apart. The n-th colour does not depend on count."""
    chosen = list(_FIRST[:count])
    for index in range(len(chosen), count):
        value, saturation = (1.0, 0.8, 0.62)[index % 3], (0.75, 0.55)[index % 2]
        red, green, blue = colorsys.hsv_to_rgb(index * 0.6180339887498949 % 1, saturation, value)
        chosen.append((round(red * 255), round(green * 255), round(blue * 255)))
    return np.array(chosen, np.uint8).reshape(count, 3)
