"""Rotations, shears and translations of many images at once, with Pillow's pixels.

Pillow takes output pixel (x, y) from the input at A (x + 0.5, y + 0.5), leaves the fill color where that is outside,
repeats the border, and cuts the fraction of the result off. Its bicubic is Keys's with a = -1, in the form used here:
flat regions then keep their values exactly. Coordinates are float64 as there, since an error of one bit could move a
pixel over the border or, with nearest, to its neighbor.
"""

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.policy.table import BICUBIC, NEAREST, Op

_VERTICAL = (Op.SHEAR_Y, Op.TRANSLATE_Y)
_PARTS = (6, 2, 2, 3, 1)  # matrix, size, stride, fill, cubic


def affine_arguments(
    codes: np.ndarray, values: np.ndarray, interpolations: np.ndarray, height: int, width: int, fill: tuple
) -> np.ndarray:
    """What `affine` has to know of each image, float64 (N, 14), from a table's columns (N,).

    The matrix; size and stride of its two axes; the fill color; 1 for bicubic. Operations along the columns have their
    axes exchanged, so that `affine` needs to know one direction only.
    """
    matrix = _matrices(codes, values, height, width)
    matrix = np.where(interpolations[:, None] == NEAREST, _fixed_point(matrix), matrix).reshape(-1, 2, 3)
    axes = np.concatenate([matrix, np.tile([[[width, 1], [height, width]]], (len(codes), 1, 1))], axis=2)
    axes = np.where(np.isin(codes, _VERTICAL)[:, None, None], axes[:, ::-1], axes)
    flat = [axes[:, :, :3].reshape(-1, 6), axes[:, :, 3], axes[:, :, 4]]
    return np.hstack([*flat, np.tile(fill, (len(codes), 1)), (interpolations == BICUBIC)[:, None]])


def _matrices(codes: np.ndarray, values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The matrix of each operation as Pillow gets it, float64 (N, 6), rows (a b c, d e f): output pixel (x, y) shows
    input (a x + b y + c, d x + e y + f)."""
    matrix = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(codes), 1))
    for op, column in ((Op.SHEAR_X, 1), (Op.TRANSLATE_X, 2), (Op.SHEAR_Y, 3), (Op.TRANSLATE_Y, 5)):
        matrix[codes == op, column] = values[codes == op]
    turned = codes == Op.ROTATE
    angle = -np.radians(values[turned] % 360.0)
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    x, y = width / 2, height / 2  # the center stays
    matrix[turned] = np.stack([cos, sin, -x * cos - y * sin + x, -sin, cos, x * sin - y * cos + y], axis=1)
    return matrix


def _fixed_point(matrix: np.ndarray) -> np.ndarray:
    """For nearest Pillow counts in steps of 2^-16 from the first pixel's center, but for pure translations."""
    a, b, c, d, e, f = matrix.T
    first = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5], axis=1)
    a, b, c, d, e, f = (np.floor(first * 65536 + 0.5) / 65536).T
    steps = np.stack([a, b, c - a * 0.5 - b * 0.5, d, e, f - d * 0.5 - e * 0.5], axis=1)
    return np.where((matrix[:, 1:2] == 0) & (matrix[:, 3:4] == 0), matrix, steps)


def affine(pixels: Tensor, arguments: Tensor, *, nearest: bool, one_axis: bool) -> Tensor:
    """Transforms each image by its matrix.

    Args:
        pixels: uint8 (N, H, W, 3), contiguous.
        arguments: of `affine_arguments`, on the same device.
        nearest: the interpolation of all images is nearest; else each has its own.
        one_axis: there is no rotation: along the second axis each pixel comes from the middle of its own line.
    """
    n, h, w, _ = pixels.shape
    matrix, size, stride, fill, cubic = arguments.split(_PARTS, dim=1)
    a, b, c = matrix.view(n, 2, 3, 1, 1).unbind(2)  # each (N, 2, 1, 1)
    size, strides = size.view(n, 2, 1, 1), stride.int().view(n, 2, 1, 1).unbind(1)
    limits = (size - 1).int().unbind(1)
    centers = torch.arange(max(h, w), dtype=torch.float64, device=pixels.device) + 0.5
    at = a * centers[:w] + b * centers[:h, None] + c  # (N, 2, H, W)
    inside = ((at >= 0) & (at < size)).all(1).unsqueeze(-1)
    if not nearest:
        at = at - 0.5
    floor = at.floor()
    t = (at - floor).float().unsqueeze(-1).unbind(1)
    whole = floor.int().unbind(1)
    del at, floor

    def offsets(axis: int, steps: Tensor | int) -> Tensor:
        """Of the input pixels so many steps from `whole`, the border repeated."""
        return (whole[axis] + steps).clamp_(min=0).minimum(limits[axis]).mul_(strides[axis])

    images = torch.arange(0, n * h * w, h * w, dtype=torch.int32, device=pixels.device).view(n, 1, 1)
    flat = pixels.view(-1, 3).float()

    def taps(offset: Tensor) -> Tensor:
        return flat.index_select(0, offset.flatten()).view(*offset.shape, 3)

    if nearest:
        value = taps(offsets(0, 0) + offsets(1, 0).add_(images))
    else:
        cubic = cubic.float().view(n, 1, 1, 1)
        steps = torch.arange(-1, 3, dtype=torch.int32, device=pixels.device).view(4, 1, 1, 1)
        along = offsets(0, steps)
        if one_axis:
            value = _between(taps(along + offsets(1, 0).add_(images)), t[0], cubic)
        else:
            lines = [_between(taps(along + line), t[0], cubic) for line in offsets(1, steps).add_(images)]
            value = _between(lines, t[1], cubic)
    return torch.where(inside, value.clamp_(0, 255), fill.float()[:, None, None, :]).to(torch.uint8)


def _between(values: Tensor | list[Tensor], t: Tensor, cubic: Tensor) -> Tensor:
    """Interpolates between the middle two of four neighbors, t in [0, 1): linearly, or by the cubic where that is 1."""
    before, start, end, after = values
    first, last = (before - start).mul_(cubic), (end - after).mul_(cubic)
    curve = torch.addcmul(torch.add(last, first, alpha=2), first + last, t, value=-1)
    slope = (end - start).sub_(first)
    return torch.addcmul(start, torch.addcmul(slope, curve, t), t)
