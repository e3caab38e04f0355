"""Samples and batches of joint depth upsampling: crops, low resolution, missing measurements, worker processes."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from ddfnet.data.batches import Batch
from ddfnet.data.loader import make_loader, raise_if_failed
from ddfnet.data.rng import SAMPLE, entry_key, key_seeds
from ddfnet.data.sampler import Request, TrainSampler, eval_indices
from ddfnet.tasks.depth.pairs import DepthPairs
from ddfnet.utils.errors import DataError

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the guidance is normalized with: ImageNet's, as usual for photographs; PAC-Net takes RGB in [0, 1]."""

Sample = dict[str, np.ndarray]


def depth_sample(rgb: np.ndarray, depth: np.ndarray, valid: np.ndarray, *, factor: int, phase: int) -> Sample:
    """The inputs and the target of one image, padded to whole cells of factor x factor pixels.

    The low resolution keeps the pixel at (phase, phase) of every cell: nearest-neighbor downsampling of the ground
    truth, as in the paper. Where nothing was measured there, the value comes from the neighboring samples
    (`fill_missing`). The padding at the bottom and the right repeats the last row and column; it is never valid.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), meters, 0 where nothing was measured.
        valid: bool (H, W): where loss and metric look; False wherever the depth is 0.
        factor, phase: of the low resolution.

    Returns:
        guidance uint8 (3, H', W'), depth float32 and valid bool (1, H', W'), low float32 (1, H'/factor, W'/factor).
    """
    extra = [(0, -size % factor) for size in depth.shape]
    rgb = np.pad(rgb, (*extra, (0, 0)), mode="edge")
    depth = np.pad(depth, extra, mode="edge")
    low = fill_missing(depth[phase::factor, phase::factor])
    valid = np.pad(valid, extra)
    return {
        "guidance": np.ascontiguousarray(rgb.transpose(2, 0, 1)),
        "low": low[None],
        "depth": depth[None],
        "valid": valid[None],
    }


def fill_missing(depth: np.ndarray) -> np.ndarray:
    """Fills holes (0) from their rims inwards: each pass gives the missing pixels beside (or diagonal to) known ones
    the mean of those. A map without any measurement stays 0.

    Args:
        depth: float32 (h, w), 0 where nothing was measured.
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


class DepthTrainReader(Dataset):
    """Reads whole training batches; runs in the workers. Crop and flip depend on (seed, epoch, i) alone.

    Args:
        pairs: the training pairs.
        factor, phase: of the low resolution.
        crop: side of the crops, pixels, a multiple of the factor; the phase counts from the crop's corner.
        border: pixels at the edge of the images that no loss sees.
        hflip: probability of a horizontal flip.
        seed: keys the draws.
    """

    def __init__(
        self, pairs: DepthPairs, *, factor: int, phase: int, crop: int, border: int, hflip: float, seed: int
    ) -> None:
        self.pairs, self.factor, self.phase = pairs, factor, phase
        self.crop, self.border, self.hflip, self.seed = crop, border, hflip, seed

    def __getitems__(self, requests: list[Request]) -> Batch | DataError:
        try:
            samples = [self.sample(request) for request in requests]
        except DataError as error:
            return error  # as a value: raised here, its message would reach the user inside a worker's traceback
        return _collate(samples, [i for _, i, _ in requests])

    def sample(self, request: Request) -> Sample:
        epoch, i, repeat = request
        rgb, depth = self.pairs.read(i)
        height, width = depth.shape
        if min(height, width) < self.crop:
            raise DataError(
                f"{self.pairs.name(i)} has {width} x {height} pixels, less than data.crop={self.crop}: lower data.crop "
                "or remove the pair"
            )
        valid = valid_pixels(depth, self.border)
        rng = np.random.default_rng(key_seeds(*entry_key(SAMPLE, self.seed, epoch, i, repeat))[0])
        top, left = rng.integers(height - self.crop + 1), rng.integers(width - self.crop + 1)
        window = (slice(top, top + self.crop), slice(left, left + self.crop))
        views = [array[window] for array in (rgb, depth, valid)]
        if rng.random() < self.hflip:
            views = [view[:, ::-1] for view in views]
        return depth_sample(*views, factor=self.factor, phase=self.phase)


class DepthEvalReader(Dataset):
    """Reads whole images, and groups those of a batch that have the same size; runs in the workers."""

    def __init__(self, pairs: DepthPairs, *, factor: int, phase: int, border: int) -> None:
        self.pairs, self.factor, self.phase, self.border = pairs, factor, phase, border

    def __getitems__(self, requests: list[int]) -> list[Batch] | DataError:
        groups: dict[tuple[int, ...], list[tuple[Sample, int]]] = {}
        try:
            for i in requests:
                rgb, depth = self.pairs.read(i)
                valid = valid_pixels(depth, self.border)
                sample = depth_sample(rgb, depth, valid, factor=self.factor, phase=self.phase)
                groups.setdefault(sample["low"].shape, []).append((sample, i))
        except DataError as error:
            return error
        return [_collate(*zip(*group, strict=True)) for group in groups.values()]


def depth_train_batches(
    reader: DepthTrainReader,
    sampler: TrainSampler,
    *,
    device: torch.device,
    num_workers: int,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """The training batches of a whole run, in the sampler's order.

    Returns:
        Iterator over dictionaries on the device: "low" (B, 1, h, w) float32, meters, no holes; "guidance" float32
        (B, 3, H, W), normalized; "depth" float32 and "valid" bool (B, 1, H, W); on the CPU "index" int64 (B,).

    Raises:
        DataError: while iterating: a file is broken, of the wrong kind, or smaller than the crop. No image is
            replaced: such sets are small, and each pair counts.
    """
    loader = make_loader(reader, sampler, device=device, num_workers=num_workers, persistent=False)
    return _train_stream(iter(loader), device, channels_last)


def _train_stream(
    host_batches: Iterator[Batch | DataError], device: torch.device, channels_last: bool
) -> Iterator[Batch]:
    try:
        for batch in host_batches:
            raise_if_failed(batch)
            yield _to_device(batch, device, channels_last)
    finally:
        del host_batches  # ends the workers now: an error's traceback would keep this frame, and them, alive


class DepthEvalBatches:
    """This process's share of an evaluation set, whole images, each exactly once over all processes.

    Iterable as often as wished (workers stay); batches as of `depth_train_batches`. Images of `batch_size` at a time
    are read, those of equal size become one batch.
    """

    def __init__(
        self,
        reader: DepthEvalReader,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        num_workers: int,
        channels_last: bool = False,
    ) -> None:
        batches = BatchSampler(eval_indices(len(reader.pairs), rank, world_size), batch_size, drop_last=False)
        self.loader = make_loader(reader, batches, device=device, num_workers=num_workers, persistent=True)
        self.device, self.channels_last = device, channels_last

    def __iter__(self) -> Iterator[Batch]:
        for groups in self.loader:
            raise_if_failed(groups)
            for batch in groups:
                yield _to_device(batch, self.device, self.channels_last)


def normalize_guidance(guidance: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float32, normalized by RGB_MEAN and RGB_STD."""
    return (guidance / 255 - guidance.new_tensor(RGB_MEAN, dtype=torch.float32).view(3, 1, 1)) / guidance.new_tensor(
        RGB_STD, dtype=torch.float32
    ).view(3, 1, 1)


def denormalize_guidance(guidance: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalize_guidance`, in [0, 1]."""
    return guidance * guidance.new_tensor(RGB_STD).view(3, 1, 1) + guidance.new_tensor(RGB_MEAN).view(3, 1, 1)


def _collate(samples: Iterable[Sample], indices: Iterable[int]) -> Batch:
    samples = list(samples)
    batch: Batch = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    return {**batch, "index": torch.tensor(list(indices), dtype=torch.int64)}


def _to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    moved = {key: batch[key].to(device, non_blocking=True) for key in ("guidance", "low", "depth", "valid")}
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    moved["guidance"] = normalize_guidance(moved["guidance"]).contiguous(memory_format=memory_format)
    return {**batch, **moved}
