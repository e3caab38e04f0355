"""A policy's operations on a whole batch, on any device, without waiting for it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.policy import pixels as kernels
from ddfnet.data.policy.affine import affine, affine_arguments
from ddfnet.data.policy.table import CODE, INTERPOLATION, NEAREST, VALUE, Op, PolicyTable

# Bytes that the kernels may fill at once beyond the batch; on a CPU what its caches hold.
_MEMORY = {"cpu": 2**22, "cuda": 2**28}
_COLOR_BYTES, _BLUR_BYTES, _AFFINE_BYTES = 60, 124, 224  # that a kernel needs for each pixel, at its peak

_BY_IMAGE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.AUTOCONTRAST: kernels.autocontrast,
    Op.EQUALIZE: kernels.equalize,
    Op.CONTRAST: kernels.contrast,
    Op.COLOR: kernels.color,
    Op.SHARPNESS: kernels.sharpness,
    Op.GAUSSIAN_BLUR: kernels.gaussian_blur,
}


class _Job(NamedTuple):
    """One kernel and the images of a layer that it acts on."""

    kernel: Callable[[Tensor, Tensor], Tensor]
    pixel_bytes: int
    rows: np.ndarray  # int64 (n,)
    arguments: np.ndarray  # (n, ...), of the kernel's dtype


def apply_policy(images: Tensor, table: PolicyTable, fill: tuple[int, int, int]) -> Tensor:
    """The operations of a batch: the same as `Policy.apply` image by image, but for 1 level.

    What is drawn goes to the device in at most four copies. Memory beyond a copy of the batch: up to 256 MB on CUDA.

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
    memory = _MEMORY.get(pixels.device.type, 2**22)
    for job, (rows, arguments) in zip(jobs, _on_device(jobs, pixels.device), strict=True):
        at_once = max(1, memory // (job.pixel_bytes * height * width))
        for some, values in zip(rows.split(at_once), arguments.split(at_once), strict=True):
            pixels.index_copy_(0, some, job.kernel(pixels.index_select(0, some), values))
    return pixels.permute(0, 3, 1, 2)


def _jobs(layer: np.ndarray, height: int, width: int, fill: tuple[int, int, int]) -> Iterator[_Job]:
    """The jobs of one layer of a table, (B, 3). They touch different images, so their order does not matter."""
    codes, values, interpolations = layer[:, CODE], layer[:, VALUE].astype(np.float64), layer[:, INTERPOLATION]
    (rows,) = np.nonzero(np.isin(codes, list(kernels.BY_VALUE)))
    if len(rows):
        yield _Job(kernels.look_up, _COLOR_BYTES, rows, kernels.value_tables(codes[rows], values[rows]))
    for op, kernel in _BY_IMAGE.items():
        (rows,) = np.nonzero(codes == op)
        if len(rows):
            pixel_bytes = _BLUR_BYTES if op == Op.GAUSSIAN_BLUR else _COLOR_BYTES
            yield _Job(kernel, pixel_bytes, rows, values[rows].astype(np.float32))
    for nearest in (False, True):
        for one_axis in (False, True):
            fits = (codes >= Op.ROTATE) & ((interpolations == NEAREST) == nearest)
            (rows,) = np.nonzero(fits & ((codes != Op.ROTATE) == one_axis))
            if len(rows):
                arguments = affine_arguments(codes[rows], values[rows], interpolations[rows], height, width, fill)
                kernel = partial(affine, nearest=nearest, one_axis=one_axis)
                yield _Job(kernel, _AFFINE_BYTES, rows, arguments)


def _on_device(jobs: list[_Job], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and arguments of all jobs: all arrays of one dtype go by a single copy."""
    arrays = [array for job in jobs for array in (job.rows, job.arguments)]
    parts = {}
    for dtype in {array.dtype for array in arrays}:
        own = [array for array in arrays if array.dtype == dtype]
        host = torch.from_numpy(np.concatenate([array.ravel() for array in own]))
        if device.type == "cuda":
            host = host.pin_memory()
        parts[dtype] = iter(host.to(device, non_blocking=True).split([array.size for array in own]))
    for job in jobs:
        rows, arguments = (next(parts[array.dtype]).view(array.shape) for array in (job.rows, job.arguments))
        yield rows, arguments
