"""What timm's operations do at which level: their code, and their value as a function of level and draw."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ddfnet.data.policy.table import Op

MAX_LEVEL = 10.0  # of timm's recipes, where they do not raise it

Value = Callable[[np.ndarray, np.ndarray], np.ndarray]  # levels (N,), uniform draws (N,) -> values (N,)


class Level(NamedTuple):
    op: Op
    value: Value


def _signed(most: float, level: np.ndarray, u: np.ndarray) -> np.ndarray:
    value = level / MAX_LEVEL * most
    return np.where(u > 0.5, -value, value)


def _factor(level: np.ndarray, u: np.ndarray) -> np.ndarray:
    return level / MAX_LEVEL * 1.8 + 0.1


def _increasing_factor(level: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.maximum(0.1, 1.0 + _signed(0.9, level, u))


def _steps(most: int, level: np.ndarray) -> np.ndarray:
    return np.trunc(level / MAX_LEVEL * most)


def _none(level: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.zeros_like(level)


def _posterize(level: np.ndarray, u: np.ndarray, *, least: int = 0, sign: int = 1) -> np.ndarray:
    return np.clip(least + sign * _steps(4, level), 0, 8)


def _solarize(level: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.minimum(256, _steps(256, level))


def _between(low: float, high: float, level: np.ndarray) -> np.ndarray:
    return np.clip(low + (high - low) * (level / MAX_LEVEL), low, high)


def _random_blur(level: np.ndarray, u: np.ndarray) -> np.ndarray:
    return 0.1 + (2.0 * _between(0.0, 1.0, level) - 0.1) * u


LEVELS = {
    "AutoContrast": Level(Op.AUTOCONTRAST, _none),
    "Equalize": Level(Op.EQUALIZE, _none),
    "Invert": Level(Op.INVERT, _none),
    "Rotate": Level(Op.ROTATE, partial(_signed, 30.0)),
    "Posterize": Level(Op.POSTERIZE, _posterize),
    "PosterizeIncreasing": Level(Op.POSTERIZE, partial(_posterize, least=4, sign=-1)),
    "PosterizeOriginal": Level(Op.POSTERIZE, partial(_posterize, least=4)),
    "Solarize": Level(Op.SOLARIZE, _solarize),
    "SolarizeIncreasing": Level(Op.SOLARIZE, lambda level, u: 256 - _solarize(level, u)),
    "SolarizeAdd": Level(Op.SOLARIZE_ADD, lambda level, u: np.minimum(128, _steps(110, level))),
    "Color": Level(Op.COLOR, _factor),
    "ColorIncreasing": Level(Op.COLOR, _increasing_factor),
    "Contrast": Level(Op.CONTRAST, _factor),
    "ContrastIncreasing": Level(Op.CONTRAST, _increasing_factor),
    "Brightness": Level(Op.BRIGHTNESS, _factor),
    "BrightnessIncreasing": Level(Op.BRIGHTNESS, _increasing_factor),
    "Sharpness": Level(Op.SHARPNESS, _factor),
    "SharpnessIncreasing": Level(Op.SHARPNESS, _increasing_factor),
    "ShearX": Level(Op.SHEAR_X, partial(_signed, 0.3)),
    "ShearY": Level(Op.SHEAR_Y, partial(_signed, 0.3)),
    # As shares of the side; whoever draws knows it.
    "TranslateXRel": Level(Op.TRANSLATE_X, partial(_signed, 0.45)),
    "TranslateYRel": Level(Op.TRANSLATE_Y, partial(_signed, 0.45)),
    "Desaturate": Level(Op.COLOR, lambda level, u: 1.0 - _between(0.5, 1.0, level)),
    "GaussianBlur": Level(Op.GAUSSIAN_BLUR, lambda level, u: _between(0.1, 2.0, level)),
    "GaussianBlurRand": Level(Op.GAUSSIAN_BLUR, _random_blur),
}
"""timm's operations by timm's names."""
