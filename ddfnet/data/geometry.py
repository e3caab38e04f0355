"""Geometry of training images: which crop of an image is shown, at which size, and which way round.

The draws of all images of a batch are made at once (`ddfnet.data.rng.uniforms`); what they mean depends on the size of
the image, which is known when it is read.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.jpeg import Box
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.resize import Interpolation, resize_into, resized_size

_ATTEMPTS = 10  # to find a random crop that fits into the image

# Positions of the draws of an image. Those of the attempts follow, two each: area and aspect ratio.
_INTERPOLATION, _HFLIP, _VFLIP, _LEFT, _TOP, _FIRST_ATTEMPT = range(6)


class Geometry:
    """Crop, resize and flips of training images.

    Random resized crops are drawn by timm's rule: up to 10 times an area and an aspect ratio, the latter uniform in its
    logarithm, then a position; where none fits, the largest center crop of an allowed ratio. A crop has at least one
    pixel, where timm fails for images of one to three pixels.

    Args:
        preprocessing: size of the crops; kernel of the resize; with `crop: pad`, its interpolation.
        augment: the recipe. With `crop: pad` the image is resized until it covers `size` (for a square: its short side
            to that), then a crop of `size` is taken from it with black pixels around, an eighth of `size` on each side.

    Attributes:
        count: draws per image.
    """

    def __init__(self, preprocessing: Preprocessing, augment: AugmentConfig) -> None:
        self.channels, self.height, self.width = preprocessing.input_size
        self.kernel = preprocessing.resize
        self.scale, self.ratio = augment.scale, augment.ratio
        self.hflip, self.vflip = augment.hflip, augment.vflip
        self.pad = (self.height // 8, self.width // 8) if augment.crop == "pad" else None
        self.interpolation = augment.interpolation
        if self.pad is not None and self.interpolation == "random":
            self.interpolation = preprocessing.interpolation
        self._log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])

    @property
    def count(self) -> int:
        return _FIRST_ATTEMPT if self.pad is not None else _FIRST_ATTEMPT + 2 * _ATTEMPTS

    def box(self, draws: Sequence[float], width: int, height: int) -> Box:
        """Random resized crop of an image of `width` x `height` pixels for its draws in [0, 1)."""
        (low, high), (log_low, log_high) = self.scale, self._log_ratio
        for attempt in range(_FIRST_ATTEMPT, _FIRST_ATTEMPT + 2 * _ATTEMPTS, 2):
            area = (low + (high - low) * draws[attempt]) * width * height
            ratio = math.exp(log_low + (log_high - log_low) * draws[attempt + 1])
            w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
            if w <= width and h <= height:
                left, top = int(draws[_LEFT] * (width - w + 1)), int(draws[_TOP] * (height - h + 1))
                return left, top, left + w, top + h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def write(self, pixels: np.ndarray, draws: Sequence[float], row: Tensor, box: Box | None = None) -> None:
        """Writes the crop of an image into a row of a batch.

        Args:
            pixels: uint8 (H, W, C).
            draws: of this image, `count` of them.
            row: uint8 (height, width, C).
            box: where `box` lies in `pixels`, if these are a part of the image only.
        """
        if self.pad is not None:
            padded = self.padded(self._covering(pixels)[None])
            return self.write_padded(padded, np.zeros(1, np.intp), np.array([draws]), row[None])
        height, width = pixels.shape[:2]
        box = box or self.box(draws, width, height)
        flips = {"hflip": draws[_HFLIP] < self.hflip, "vflip": draws[_VFLIP] < self.vflip}
        return resize_into(pixels, box, row, self._interpolation_of(draws), kernel=self.kernel, **flips)

    def pads(self, height: int, width: int) -> bool:
        """Whether images of this size are padded and cropped as they are: `write_padded` does a whole batch."""
        return self.pad is not None and self._covering_size(height, width) == (height, width)

    def padded(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, C) with `pad` black pixels around each."""
        down, right = self.pad or (0, 0)
        count, height, width, channels = images.shape
        result = np.zeros((count, height + 2 * down, width + 2 * right, channels), np.uint8)
        result[:, down : down + height, right : right + width] = images
        return result

    def write_padded(self, padded: np.ndarray, indices: np.ndarray, draws: np.ndarray, rows: Tensor) -> None:
        """`crop: pad` of a whole batch.

        Args:
            padded: of `padded`, images that covered `size`.
            indices: int (B,), which of them.
            draws: float64 (B, count).
            rows: uint8 (B, height, width, C), written.
        """
        size = self.height, self.width
        tops, lefts = (
            (draws[:, at] * (extent - side + 1)).astype(np.intp)
            for at, extent, side in zip((_TOP, _LEFT), padded.shape[1:3], size, strict=True)
        )
        crops = sliding_window_view(padded, size, axis=(1, 2))  # (N, tops, lefts, C, height, width)
        rows.numpy()[...] = crops.transpose(0, 1, 2, 4, 5, 3)[indices, tops, lefts]
        for at, rate, axis in ((_HFLIP, self.hflip, 2), (_VFLIP, self.vflip, 1)):
            chosen = np.flatnonzero(draws[:, at] < rate)
            if len(chosen):  # `rows[chosen]` would take ten times as long
                flipped = rows.index_select(0, torch.from_numpy(chosen)).flip(axis)
                rows.numpy()[chosen] = flipped.numpy()

    def _covering_size(self, height: int, width: int) -> tuple[int, int]:
        if self.height == self.width:
            return resized_size(height, width, self.height)
        ratio = min(height / self.height, width / self.width)
        return max(self.height, round(height / ratio)), max(self.width, round(width / ratio))

    def _covering(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self._covering_size(*pixels.shape[:2])
        if pixels.shape[:2] == (height, width):
            return pixels
        made = torch.empty(height, width, self.channels, dtype=torch.uint8)
        whole = 0, 0, pixels.shape[1], pixels.shape[0]
        resize_into(pixels, whole, made, self._interpolation_of([]), kernel=self.kernel)
        return made.numpy()

    def _interpolation_of(self, draws: Sequence[float]) -> Interpolation:
        if self.interpolation == "random":
            return "bilinear" if draws[_INTERPOLATION] < 0.5 else "bicubic"
        return self.interpolation
