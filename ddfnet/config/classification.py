"""The configuration of image classification."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ddfnet.config.schema import (
    Config,
    DataSection,
    Fraction,
    ModelSection,
    NonNegative,
    Pair,
    Positive,
    Section,
    Triple,
)


class ModelConfig(ModelSection):
    name: str
    """Any classification model of timm; ours: ddf_mul_resnet50, ddf_add_resnet101, ... (`ddfnet.list_models()`)."""
    num_classes: Positive | None = None
    """null: the number of class folders."""
    drop_rate: Fraction = 0.0
    """Dropout before the classifier."""
    drop_path_rate: Fraction = 0.0
    """Stochastic depth, rising linearly to this rate at the last block."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's constructor, e.g. {squeeze_ratio: 0.3}."""
    init_checkpoint: str | None = None
    """Start from these weights (a checkpoint of ours, an official one, a .safetensors file, or `zoo:NAME`).
    A classifier for another number of classes is left at its random start, and said so."""

    @model_validator(mode="after")
    def _kwargs_are_further_ones(self) -> "ModelConfig":
        own = {
            "num_classes": "set model.num_classes",
            "drop_rate": "set model.drop_rate",
            "drop_path_rate": "set model.drop_path_rate",
            "pretrained": "give a file as model.init_checkpoint",
            "in_chans": "pictures have three channels",
            "checkpoint_path": "give a file as model.init_checkpoint",
            "pretrained_cfg": "give a file as model.init_checkpoint",
            "pretrained_cfg_overlay": "give a file as model.init_checkpoint",
            "cache_dir": "give a file as model.init_checkpoint",
            "features_only": "training needs the classifier",
            "block": "choose another model.name",
            "block_args": "the options of a DDF are given directly, e.g. model.kwargs.heads",
        }
        for key, fix in own.items():
            if key in self.kwargs:
                raise ValueError(f"model.kwargs.{key} cannot be given there: {fix}")
        return self


class InputConfig(Section):
    size: Positive = 224
    """Side of the square input, pixels; the checkpoint remembers it."""
    train_size: Positive | None = None
    """Side of the training crops, pixels, where it is not the evaluation's (e.g. 160 beside size=224). null: size."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation: the short side is resized to size / crop_pct, then the centre is cropped."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    """Evaluation resize."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Per-channel mean of RGB in [0, 1]."""
    std: Triple = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of RGB in [0, 1]."""

    @model_validator(mode="after")
    def _std_is_positive(self) -> "InputConfig":
        if min(self.std) <= 0:
            raise ValueError(f"data.input.std must be positive in every channel, got {list(self.std)}")
        return self


class DataConfig(DataSection):
    root: str
    """Folder with the training and validation trees (one folder per class in each)."""
    train: str = "train"
    """Training tree, relative to root (or an absolute path)."""
    val: str = "val"
    """Validation tree, relative to root (or an absolute path)."""
    max_broken: Fraction = 0.001
    """Training stops when more than this share of the pictures cannot be decoded."""
    input: InputConfig = InputConfig()


class ErasingConfig(Section):
    p: Fraction = 0.0
    """Probability of random erasing per image."""
    mode: Literal["const", "rand", "pixel"] = "pixel"
    """Fill: zeros, one random colour, or per-pixel noise."""
    count: Positive = 1
    """Most rectangles per erased image."""


class AugmentConfig(Section):
    crop: Literal["random_resized", "pad"] = "random_resized"
    """pad: zero-pad by 1/8 of the training size and crop at random, for small pictures."""
    scale: Pair = (0.08, 1.0)
    """Area range of the random resized crop."""
    ratio: Pair = (3 / 4, 4 / 3)
    """Aspect-ratio range of the random resized crop."""
    interpolation: Literal["random", "bicubic", "bilinear", "nearest", "lanczos"] = "random"
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
    repeats: Positive = 1
    """Repeated augmentation: each image so many times in a row, augmented anew each time. An epoch keeps its number of
    samples, so it shows 1/repeats of the images."""
    erasing: ErasingConfig = ErasingConfig()
    mixup: NonNegative = 0.0
    """alpha of mixup; 0: off."""
    cutmix: NonNegative = 0.0
    """alpha of cutmix; 0: off."""
    mixup_prob: Fraction = 1.0
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: Fraction = 0.5
    """Probability of cutmix when both are on."""
    mixup_off_epoch: Positive | None = None
    """Epoch from which mixup and cutmix stay off. null: never."""

    @model_validator(mode="after")
    def _keys_agree(self) -> "AugmentConfig":
        if self.trivial_augment and self.rand_augment is not None:
            raise ValueError(
                f"augment.trivial_augment=true and augment.rand_augment={self.rand_augment} contradict: to use one, "
                "switch the other off (augment.rand_augment=null or augment.trivial_augment=false)"
            )
        if self.mixup_off_epoch is not None and self.mixup == 0 and self.cutmix == 0:
            raise ValueError("augment.mixup_off_epoch is set but augment.mixup and augment.cutmix are 0: unset one")
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"augment.{key} must be [low, high] with 0 < low <= high, got [{low}, {high}]")
        return self


class LossConfig(Section):
    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: one binary cross-entropy per class."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bce_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """bce: targets above it count as 1, the others as 0, so that each class in a mixed image is wholly there.
    null: targets as they are mixed."""


class ClassificationConfig(Config):
    """One classification run: what `train.py --config FILE` reads when `task` is classification, the default."""

    task: Literal["classification"] = "classification"
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _mixing_pairs_images(self) -> "ClassificationConfig":
        if (self.augment.mixup or self.augment.cutmix) and self.train.device_batch_size % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a micro-batch: train.device_batch_size must be even, "
                f"got {self.train.device_batch_size}"
            )
        return self
