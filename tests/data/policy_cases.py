"""Images and tables for the comparison of batched operations with Pillow's."""

import numpy as np
import torch
from PIL import Image

from ddfnet.data.policy.table import BICUBIC, BILINEAR, NEAREST, Op

FILL = (124, 116, 104)
AFFINE = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
# Every operation, the affine ones with each interpolation.
CASES = [(op, mode) for op in Op for mode in ((NEAREST, BILINEAR, BICUBIC) if op in AFFINE else (0,))]
CASES = [case for case in CASES if case[0] not in (Op.IDENTITY, Op.AUGMIX)]
ids = [f"{op.name}-{mode}" for op, mode in CASES]


def images(size, count=24, key=0):
    """uint8 (count, size, size, 3): smooth, noisy, flat, black and white, a ramp, few levels."""
    rng = np.random.default_rng(key)
    small = rng.integers(0, 256, (count, max(2, size // 8), max(2, size // 8), 3)).astype(np.uint8)
    kinds = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in small]
    kinds[1::6] = [rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for _ in kinds[1::6]]
    kinds[2::6] = [np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8) for _ in kinds[2::6]]
    kinds[3::6] = [(rng.integers(0, 2, (size, size, 3)) * 255).astype(np.uint8) for _ in kinds[3::6]]
    ramp = np.add.outer(np.arange(size) * 2, np.arange(size) * 3)[..., None] // np.array([1, 2, 3]) % 256
    kinds[4::6] = [np.roll(ramp, 17 * i, axis=1).astype(np.uint8) for i, _ in enumerate(kinds[4::6])]
    kinds[5::6] = [(100 + rng.integers(0, 3, (size, size, 3)) * 9).astype(np.uint8) for _ in kinds[5::6]]
    return np.stack(kinds)


def values(op, count, size, key=0):
    """float32 (count,): over the range of the operation, its ends and special points among them."""
    u = np.random.default_rng(key).random(count)
    drawn, special = {
        Op.POSTERIZE: (np.floor(u * 9), [0, 8]),
        Op.SOLARIZE: (u * 256, [0, 256, 128]),
        Op.SOLARIZE_ADD: (np.floor(u * 129), [0, 128]),
        Op.GAUSSIAN_BLUR: (0.1 + 1.9 * u, [0.1, 2.0]),
        Op.ROTATE: (270 * u - 135, [0, 90, -90, 180, 45, 30]),
        Op.SHEAR_X: (2 * u - 1, [0, 1, -1, 0.5, 0.3]),
        Op.SHEAR_Y: (2 * u - 1, [0, 1, -1, 0.5, 0.3]),
        Op.TRANSLATE_X: ((2 * u - 1) * size, [0, 7, -7, 0.5, size]),
        Op.TRANSLATE_Y: ((2 * u - 1) * size, [0, 7, -7, 0.5, size]),
    }.get(op, (2 * u, [0, 1, 0.1, 1.9]))
    drawn[: len(special)] = special
    return drawn.astype(np.float32)


def table(op, mode, count, size):
    """A table of one layer."""
    columns = np.full(count, op), values(op, count, size), np.full(count, mode)
    return np.stack(columns, axis=-1).astype(np.float32)[:, None]


def channels_first(pixels):
    """The images of a batch, (B, 3, H, W), as a channels_last tensor."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
