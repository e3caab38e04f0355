"""Augmentation: its section of the configuration."""

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch

from ddfnet.config import Contradiction, Fault, Fraction, NonNegative, Pair, Positive, Section
from ddfnet.data.policy import Policy
from ddfnet.data.preprocessing import Interpolation, Preprocessing

_FLOAT = r"\d+(\.\d+)?"
# timm skips sections that it does not understand ("rand-m", "rand-tfoo"); a typing error in a recipe must not pass.
_AUGMENT_FORMATS = (
    rf"rand(-(m\d+|n\d+|p{_FLOAT}|mstd{_FLOAT}|mmax\d+|inc[01]|t(weights|3aw|3a)))*",
    rf"augmix(-(m\d+|w\d+|d\d+|a{_FLOAT}|b[01]|mstd{_FLOAT}))*",
    rf"(original|originalr|v0|v0r|3a)(-mstd{_FLOAT})?",
)


class ErasingConfig(Section):
    p: Fraction = 0.0
    """Probability of random erasing per image."""
    mode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill: zeros, one random color, or per-pixel noise."""
    count: Positive = 1
    """Most rectangles per erased image."""


class AugmentConfig(Section):
    crop: Literal["random_resized", "pad"] = "random_resized"
    """pad: zero-pad by 1/8 of the training size and crop at random, for small images."""
    scale: Pair = (0.08, 1.0)
    """Area range of the random resized crop."""
    ratio: Pair = (3 / 4, 4 / 3)
    """Aspect-ratio range of the random resized crop."""
    interpolation: Literal["random"] | Interpolation = "random"
    """Training resize. random: bilinear or bicubic per image."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    color_jitter: NonNegative = 0.4
    """Brightness, contrast and saturation jitter; off while rand_augment (as in timm) or trivial_augment is set."""
    rand_augment: str | None = None
    """A timm auto-augment string, e.g. rand-m7-mstd0.5-inc1."""
    trivial_augment: bool = False
    """TrivialAugment (wide): one random operation of random strength per image. Instead of rand_augment."""
    where: Literal["auto", "device", "cpu"] = "auto"
    """Where color_jitter, rand_augment and trivial_augment work. device: in batched operations where the model trains.
    cpu: image by image through Pillow, in the workers. auto: device on CUDA, else cpu (and always for augmix). The same
    draws, and after each operation the same pixels but for 1 of 255 levels."""
    repeats: Positive = 1
    """Repeated augmentation: each image so many times in a row, augmented anew each time. An epoch keeps its number of
    samples, so it shows 1/repeats of the images."""
    erasing: ErasingConfig = ErasingConfig()
    mixup: NonNegative = 0.0
    """alpha of mixup; 0: off."""
    cutmix: NonNegative = 0.0
    """alpha of cutmix; 0: off."""
    cutmix_minmax: Pair | None = None
    """CutMix: range of the sides of the box, as fractions of the image's; cutmix must be 1 then. null: by cutmix's
    distribution."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Draw how much to mix once for a micro-batch, for each pair of images, or for each image."""
    mixup_prob: Fraction = 1.0
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: Fraction = 0.5
    """Probability of cutmix when both are on."""
    mixup_off_epoch: Positive | None = None
    """Epoch from which mixup and cutmix stay off. null: never."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "aa": "rand_augment",
        "auto_augment": "rand_augment",
        "reprob": "erasing.p",
        "random_erasing": "erasing.p",
        "mixup_alpha": "mixup",
        "cutmix_alpha": "cutmix",
    }

    def faults(self) -> Iterator[Fault]:
        if self.mixup_off_epoch is not None and not self.mixes:
            values = {f"augment.{key}": getattr(self, key) for key in ("mixup_off_epoch", "mixup", "cutmix")}
            yield Fault(values, "contradict: there is nothing to switch off; unset the first or set one of the others")
        yield from self._faults_of_policies()
        if self.cutmix_minmax is not None:
            yield from self._faults_of_box(*self.cutmix_minmax)
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                yield Fault({f"augment.{key}": [low, high]}, "must be [low, high] with 0 < low <= high")

    def _faults_of_policies(self) -> Iterator[Fault]:
        policy = {"augment.rand_augment": self.rand_augment}
        if self.trivial_augment and self.rand_augment is not None:
            yield Contradiction({"augment.trivial_augment": True} | policy, {"augment.trivial_augment": False})
        if self.rand_augment is not None and not any(re.fullmatch(f, self.rand_augment) for f in _AUGMENT_FORMATS):
            yield Fault(
                policy,
                "is not a policy of timm. Expected one of: rand[-m<int>][-n<int>][-p<float>][-mstd<float>][-mmax<int>]"
                "[-inc<0|1>][-t<weights|3a|3aw>] (for example rand-m7-mstd0.5-inc1); augmix[-m<int>][-w<int>][-d<int>]"
                "[-a<float>][-b<0|1>][-mstd<float>]; original, originalr, v0, v0r or 3a [-mstd<float>]",
            )
            return
        if self.rand_augment is not None and self.interpolation in ("box", "hamming", "lanczos"):
            yield Fault(  # Pillow rotates with none of them
                {"augment.interpolation": self.interpolation} | policy,
                "contradict: its operations take nearest, bilinear or bicubic; choose one of these, or random",
            )
        elif not (self.trivial_augment and self.rand_augment is not None):
            try:
                Policy.of(self, Preprocessing())
            except ValueError as error:
                yield Fault(policy, f"cannot be drawn: {error}")
        if self.where == "device" and self._is_augmix:
            values = {"augment.where": "device"} | policy
            yield Fault(values, "contradict: AugMix has no batched form; set augment.where=cpu, or auto")

    def _faults_of_box(self, low: float, high: float) -> Iterator[Fault]:
        box = {"augment.cutmix_minmax": [low, high]}
        if not 0 <= low < high <= 1:
            yield Fault(box, "must be [low, high] within 0 and 1")
        if self.cutmix != 1:
            fix = "it takes the place of the distribution of CutMix; set augment.cutmix=1"
            yield Fault(box | {"augment.cutmix": self.cutmix}, f"contradict: {fix}")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed: then they must be even, and targets are rows of probabilities."""
        return bool(self.mixup or self.cutmix)

    @property
    def jitters(self) -> bool:
        """Whether color_jitter acts: a policy takes its place, but for those of 3-Augment (timm's rule)."""
        return bool(self.color_jitter) and not self.trivial_augment and "3a" in (self.rand_augment or "3a")

    def on_device(self, device: torch.device | str) -> bool:
        """Whether the operations of the policy are applied to batches on `device`, and not in the workers."""
        if self.where == "auto":
            return torch.device(device).type == "cuda" and not self._is_augmix
        return self.where == "device"

    @property
    def _is_augmix(self) -> bool:
        return self.rand_augment is not None and self.rand_augment.startswith("augmix")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.color_jitter and self.rand_augment and not self.jitters:
            yield "color_jitter", "augment.rand_augment takes its place (timm's rule)"
        if self.color_jitter and self.trivial_augment:
            yield "color_jitter", "augment.trivial_augment takes its place"
        if not (self.color_jitter or self.rand_augment or self.trivial_augment):
            yield "where", "augment.color_jitter, rand_augment and trivial_augment are off"
        if self.crop == "pad":
            yield "scale", "augment.crop is pad"
            yield "ratio", "augment.crop is pad"
        if self.erasing.p == 0:
            yield "erasing.mode", "augment.erasing.p is 0"
            yield "erasing.count", "augment.erasing.p is 0"
        if not self.mixes:
            yield "mixup_prob", "augment.mixup and augment.cutmix are 0"
            yield "mixup_mode", "augment.mixup and augment.cutmix are 0"
        elif self.mixup_prob == 0:
            keys = ("mixup", "cutmix", "cutmix_minmax", "mixup_mode", "mixup_switch_prob", "mixup_off_epoch")
            yield from ((key, "augment.mixup_prob is 0") for key in keys if getattr(self, key) not in (None, 0))
            return
        if not (self.mixup and self.cutmix):
            yield "mixup_switch_prob", "augment.mixup and augment.cutmix are not both on"
        elif self.mixup_switch_prob in (0, 1):
            off, always = ("cutmix", "mixup") if self.mixup_switch_prob == 0 else ("mixup", "cutmix")
            reason = f"augment.mixup_switch_prob is {self.mixup_switch_prob:g}, always {always}"
            yield off, reason
            if off == "cutmix" and self.cutmix_minmax is not None:
                yield "cutmix_minmax", reason
