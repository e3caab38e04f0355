"""Random erasing (arXiv 1708.04896) of a whole batch on its device, with the boxes of timm's distribution."""

import math

import numpy as np
import torch
from torch import Tensor

from ddfnet.data.augment import ErasingConfig
from ddfnet.data.rng import BATCH, ERASING, entry_key, key_seeds, uniforms

_AREA = (0.02, 1 / 3)  # of the image, all boxes together
_ASPECT = 1 / 0.3  # most, and the inverse of the least
_ATTEMPTS = 10  # to draw a box that fits
_DRAWS = 2 * _ATTEMPTS + 2
_CHUNK = 64  # images: bounds the memory for their noise


class BatchErasing:
    """Erases boxes of a normalized batch.

    The boxes of an image depend on its (seed, epoch, index, repeat) alone, the noise in them on the batch, too.
    """

    def __init__(self, config: ErasingConfig, *, device: torch.device | str, seed: int) -> None:
        self.config, self.device, self.seed = config, torch.device(device), seed
        self.generator = torch.Generator(self.device)

    def __call__(self, images: Tensor, epoch: int, indices: Tensor, repeats: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W) on the device, changed in place; indices and repeats (B,) on the CPU."""
        _, _, height, width = images.shape
        u = uniforms(ERASING, self.seed, epoch, indices.numpy(), repeats.numpy(), 2 + self.config.count * _DRAWS)
        boxes = draw_boxes(u, self.config.p, self.config.count, height, width)
        key = entry_key(BATCH, self.seed, epoch, int(indices[0]), int(repeats[0]))
        self.generator.manual_seed(key_seeds(*key)[2])
        for column in range(self.config.count):
            rows = np.flatnonzero(boxes[:, column].any(1))
            for some in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
                if len(some):
                    self._erase(images, np.hstack([some[:, None], boxes[some, column]]))
        return images

    def _erase(self, images: Tensor, boxes: np.ndarray) -> None:
        """Boxes int64 (n, 5): number of the image, top, left, bottom, right."""
        host = torch.from_numpy(boxes)
        if self.device.type == "cuda":
            host = host.pin_memory()
        rows, top, left, bottom, right = host.to(self.device, non_blocking=True).unbind(1)
        _, channels, height, width = images.shape
        y = torch.arange(height, device=self.device)
        x = torch.arange(width, device=self.device)
        inside_y = (y >= top[:, None]) & (y < bottom[:, None])
        inside_x = (x >= left[:, None]) & (x < right[:, None])
        inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
        chosen = images.index_select(0, rows)
        images.index_copy_(0, rows, torch.where(inside, self._fill(len(boxes), channels, height, width), chosen))

    def _fill(self, n: int, channels: int, height: int, width: int) -> Tensor:
        if self.config.mode == "const":
            return torch.zeros((), device=self.device)
        shape = (n, channels, 1, 1) if self.config.mode == "rand" else (n, channels, height, width)
        return torch.randn(shape, device=self.device, generator=self.generator)


def draw_boxes(u: np.ndarray, p: float, most: int, height: int, width: int) -> np.ndarray:
    """Boxes to erase: uniform draws (B, 2 + 22 most) -> int64 (B, most, 4) of top, left, bottom, right; zeros for none.

    As timm draws them: with probability p an image gets 1 to `most` boxes, which share the area to erase. Each has 10
    attempts to be smaller than the image, else it is left out.
    """
    counts = np.minimum(1 + (u[:, 1] * most).astype(np.int64), most)[:, None, None]
    u_box = u[:, 2:].reshape(len(u), most, _DRAWS)
    u_area, u_aspect, u_top, u_left = np.split(u_box, (_ATTEMPTS, 2 * _ATTEMPTS, 2 * _ATTEMPTS + 1), axis=2)
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * u_area) * height * width / counts
    aspect = np.exp(math.log(_ASPECT) * (2.0 * u_aspect - 1.0))
    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    first = fits.argmax(2)[..., None]
    tall, wide = np.take_along_axis(tall, first, 2), np.take_along_axis(wide, first, 2)
    erased = (u[:, :1, None] < p) & (np.arange(most)[:, None] < counts) & fits.any(2, keepdims=True)
    # A draw just below 1 may round up to the end, past the last position.
    top = np.minimum(np.floor(u_top * (height - tall + 1)), height - tall)
    left = np.minimum(np.floor(u_left * (width - wide + 1)), width - wide)
    boxes = np.concatenate([top, left, top + tall, left + wide], axis=2)
    return np.where(erased, boxes, 0).astype(np.int64)
