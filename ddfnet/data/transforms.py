"""Per-image transforms in the workers: timm's own, up to a uint8 tensor. Normalisation happens on the device."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize, TrivialAugmentWide

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

_FLOAT = r"\d+(\.\d+)?"
# timm skips sections that it does not understand ("rand-m", "rand-tfoo"); a typing error in a recipe must not pass.
_AUGMENT_FORMATS = {
    "rand": rf"rand(-(m\d+|n\d+|p{_FLOAT}|mstd{_FLOAT}|mmax\d+|inc[01]|t(weights|3aw|3a)))*",
    "augmix": rf"augmix(-(m\d+|w\d+|d\d+|a{_FLOAT}|b[01]|mstd{_FLOAT}))*",
    "policy": rf"(original|originalr|v0|v0r|3a)(-mstd{_FLOAT})?",
}


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input; a checkpoint stores it.

    Attributes:
        input_size: height and width of the network's input, pixels.
        crop_pct: evaluation resizes the short side to `floor(input_size / crop_pct)` and takes the centre.
        interpolation: of the evaluation's resize, one of `INTERPOLATIONS`.
        mean, std: per channel (RGB), for pixel values in [0, 1].
    """

    input_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        if isinstance(self.input_size, bool) or not isinstance(self.input_size, int) or self.input_size < 1:
            raise ValueError(f"input_size must be a positive integer (pixels), got {self.input_size!r}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be in (0, 1], got {self.crop_pct}")
        _check_interpolation(self.interpolation, INTERPOLATIONS)
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} must be three {'positive ' * (name == 'std')}numbers (RGB), got {values}")
            object.__setattr__(self, name, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary (numbers, strings, lists) for a checkpoint or JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            raise ValueError(
                f"preprocessing must have exactly the keys {sorted(expected)}; "
                f"missing: {sorted(expected - set(values))}, unknown: {sorted(set(values) - expected)}"
            )
        return cls(**values)


def train_transform(
    preprocessing: Preprocessing,
    *,
    interpolation: str = "random",
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | tuple[float, ...] | None = 0.4,
    rand_augment: str | None = None,
    trivial_augment: bool = False,
    crop: str = "random_resized",
) -> Callable:
    """Training augmentation of one image.

    Args:
        preprocessing: gives the output size (here that of the training crops), and the mean colour that fills what an
            operation leaves empty.
        interpolation: of the crop's resize, one of `INTERPOLATIONS`, or "random" (bilinear or bicubic, timm's default).
        scale, ratio: range of the crop's area (share of the image) and of its width / height.
        hflip, vflip: probability of a flip.
        color_jitter: strength of brightness, contrast and saturation, or one number for each (and hue). **Off whenever
            `rand_augment` is given, except with 3-Augment**: timm's rule, kept so that its recipes mean the same here.
            Off as well with `trivial_augment`, whose recipes have none.
        rand_augment: timm's policy string, such as "rand-m7-mstd0.5-inc1", "augmix-m5-w4-d2", "original", "v0", "3a".
        trivial_augment: TrivialAugment in its wide form (arXiv 2103.10158; torchvision's), bilinear, at the place of
            `rand_augment` and instead of it.
        crop: "random_resized" (ImageNet), or "pad" for small images (CIFAR): short side to `input_size`, then a crop of
            `input_size` from the image padded by `input_size // 8` black pixels; `scale` and `ratio` do not act.

    Returns:
        Callable, PIL RGB image -> uint8 (3, input_size, input_size). Draws from the global generators of `random`,
        numpy and torch.

    Raises:
        ValueError: an argument is out of range, a policy string is malformed, or two policies are given.
    """
    _check_interpolation(interpolation, ("random", *INTERPOLATIONS))
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got ({low}, {high})")
    for name, value in {"hflip": hflip, "vflip": vflip}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
    if crop not in ("random_resized", "pad"):
        raise ValueError(f"crop must be 'random_resized' or 'pad', got {crop!r}")
    if rand_augment is not None:
        _check_policy(rand_augment)
        if trivial_augment:
            raise ValueError(f"rand_augment={rand_augment!r} and trivial_augment=True contradict: give one of them")

    size = preprocessing.input_size
    geometry, colour, to_tensor = create_transform(
        input_size=size,
        is_training=True,
        use_prefetcher=True,
        separate=True,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        vflip=vflip,
        color_jitter=None if trivial_augment else color_jitter or None,
        auto_augment=rand_augment,
        interpolation=interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    steps = geometry.transforms
    if crop == "pad":
        resize = preprocessing.interpolation if interpolation == "random" else interpolation
        # timm's first step is its random resized crop, the flips follow.
        steps = [Resize(size, str_to_interp_mode(resize)), RandomCrop(size, padding=size // 8), *steps[1:]]
    policy = colour.transforms
    if trivial_augment:
        fill = [min(255, round(255 * value)) for value in preprocessing.mean]  # as timm fills
        policy = [TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=fill)]
    return Compose([*steps, *policy, *to_tensor.transforms])


def eval_transform(preprocessing: Preprocessing) -> Callable:
    """timm's evaluation transform: short side to `floor(input_size / crop_pct)`, then the centre.

    Returns:
        Callable, PIL RGB image -> uint8 (3, input_size, input_size).
    """
    return create_transform(
        input_size=preprocessing.input_size,
        is_training=False,
        use_prefetcher=True,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def _check_interpolation(value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"interpolation must be one of {', '.join(choices)}, got {value!r}")


def _check_policy(policy: str) -> None:
    if not any(re.fullmatch(pattern, policy) for pattern in _AUGMENT_FORMATS.values()):
        raise ValueError(
            f"rand_augment={policy!r} is not a policy of timm. Expected one of: rand[-m<int>][-n<int>][-p<float>]"
            "[-mstd<float>][-mmax<int>][-inc<0|1>][-t<weights|3a|3aw>] (for example rand-m7-mstd0.5-inc1); "
            "augmix[-m<int>][-w<int>][-d<int>][-a<float>][-b<0|1>][-mstd<float>]; "
            "original, originalr, v0, v0r or 3a [-mstd<float>]"
        )
