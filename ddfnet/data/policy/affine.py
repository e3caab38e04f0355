"""Rotations, shears and translations of many images at once, with Pillow's pixels.

Pillow takes output pixel (x, y) from the input at A (x + 0.5, y + 0.5), leaves the fill color where that is outside,
repeats the border, and cuts the fraction of the result off. Its bicubic is Keys's with a = -1, in the form used here:
flat regions then keep their values exactly. Coordinates are float64 as there, since an error of one bit could move a
pixel over the border or, with nearest, to its neighbor.
"""

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.policy.table import BICUBIC, BILINEAR, NEAREST, Op

_STEPS = {BILINEAR: (0, 2), BICUBIC: (-1, 3)}  # from a point to the pixels it is interpolated from


def matrices(codes: np.ndarray, values: np.ndarray, interpolation: int, height: int, width: int) -> np.ndarray:
    """The matrix of each operation as Pillow gets it: codes and values (N,) -> float64 (N, 6), rows (a b c, d e f):
    output pixel (x, y) shows input (a x + b y + c, d x + e y + f)."""
    matrix = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(codes), 1))
    for op, column in ((Op.SHEAR_X, 1), (Op.TRANSLATE_X, 2), (Op.SHEAR_Y, 3), (Op.TRANSLATE_Y, 5)):
        matrix[codes == op, column] = values[codes == op]
    turned = codes == Op.ROTATE
    angle = -np.radians(values[turned] % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    x, y = width / 2, height / 2  # the center stays
    matrix[turned] = np.stack([cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y], axis=1)
    if interpolation == NEAREST:
        matrix = _fixed_point(matrix)
    return matrix


def _fixed_point(matrix: np.ndarray) -> np.ndarray:
    """For nearest Pillow counts in steps of 2^-16 from the first pixel's center, but for pure translations."""
    a, b, c, d, e, f = matrix.T
    first = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=1)
    a, b, c, d, e, f = (np.floor(first * 65536 + 0.5) / 65536).T
    steps = np.stack([a, b, c - a * 0.5 - b * 0.5, d, e, f - d * 0.5 - e * 0.5], axis=1)
    return np.where((matrix[:, 1:2] == 0) & (matrix[:, 3:4] == 0), matrix, steps)


def affine(pixels: Tensor, matrix: Tensor, fill: Tensor, interpolation: int, *, one_axis: bool) -> Tensor:
    """Transforms each image by its matrix.

    Args:
        pixels: uint8 (N, H, W, 3), contiguous.
        matrix: float64 (N, 6), of `matrices`.
        fill: (N, 3), the color of what comes from outside.
        interpolation: Pillow's number.
        one_axis: there is no rotation: across the other axis each pixel comes from the middle of its own line.
    """
    n, h, w, _ = pixels.shape
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    xs = torch.arange(w, dtype=torch.float64, device=pixels.device) + 0.5
    ys = torch.arange(h, dtype=torch.float64, device=pixels.device)[:, None] + 0.5
    x, y = a * xs + b * ys + c, d * xs + e * ys + f
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    if interpolation != NEAREST:
        x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    dx, dy = (x - left).float().unsqueeze(-1), (y - top).float().unsqueeze(-1)
    left, top = left.int(), top.int()
    flat = pixels.view(-1, 3).float()
    first = torch.arange(n, dtype=torch.int32, device=pixels.device).view(n, 1, 1) * (h * w)

    def taps(x_steps: Tensor | int, y_steps: Tensor | int) -> Tensor:
        """Input at so many pixels from (left, top), float32 (..., N, H, W, 3)."""
        position = first + (top + y_steps).clamp(0, h - 1) * w + (left + x_steps).clamp(0, w - 1)
        return flat.index_select(0, position.flatten()).view(*position.shape, 3)

    if interpolation == NEAREST:
        value = taps(0, 0)
    else:
        steps = torch.arange(*_STEPS[interpolation], dtype=torch.int32, device=pixels.device).view(-1, 1, 1, 1)
        if one_axis:
            vertical = (d != 0) | (f != 0)
            value = _between(taps(steps * ~vertical, steps * vertical), torch.where(vertical.unsqueeze(-1), dy, dx))
        else:
            value = _between([_between(taps(steps, step), dx) for step in range(*_STEPS[interpolation])], dy)
    return torch.where(inside.unsqueeze(-1), value.clamp_(0, 255), fill[:, None, None, :]).to(torch.uint8)


def _between(values: Tensor | list[Tensor], t: Tensor) -> Tensor:
    """Interpolates between the middle two of 2 or 4 neighbors, `t` in [0, 1): linearly, or by the cubic."""
    if len(values) == 2:
        return torch.addcmul(values[0], values[1] - values[0], t)
    before, start, end, after = values
    first, last = before - start, end - after
    cubic = torch.addcmul(torch.add(last, first, alpha=2), first + last, t, value=-1)
    return torch.addcmul(start, torch.addcmul(end - before, cubic, t), t)
