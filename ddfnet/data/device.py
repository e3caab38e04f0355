"""What happens to a whole batch on the device: normalisation, random erasing, mixup and CutMix."""

from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

from ddfnet.data.rng import BATCH, entry_key, keyed_generators
from ddfnet.data.transforms import Preprocessing

Batch = dict[str, Any]


class Normalize:
    """uint8 images to normalised float32 ones: `(value / 255 - mean) / std` per channel.

    Args:
        preprocessing: gives mean and std.
        device: where the images are.
        channels_last: memory format of the result.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, device: torch.device | str, channels_last: bool = False
    ) -> None:
        # Scaled by 255 here, so that the images need two passes instead of three.
        self.mean = 255 * torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> float32 of the same shape."""
        return image.to(torch.float32, memory_format=self.memory_format).sub_(self.mean).div_(self.std)


class EvalBatchTransform:
    """Normalise an evaluation batch; see `Normalize`. `batch["image"]` changes, the rest is passed on."""

    def __init__(
        self, preprocessing: Preprocessing, *, device: torch.device | str, channels_last: bool = False
    ) -> None:
        self.normalize = Normalize(preprocessing, device=device, channels_last=channels_last)

    def __call__(self, batch: Batch) -> Batch:
        """Replace "image", (B, 3, H, W) uint8 on the device, by float32."""
        return {**batch, "image": self.normalize(batch["image"])}


class TrainBatchTransform:
    """Normalise, then erase, then mix a training batch on its device.

    Draws are keyed by (seed, epoch, index and repeat of the batch's first image): they do not depend on the number of
    processes or on restarts, and the global generators of the main process are left as found.

    Args:
        preprocessing: gives mean and std.
        device: where the batches are.
        seed: keys the draws.
        num_classes: width of mixed targets.
        micro_batch: images per batch; mixing pairs each image with another one, so it must then be even.
        channels_last: memory format of the images.
        erasing_prob: probability per image that rectangles are erased (Random Erasing, arXiv 1708.04896; timm's).
        erasing_mode: "const" (zero, the mean colour), "rand" (one random colour) or "pixel" (noise).
        erasing_count: at most so many rectangles per image.
        mixup_alpha, cutmix_alpha: parameter of the Beta distribution of mixup (arXiv 1710.09412) and CutMix
            (arXiv 1905.04899); 0 switches one off. Both 0: targets stay class indices.
        mix_prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix where both are on.
        label_smoothing: of the mixed targets. **Acts here only if mixup or CutMix is on**; else the loss must smooth.
        mixup_off_epoch: images are no longer mixed from this epoch (counted from 0) on. Targets stay (smoothed) one-hot
            rows, so the loss keeps its form.

    Raises:
        ValueError: an argument is out of range, or `micro_batch` is odd while mixing is on.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        device: torch.device | str,
        seed: int,
        num_classes: int,
        micro_batch: int,
        channels_last: bool = False,
        erasing_prob: float = 0.0,
        erasing_mode: str = "pixel",
        erasing_count: int = 1,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mix_prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.0,
        mixup_off_epoch: int | None = None,
    ) -> None:
        probabilities = {"erasing_prob": erasing_prob, "mix_prob": mix_prob, "switch_prob": switch_prob}
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if erasing_mode not in ("const", "rand", "pixel"):
            raise ValueError(f"erasing_mode must be 'const', 'rand' or 'pixel', got {erasing_mode!r}")
        if erasing_count < 1:
            raise ValueError(f"erasing_count must be at least 1, got {erasing_count}")
        if mixup_alpha < 0 or cutmix_alpha < 0:
            raise ValueError(f"mixup_alpha and cutmix_alpha must be >= 0, got {mixup_alpha} and {cutmix_alpha}")

        self.device = torch.device(device)
        self.seed = seed
        self.normalize = Normalize(preprocessing, device=device, channels_last=channels_last)
        self.mixup_off_epoch = mixup_off_epoch
        self.erasing = None
        if erasing_prob > 0:
            self.erasing = RandomErasing(
                erasing_prob, mode=erasing_mode, max_count=erasing_count, device=str(self.device)
            )
        self.mixup = None
        if mixup_alpha > 0 or cutmix_alpha > 0:
            if micro_batch % 2:
                raise ValueError(
                    f"mixup and CutMix pair the images of a batch, which must be even, got micro_batch={micro_batch} "
                    "(images per process and accumulation step); choose an even one or switch mixup and CutMix off"
                )
            self.mixup = Mixup(
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mix_prob,
                switch_prob=switch_prob,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, batch: Batch) -> Batch:
        """Transform one batch.

        Args:
            batch: "image" (B, 3, H, W) uint8 and "target" (B,) int64 on the device; "index" and "repeat" (B,) int64 on
                the CPU and "epoch" int.

        Returns:
            The batch with "image" float32 and "target" int64 (B,), or float32 (B, num_classes) if mixing is on.
        """
        image, target = self.normalize(batch["image"]), batch["target"]
        if self.erasing is not None or self.mixup is not None:
            epoch = batch["epoch"]
            # The repeats of one image may lead micro-batches of the same step: without "repeat" those would mix alike.
            key = entry_key(BATCH, self.seed, epoch, int(batch["index"][0]), int(batch["repeat"][0]))
            with keyed_generators(*key, device=self.device):
                if self.erasing is not None:
                    image = self.erasing(image)
                if self.mixup is not None:
                    self.mixup.mixup_enabled = self.mixup_off_epoch is None or epoch < self.mixup_off_epoch
                    image, target = self.mixup(image, target)
        return {**batch, "image": image, "target": target}
