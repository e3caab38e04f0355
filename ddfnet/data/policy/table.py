"""Operations of a policy, as numbers: what the draws of a batch are made of.

A table is float32 (B, layers, 3): for each image the operations in their order, and for each operation its code, its
value and its interpolation. It stays on the CPU, where the kernels learn which images they have to touch.

| code | value |
| --- | --- |
| ROTATE | degrees, counterclockwise |
| SHEAR_X, SHEAR_Y | pixels per pixel |
| TRANSLATE_X, TRANSLATE_Y | pixels that the content moves to the left, or upwards |
| POSTERIZE | bits kept, 0 to 8 |
| SOLARIZE | threshold: values from it on are inverted |
| SOLARIZE_ADD | added to values below 128 |
| BRIGHTNESS, CONTRAST, COLOR, SHARPNESS | factor, 1: no change |
| GAUSSIAN_BLUR | standard deviation, at most 2 pixels |
| AUGMIX | one half of a seed; the other half stands in place of the interpolation |
"""

from enum import IntEnum

import numpy as np

PolicyTable = np.ndarray
CODE, VALUE, INTERPOLATION = range(3)  # the last axis of a table
NEAREST, BILINEAR, BICUBIC = 0, 2, 3  # interpolation of an affine operation, Pillow's numbers


class Op(IntEnum):
    IDENTITY = 0
    AUTOCONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    COLOR = 9
    SHARPNESS = 10
    GAUSSIAN_BLUR = 11
    ROTATE = 12
    SHEAR_X = 13
    SHEAR_Y = 14
    TRANSLATE_X = 15
    TRANSLATE_Y = 16
    AUGMIX = 17


def table_of(codes: np.ndarray, values: np.ndarray, interpolations: np.ndarray) -> PolicyTable:
    """A table from three arrays (B, layers)."""
    return np.stack([codes, values, interpolations], axis=-1).astype(np.float32)
