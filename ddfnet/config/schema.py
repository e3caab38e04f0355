"""The configuration of a run: every key, its type, its default and what it means.

Units stand in the names or descriptions: epochs are passes over the training set, steps are optimiser steps.
Keys are strict: an unknown key, a wrong type or a value out of range stops the run before anything is built.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
# YAML has lists only; strict mode would refuse them for tuples.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, `"3"` is not a number, values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunConfig(Section):
    dir: str | None = None
    """Run folder: checkpoints, logs, resolved config. Default: runs/<name of the config file>.
    A folder that already holds a `last.pt` is resumed."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of weights, data order and augmentation."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: cuda where there is one, else cpu."""
    log_every: Positive = 50
    """Steps between two log lines; loss and rates are averaged over them."""
    save_every: Positive | None = None
    """Steps between two `last.pt`, besides those at the end of each epoch. null: only those."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""
    allow_changes: bool = False
    """Resume even though the config differs from the one the run folder was started with."""


class ModelConfig(Section):
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
    """Start from these weights (a checkpoint of ours, an official one or a .safetensors file).
    A classifier for another number of classes is left at its random start, and said so."""

    @model_validator(mode="after")
    def _kwargs_are_further_ones(self) -> "ModelConfig":
        own = {
            "num_classes": "set model.num_classes",
            "drop_rate": "set model.drop_rate",
            "drop_path_rate": "set model.drop_path_rate",
            "pretrained": "give a file as model.init_checkpoint",
            "in_chans": "pictures have three channels",
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


class DataConfig(Section):
    root: str
    """Folder with the training and validation trees (one folder per class in each)."""
    train: str = "train"
    """Training tree, relative to root (or an absolute path)."""
    val: str = "val"
    """Validation tree, relative to root (or an absolute path)."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes per rank. auto: this rank's share of the cores less one, at least 1, at most 16."""
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


class OptimConfig(Section):
    name: str = "sgd"
    """Any optimiser of timm's factory. timm's `sgd` uses Nesterov momentum, `momentum` does not."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate as it is. Give this or base_lr."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate for a batch of base_batch images: lr = base_lr * train.batch_size / base_batch."""
    base_batch: Positive = 256
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    """Not applied to biases and other one-dimensional parameters (batch norm, filter norm)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. {betas: [0.9, 0.95]}."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Clip gradients; null: off."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """norm: global L2 norm; value: per element; agc: adaptive, by the norm of each parameter."""

    @model_validator(mode="after")
    def _one_learning_rate(self) -> "OptimConfig":
        if self.lr is None and self.base_lr is None:
            raise ValueError("no learning rate: set optim.lr (used as it is) or optim.base_lr (scaled with the batch)")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError(
                f"optim.lr={self.lr:g} and optim.base_lr={self.base_lr:g} contradict: "
                "to use one, set the other to null (e.g. optim.base_lr=null)"
            )
        return self


class ScheduleConfig(Section):
    name: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0
    """Linear warm-up, counted inside train.epochs: the cosine starts at epoch 0 and takes over after it, as in timm."""
    warmup_lr: NonNegative = 0.0
    """Learning rate of the first step."""
    min_lr: NonNegative = 0.0
    """Where the cosine ends."""
    cooldown_epochs: NonNegative = 0
    """Epochs at min_lr, added after train.epochs."""


class EmaConfig(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Weight of the old average at each step."""
    warmup: bool = True
    """Ramp the decay up from 0, so that early averages are not dominated by the random start."""


class TrainConfig(Section):
    epochs: Positive
    batch_size: Positive
    """Images per optimiser step, over all processes and micro-batches."""
    device_batch_size: Positive
    """Images per process and micro-batch; batch_size / (processes * device_batch_size) micro-batches accumulate."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: automatic mixed precision; fp16 scales the loss."""
    channels_last: bool = True
    """Memory format of the model and its input."""
    compile: bool = False
    """torch.compile the model."""
    sync_bn: bool = False
    """Batch statistics over all processes. false: per process, running statistics averaged before evaluation."""
    ema: EmaConfig | None = None
    """Keep a moving average of the weights and evaluate it too; null: off."""


class EvalConfig(Section):
    every: Positive = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: Positive | None = None
    """Images per process; null: train.device_batch_size."""


class Config(Section):
    """One run: what `train.py --config FILE` reads."""

    task: Literal["classification"] = "classification"
    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.schedule.warmup_epochs:g} exceeds train.epochs={self.train.epochs}: "
                "lower the first or raise the second"
            )
        if self.schedule.name == "constant" and (self.schedule.min_lr or self.schedule.cooldown_epochs):
            raise ValueError("schedule.name=constant ignores min_lr and cooldown_epochs: set both to 0 or use cosine")
        if (self.augment.mixup or self.augment.cutmix) and self.train.device_batch_size % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a micro-batch: train.device_batch_size must be even, "
                f"got {self.train.device_batch_size}"
            )
        return self
