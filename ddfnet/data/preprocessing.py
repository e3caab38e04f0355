"""Preprocessing that a network expects, and the evaluation's transform to it. The device normalizes."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationError, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ddfnet.config import Positive, Section, Triple
from ddfnet.config.check import faults_of
from ddfnet.data.resize import Interpolation, Kernel, resize_into, resized_size
from ddfnet.utils.errors import ConfigError


class Preprocessing(Section):
    """Input that a network expects; a checkpoint stores it."""

    size: Positive = 224
    """Side of the square input, pixels; the checkpoint remembers it."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation: the short side is resized to floor(size / crop_pct), then the center is cropped."""
    interpolation: Interpolation = "bicubic"
    """Evaluation resize."""
    resize: Kernel = "torch"
    """Kernel of all resizing, in training too. torch: antialiased, for uint8, fast; within 2 levels of Pillow's before
    its version 13. pillow: timm's pixels to the bit. Lanczos, box, hamming and nearest are Pillow's in any case."""
    mean: Triple = IMAGENET_DEFAULT_MEAN
    """Per-channel mean of RGB in [0, 1]."""
    std: Triple = IMAGENET_DEFAULT_STD
    """Per-channel standard deviation of RGB in [0, 1]."""

    @model_validator(mode="after")
    def _std_is_positive(self) -> "Preprocessing":
        if min(self.std) <= 0:
            raise ValueError(f"data.input.std must be positive in every channel, got {list(self.std)}")
        return self

    def replaced(self, **changes: Any) -> "Preprocessing":
        """A copy with other values, checked: ConfigError, a ValueError, where one is out of range."""
        return _checked({**self.model_dump(include=set(Preprocessing.model_fields)), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary (numbers, strings, lists) for a checkpoint or JSON; `size` is `input_size` there."""
        values = self.model_dump(mode="json", include=set(Preprocessing.model_fields))
        return {"input_size": values.pop("size"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`; ValueError where a key is missing or unknown, or a value is out of range.

        Checkpoints of before there was a choice do not name a kernel: Pillow's was theirs.
        """
        values = {"resize": "pillow", **values}
        expected = {"input_size", *Preprocessing.model_fields} - {"size"}
        if set(values) != expected:
            raise ValueError(
                f"preprocessing must have exactly the keys {sorted(expected)}; "
                f"missing: {sorted(expected - set(values))}, unknown: {sorted(set(values) - expected)}"
            )
        return _checked({"size" if name == "input_size" else name: value for name, value in values.items()})


def _checked(values: dict[str, Any]) -> Preprocessing:
    try:
        return Preprocessing.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(faults_of(error, Preprocessing, {}))) from None


class InputConfig(Preprocessing):
    """`data.input`: the preprocessing of a run, which its checkpoints remember."""

    train_size: Positive | None = None
    """Side of the training crops, pixels, where it is not the evaluation's (e.g. 160 beside size=224). null: size."""


class EvalTransform:
    """timm's evaluation transform: the short side to `floor(size / crop_pct)`, then the center.

    `transform(image)`: an RGB image, of Pillow or uint8 (H, W, 3) -> uint8 (3, size, size), channels last.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.short_side = math.floor(preprocessing.size / preprocessing.crop_pct)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        size = self.preprocessing.size
        row = torch.empty(size, size, 3, dtype=torch.uint8)
        self.write(image if isinstance(image, np.ndarray) else np.array(image), row)
        return row.permute(2, 0, 1)

    def write(self, pixels: np.ndarray, row: Tensor) -> None:
        """Writes the transform of an image, uint8 (H, W, 3), into a row of a batch, uint8 (size, size, 3)."""
        how, size = self.preprocessing, self.preprocessing.size
        height, width = resized_size(pixels.shape[0], pixels.shape[1], self.short_side)
        exact = (height, width) == (size, size)
        resized = row if exact else torch.empty(height, width, 3, dtype=torch.uint8)
        whole = 0, 0, pixels.shape[1], pixels.shape[0]
        resize_into(pixels, whole, resized, how.interpolation, kernel=how.resize)
        if not exact:
            top, left = round((height - size) / 2), round((width - size) / 2)
            row.copy_(resized[top : top + size, left : left + size])


def eval_transform(preprocessing: Preprocessing) -> EvalTransform:
    """The transform of evaluation and prediction."""
    return EvalTransform(preprocessing)
