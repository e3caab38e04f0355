"""Transforms of a whole batch on the device: policy, normalization, random erasing, mixup and CutMix."""

from typing import Any

import torch
from timm.data import Mixup

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.erasing import BatchErasing
from ddfnet.data.policy import apply_policy, fill_color
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import BATCH, entry_key, keyed_generators

Batch = dict[str, Any]


class EvalBatchTransform:
    """Normalizes the images of a batch on `device`: `(value / 255 - mean) / std` per channel."""

    def __init__(
        self, preprocessing: Preprocessing, *, device: torch.device | str, channels_last: bool = False
    ) -> None:
        # Scaled by 255 here, so that the images need two passes instead of three.
        self.mean = 255 * torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
        self.std = 255 * torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, batch: Batch) -> Batch:
        """Replaces "image", (B, C, H, W) uint8 on the device, by float32; the rest is passed on."""
        image = batch["image"].to(torch.float32, memory_format=self.memory_format)
        return {**batch, "image": image.sub_(self.mean).div_(self.std)}


class TrainBatchTransform(EvalBatchTransform):
    """Applies the policy, where a batch brings one, then normalizes, erases and mixes, all on the batch's device.

    Draws are keyed: those of the policy and the boxes to erase by (seed, epoch, index, repeat) of each image, noise and
    mixing by those of the batch's first image. They do not depend on the number of processes or on restarts, and the
    global generators of the main process are left as they were.

    Args:
        augment: random erasing (arXiv 1708.04896), timm's mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).
            From `mixup_off_epoch` on (counted from 0) images are no longer mixed; targets stay (smoothed) one-hot
            rows, so the loss keeps its form.
        seed: keys the draws.
        num_classes: width of mixed targets.
        label_smoothing: of the mixed targets. **Acts here only if mixup or CutMix is on**; else the loss must smooth.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augment: AugmentConfig,
        *,
        device: torch.device | str,
        seed: int,
        num_classes: int,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__(preprocessing, device=device, channels_last=channels_last)
        self.device, self.seed, self.mixup_off_epoch = torch.device(device), seed, augment.mixup_off_epoch
        self.fill = fill_color(preprocessing)
        self.erasing = self.mixup = None
        if augment.erasing.p > 0:
            self.erasing = BatchErasing(augment.erasing, device=self.device, seed=seed)
        if augment.mixes:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                cutmix_minmax=augment.cutmix_minmax,
                mode=augment.mixup_mode,
                prob=augment.mixup_prob,
                switch_prob=augment.mixup_switch_prob,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, batch: Batch) -> Batch:
        """A batch of `TrainDataset.read`, on the device but for "index", "repeat" and "policy", with "image" float32,
        and with "target" int64 (B,), or float32 (B, num_classes) if mixing is on."""
        table = batch.get("policy")
        if table is not None:
            batch = {key: value for key, value in batch.items() if key != "policy"}
            image = batch["image"]
            colors = image.expand(-1, 3, -1, -1)  # gray as RGB
            batch["image"] = apply_policy(colors, table, self.fill)[:, : image.shape[1]]
        batch = super().__call__(batch)
        image, target, epoch = batch["image"], batch["target"], batch["epoch"]
        if self.erasing is not None:
            image = self.erasing(image, epoch, batch["index"], batch["repeat"])
        if self.mixup is not None:
            # The repeats of one image may lead micro-batches of the same step: without "repeat" those would mix alike.
            key = entry_key(BATCH, self.seed, epoch, int(batch["index"][0]), int(batch["repeat"][0]))
            self.mixup.mixup_enabled = self.mixup_off_epoch is None or epoch < self.mixup_off_epoch
            with keyed_generators(*key):  # timm draws from numpy's
                image, target = self.mixup(image, target)
        return {**batch, "image": image, "target": target}
