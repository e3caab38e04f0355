"""A policy's operations on a whole batch, on any device, without waiting for it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.policy import pixels as kernels
from ddfnet.data.policy.affine import affine, matrices
from ddfnet.data.policy.table import CODE, INTERPOLATION, VALUE, Op, PolicyTable

# Pixels that a kernel is given at once. The largest takes 200 bytes of memory for each.
_CHUNK = {"cpu": 2**16, "cuda": 2**20}

_COLOR: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.AUTOCONTRAST: kernels.autocontrast,
    Op.EQUALIZE: kernels.equalize,
    Op.INVERT: kernels.invert,
    Op.POSTERIZE: kernels.posterize,
    Op.SOLARIZE: kernels.solarize,
    Op.SOLARIZE_ADD: kernels.solarize_add,
    Op.BRIGHTNESS: kernels.brightness,
    Op.CONTRAST: kernels.contrast,
    Op.COLOR: kernels.color,
    Op.SHARPNESS: kernels.sharpness,
    Op.GAUSSIAN_BLUR: kernels.gaussian_blur,
}


class _Job(NamedTuple):
    """One kernel and the images of a layer that it acts on."""

    kernel: Callable[[Tensor, Tensor], Tensor]
    rows: np.ndarray  # int (n,)
    arguments: np.ndarray  # float64 (n, ...)


def apply_policy(images: Tensor, table: PolicyTable, fill: tuple[int, int, int]) -> Tensor:
    """The operations of a batch: the same as `Policy.apply` image by image, but for 1 level.

    The draws go to the device in one copy. Further memory beyond a copy of the batch: up to 200 MB on CUDA.

    Args:
        images: uint8 (B, 3, H, W), any strides; not changed.
        table: of `Policy.draw`, on the CPU, float32 (B, layers, 3).
        fill: RGB of what an affine operation leaves empty.

    Returns:
        uint8 (B, 3, H, W), channels_last.
    """
    table = np.asarray(table)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if table.ndim != 3 or table.shape[::2] != (len(images), 3):
        raise ValueError(f"table must be ({len(images)}, layers, 3) for {len(images)} images, got {table.shape}")
    if (table[..., CODE] == Op.AUGMIX).any():
        raise ValueError("AugMix has no batched form: use Policy.apply (augment.where=cpu)")
    pixels = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    _, height, width, _ = pixels.shape
    jobs = [job for layer in range(table.shape[1]) for job in _jobs(table[:, layer], height, width, fill)]
    per_kernel = max(1, _CHUNK.get(pixels.device.type, 2**16) // (height * width))
    for job, (rows, arguments) in zip(jobs, _on_device(jobs, pixels.device), strict=True):
        for some, values in zip(rows.split(per_kernel), arguments.split(per_kernel), strict=True):
            pixels.index_copy_(0, some, job.kernel(pixels.index_select(0, some), values))
    return pixels.permute(0, 3, 1, 2)


def _jobs(layer: np.ndarray, height: int, width: int, fill: tuple[int, int, int]) -> Iterator[_Job]:
    """The jobs of one layer of a table, (B, 3). They touch different images, so their order does not matter."""
    codes, values, interpolations = layer[:, CODE], layer[:, VALUE].astype(np.float64), layer[:, INTERPOLATION]
    for op, kernel in _COLOR.items():
        (rows,) = np.nonzero(codes == op)
        if len(rows):
            yield _Job(kernel, rows, values[rows])
    for interpolation in np.unique(interpolations[codes >= Op.ROTATE]).astype(int):
        fits = (codes >= Op.ROTATE) & (interpolations == interpolation)
        for one_axis in (False, True):
            (rows,) = np.nonzero(fits & ((codes != Op.ROTATE) == one_axis))
            if len(rows):
                matrix = matrices(codes[rows], values[rows], interpolation, height, width)
                arguments = np.hstack([matrix, np.tile(fill, (len(rows), 1))])
                yield _Job(partial(_affine, interpolation=int(interpolation), one_axis=one_axis), rows, arguments)


def _affine(pixels: Tensor, arguments: Tensor, *, interpolation: int, one_axis: bool) -> Tensor:
    matrix, fill = arguments.split((6, 3), dim=1)
    return affine(pixels, matrix, fill.float(), interpolation, one_axis=one_axis)


def _on_device(jobs: list[_Job], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows (int64) and arguments of all jobs (float32, those of matrices float64), by a single copy."""
    flat = [array.ravel().astype(np.float64) for job in jobs for array in (job.rows, job.arguments)]
    host = torch.from_numpy(np.concatenate(flat) if flat else np.zeros(0))
    if device.type == "cuda":
        host = host.pin_memory()
    parts = iter(host.to(device, non_blocking=True).split([len(array) for array in flat]))
    for job in jobs:
        rows, arguments = next(parts).long(), next(parts)
        yield rows, arguments.float() if job.arguments.ndim == 1 else arguments.view(job.arguments.shape)
