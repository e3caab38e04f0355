"""Preprocessing that a network expects, and the evaluation's transform to it. The device normalizes."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from ddfnet.config import Positive, Section, Triple
from ddfnet.config.check import faults_of
from ddfnet.utils.errors import ConfigError

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class Preprocessing(Section):
    """Input that a network expects; a checkpoint stores it."""

    size: Positive = 224
    """Side of the square input, pixels; the checkpoint remembers it."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation: the short side is resized to floor(size / crop_pct), then the center is cropped."""
    interpolation: Interpolation = "bicubic"
    """Evaluation resize."""
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
        """Inverse of `to_dict`; ValueError where a key is missing or unknown, or a value is out of range."""
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


def eval_transform(preprocessing: Preprocessing) -> Callable:
    """timm's evaluation transform, PIL RGB image -> uint8 (3, size, size): short side to `floor(size / crop_pct)`, then
    the center."""
    return create_transform(
        input_size=preprocessing.size,
        is_training=False,
        use_prefetcher=True,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
