"""What timm's operations do at which level: their code, and their value as a function of level and draw."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf

import numpy as np

from ddfnet.data.policy.table import Op

MAX_LEVEL = 10.0  # of timm's recipes, where they do not raise it


@dataclass(frozen=True)
class Level:
    """`value = clip(base + slope * level / MAX_LEVEL, low, high)`, as numbers, so that the operations of a whole batch
    are drawn in a few array operations.

    Attributes:
        steps: the product with the slope is cut off to a whole number.
        signed: it is negative for draws above 0.5.
        uniform: that is but the width of a range from 0.1 on, in which the value is uniform.
    """

    op: Op
    base: float = 0.0
    slope: float = 0.0
    low: float = -inf
    high: float = inf
    steps: bool = False
    signed: bool = False
    uniform: bool = False


LEVELS = {
    "AutoContrast": Level(Op.AUTOCONTRAST),
    "Equalize": Level(Op.EQUALIZE),
    "Invert": Level(Op.INVERT),
    "Rotate": Level(Op.ROTATE, slope=30.0, signed=True),
    "Posterize": Level(Op.POSTERIZE, slope=4.0, low=0.0, high=8.0, steps=True),
    "PosterizeIncreasing": Level(Op.POSTERIZE, base=4.0, slope=-4.0, low=0.0, high=8.0, steps=True),
    "PosterizeOriginal": Level(Op.POSTERIZE, base=4.0, slope=4.0, low=0.0, high=8.0, steps=True),
    "Solarize": Level(Op.SOLARIZE, slope=256.0, high=256.0, steps=True),
    "SolarizeIncreasing": Level(Op.SOLARIZE, base=256.0, slope=-256.0, low=0.0, steps=True),
    "SolarizeAdd": Level(Op.SOLARIZE_ADD, slope=110.0, high=128.0, steps=True),
    "Color": Level(Op.COLOR, base=0.1, slope=1.8),
    "ColorIncreasing": Level(Op.COLOR, base=1.0, slope=0.9, low=0.1, signed=True),
    "Contrast": Level(Op.CONTRAST, base=0.1, slope=1.8),
    "ContrastIncreasing": Level(Op.CONTRAST, base=1.0, slope=0.9, low=0.1, signed=True),
    "Brightness": Level(Op.BRIGHTNESS, base=0.1, slope=1.8),
    "BrightnessIncreasing": Level(Op.BRIGHTNESS, base=1.0, slope=0.9, low=0.1, signed=True),
    "Sharpness": Level(Op.SHARPNESS, base=0.1, slope=1.8),
    "SharpnessIncreasing": Level(Op.SHARPNESS, base=1.0, slope=0.9, low=0.1, signed=True),
    "ShearX": Level(Op.SHEAR_X, slope=0.3, signed=True),
    "ShearY": Level(Op.SHEAR_Y, slope=0.3, signed=True),
    # As shares of the side; whoever draws knows it.
    "TranslateXRel": Level(Op.TRANSLATE_X, slope=0.45, signed=True),
    "TranslateYRel": Level(Op.TRANSLATE_Y, slope=0.45, signed=True),
    "Desaturate": Level(Op.COLOR, base=0.5, slope=-0.5, low=0.0, high=0.5),
    "GaussianBlur": Level(Op.GAUSSIAN_BLUR, base=0.1, slope=1.9, low=0.1, high=2.0),
    "GaussianBlurRand": Level(Op.GAUSSIAN_BLUR, base=-0.1, slope=2.0, low=-0.1, high=1.9, uniform=True),
}
"""timm's operations by timm's names."""


class LevelTable:
    """`Level`s of K operations, each of their numbers as an array (K,)."""

    def __init__(self, names: Sequence[str]) -> None:
        levels = [LEVELS[name] for name in names]
        self._columns = {
            field.name: np.array([getattr(level, field.name) for level in levels]) for field in fields(Level)
        }
        self._signed, self._uniform = self._columns["signed"].any(), self._columns["uniform"].any()
        self._steps = self._columns["steps"].any()

    def codes(self, chosen: np.ndarray) -> np.ndarray:
        """Codes (`Op`) of operations, whatever the shape."""
        return self._columns["op"][chosen]

    def values(self, chosen: np.ndarray, level: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Values of operations at levels for uniform draws in [0, 1), float64, all of one shape."""
        column = self._columns
        value = level / MAX_LEVEL * column["slope"][chosen]
        if self._steps:
            value = np.where(column["steps"][chosen], np.trunc(value), value)
        if self._signed:
            value = np.where(column["signed"][chosen] & (u > 0.5), -value, value)
        value = np.minimum(np.maximum(column["base"][chosen] + value, column["low"][chosen]), column["high"][chosen])
        return np.where(column["uniform"][chosen], 0.1 + value * u, value) if self._uniform else value
