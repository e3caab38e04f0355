"""Samples and batches of joint depth upsampling: crops, low resolution, missing measurements."""

from collections.abc import Sequence

import numpy as np
import torch

from ddfnet.data.batches import Batch
from ddfnet.data.ring import reading
from ddfnet.data.rng import SAMPLE, entry_key, key_seeds
from ddfnet.data.sampler import Request
from ddfnet.tasks.depth.config import DepthData
from ddfnet.tasks.depth.network import sampling_phase
from ddfnet.tasks.depth.pairs import DepthPairs
from ddfnet.utils.errors import DataError

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of the guidance: ImageNet's, as usual for photographs; PAC-Net takes RGB in [0, 1]."""

Sample = dict[str, np.ndarray]


class DepthReader:
    """Batches on the CPU, for `ddfnet.data.loader`: "index" int64 (B,) and, stacked, what `depth_sample` returns.

    A file that is corrupt, of the wrong kind, or smaller than the crop is a DataError. No image is replaced: such sets
    are small, and each pair counts. Crops and flips depend on (seed, epoch, i) alone.
    """

    def __init__(self, pairs: DepthPairs, data: DepthData, *, hflip: float = 0.0, seed: int = 0) -> None:
        self.pairs, self.data, self.hflip, self.seed = pairs, data, hflip, seed

    def read(self, requests: list[Request]) -> Batch:
        """One micro-batch of training crops."""
        return _collate([self.crop(request) for request in requests], [i for _, i, _ in requests])

    def read_eval(self, indices: list[int]) -> list[Batch]:
        """Whole images; those of the same size become one batch."""
        groups: dict[tuple[int, ...], list[tuple[Sample, int]]] = {}
        for i in indices:
            reading(i)
            rgb, depth = self.pairs.read(i)
            sample = self._sample(rgb, depth, valid_pixels(depth, self.data.border))
            groups.setdefault(sample["low"].shape, []).append((sample, i))
        return [_collate(*zip(*group, strict=True)) for group in groups.values()]

    def crop(self, request: Request) -> Sample:
        """A training crop; the phase of its low resolution counts from the crop's corner."""
        epoch, i, repeat = request
        reading(i)
        rgb, depth = self.pairs.read(i)
        (height, width), side = depth.shape, self.data.crop
        if min(height, width) < side:
            raise DataError(
                f"{self.pairs.name(i)} has {width} x {height} pixels, less than data.crop={side}: lower data.crop "
                "or remove the pair"
            )
        valid = valid_pixels(depth, self.data.border)
        rng = np.random.default_rng(key_seeds(*entry_key(SAMPLE, self.seed, epoch, i, repeat))[0])
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        views = [array[top : top + side, left : left + side] for array in (rgb, depth, valid)]
        if rng.random() < self.hflip:
            views = [view[:, ::-1] for view in views]
        return self._sample(*views)

    def _sample(self, rgb: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> Sample:
        return depth_sample(rgb, depth, valid, factor=self.data.factor, phase=sampling_phase(self.data.factor))


def depth_sample(rgb: np.ndarray, depth: np.ndarray, valid: np.ndarray, *, factor: int, phase: int) -> Sample:
    """The inputs and the target of one image, padded to whole cells of factor x factor pixels.

    The low resolution keeps the pixel at (phase, phase) of every cell: nearest-neighbor downsampling of the ground
    truth, as in the paper. Where nothing was measured there, the value comes from the neighboring samples
    (`fill_missing`). The padding at the bottom and the right repeats the last row and column; it is never valid.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), meters, 0 where nothing was measured.
        valid: bool (H, W): where loss and metric look; False wherever the depth is 0.
        factor, phase: of the low resolution, see `sampling_phase`.

    Returns:
        guidance uint8 (3, H', W'), depth float32 and valid bool (1, H', W'), low float32 (1, H'/factor, W'/factor).
    """
    extra = [(0, -size % factor) for size in depth.shape]
    rgb = np.pad(rgb, (*extra, (0, 0)), mode="edge")
    depth = np.pad(depth, extra, mode="edge")
    return {
        "guidance": np.ascontiguousarray(rgb.transpose(2, 0, 1)),
        "low": fill_missing(depth[phase::factor, phase::factor])[None],
        "depth": depth[None],
        "valid": np.pad(valid, extra)[None],
    }


def fill_missing(depth: np.ndarray) -> np.ndarray:
    """Fills holes (0) from their rims inwards: each pass gives the missing pixels beside (or diagonal to) known ones
    the mean of those. float32 (h, w); a map without any measurement stays 0.
    """
    if depth.all() or not depth.any():
        return depth.copy()
    # Known values are positive, so that the sum over a window of values and of ones tells all there is to know.
    filled = np.pad(depth.astype(np.float64), 1)
    inside = filled[1:-1, 1:-1]
    while True:
        missing = inside == 0
        if not missing.any():
            return inside.astype(np.float32)
        known = (filled > 0).astype(np.float64)
        sums, counts = _window_sum(filled), _window_sum(known)
        reached = missing & (counts > 0)
        inside[reached] = sums[reached] / counts[reached]


def _window_sum(padded: np.ndarray) -> np.ndarray:
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def valid_pixels(depth: np.ndarray, border: int) -> np.ndarray:
    """bool (H, W): measured, and at least `border` pixels from the edge of the image."""
    valid = np.zeros(depth.shape, bool)
    inner = (slice(border, depth.shape[0] - border), slice(border, depth.shape[1] - border))
    valid[inner] = depth[inner] > 0
    return valid


def with_normal_guidance(batch: Batch, *, channels_last: bool = False) -> Batch:
    """The batch with its guidance normalized, in the given memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return {**batch, "guidance": normalize_guidance(batch["guidance"]).contiguous(memory_format=memory_format)}


def normalize_guidance(guidance: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32, normalized by RGB_MEAN and RGB_STD."""
    scaled = guidance / 255
    return (scaled - scaled.new_tensor(RGB_MEAN).view(3, 1, 1)) / scaled.new_tensor(RGB_STD).view(3, 1, 1)


def denormalize_guidance(guidance: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalize_guidance`, in [0, 1]."""
    return guidance * guidance.new_tensor(RGB_STD).view(3, 1, 1) + guidance.new_tensor(RGB_MEAN).view(3, 1, 1)


def _collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    batch: Batch = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    return {**batch, "index": torch.tensor(indices, dtype=torch.int64)}
