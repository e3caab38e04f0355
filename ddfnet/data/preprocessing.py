"""Preprocessing that a network expects, and the evaluation's transform to it. The device normalizes."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationError, field_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ddfnet.config import Fault, Positive, Section, refuse
from ddfnet.config.check import faults_of
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.resize import Interpolation, Kernel, resize_into, resized_size
from ddfnet.utils.errors import ConfigError

Size = Positive | Annotated[tuple[Positive, Positive], Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
CropMode = Literal["center", "squash", "border"]


class Preprocessing(Section):
    """Input that a network expects; a checkpoint stores it."""

    size: Size = 224
    """Side of the square input, or [height, width], pixels; the checkpoint remembers it."""
    crop_pct: Annotated[float, Field(gt=0, le=1.5)] = 0.875
    """Evaluation: an image is resized to floor(size / crop_pct), then its center is cropped. Above 1, as for a few of
    timm's models, what the resized image leaves empty is black."""
    crop_mode: CropMode = "center"
    """Evaluation. center: the short side is resized, and what juts out of the crop is lost. squash: both sides are, and
    the image loses its shape. border: the long side is, and the mean color fills the rest."""
    interpolation: Interpolation = "bicubic"
    """Evaluation resize."""
    resize: Kernel = "torch"
    """Kernel of all resizing, in training too. torch: antialiased, for uint8, fast; within 2 levels of Pillow's before
    its version 13. pillow: timm's pixels to the bit. Lanczos, box, hamming and nearest are Pillow's in any case."""
    mean: Numbers = IMAGENET_DEFAULT_MEAN
    """Per-channel mean in [0, 1], of RGB or of the channels of model.in_chans."""
    std: Numbers = IMAGENET_DEFAULT_STD
    """Per-channel standard deviation in [0, 1]."""

    @field_validator("size", "train_size", check_fields=False)
    @classmethod
    def _square_is_one_number(cls, size: Any) -> Any:
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    def faults(self) -> Iterator[Fault]:
        mean, std = {"data.input.mean": self.mean}, {"data.input.std": self.std}
        if min(self.std) <= 0:
            yield Fault(std, "must be positive in every channel")
        if len(self.mean) != len(self.std):
            yield Fault(mean | std, "must have one value per channel each")
        height, width = height_width(self.size)
        pixels = height * width / min(1.0, self.crop_pct) ** 2
        if pixels > MAX_PIXELS:  # also said by files, which may come from anybody
            yield Fault(
                {"data.input.size": self.size, "data.input.crop_pct": self.crop_pct},
                f"resizes images to {pixels:.3g} pixels: at most {MAX_PIXELS:,} are possible",
            )

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        return len(self.mean), *height_width(self.size)

    @property
    def mean_color(self) -> tuple[int, ...]:
        """The mean as a pixel, rounded as timm does."""
        return tuple(min(255, round(255 * value)) for value in self.mean)

    def replaced(self, **changes: Any) -> "Preprocessing":
        """A copy with other values, checked: ConfigError, a ValueError, where one is out of range."""
        return _checked({**self.model_dump(include=set(Preprocessing.model_fields)), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary (numbers, strings, lists) for a checkpoint or JSON; `size` is `input_size` there, one number
        or [height, width]."""
        values = self.model_dump(mode="json", include=set(Preprocessing.model_fields))
        return {"input_size": values.pop("size"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of `to_dict`; ValueError where a key is missing or unknown, or a value is out of range.

        Checkpoints of before there was a choice name neither kernel nor crop mode: Pillow's and center were theirs.
        """
        values = {"resize": "pillow", "crop_mode": "center", **values}
        expected = {"input_size", *Preprocessing.model_fields} - {"size"}
        if set(values) != expected:
            raise ValueError(
                f"preprocessing must have exactly the keys {sorted(expected)}; "
                f"missing: {sorted(expected - set(values))}, unknown: {sorted(set(values) - expected)}"
            )
        return _checked({"size" if name == "input_size" else name: value for name, value in values.items()})

    def summary(self) -> str:
        """Size, crop and interpolation: "224 px, crop 0.875, bicubic"."""
        mode = "" if self.crop_mode == "center" else f"{self.crop_mode} "
        return f"{size_text(self.size)} px, {mode}crop {self.crop_pct:g}, {self.interpolation}"

    def line(self, origins: Mapping[str, str]) -> str:
        """All of it in one line. `origins`: by field, who says it; most of them are named once, at the end, the others
        behind their values."""
        said = [origins[key] for key in _SHOWN if key in origins]
        said = [who for who in said if not who.startswith(("--", "command line"))] or said
        usual = Counter(said).most_common(1)[0][0] if said else ""
        parts = {
            "size": f"{size_text(self.size)} px",
            "crop_mode": f"{self.crop_mode} crop",
            "crop_pct": f"{self.crop_pct:g}",
            "interpolation": self.interpolation,
            "resize": f"resize by {self.resize}",
            **{key: f"{key} {' '.join(f'{value:g}' for value in getattr(self, key))}" for key in ("mean", "std")},
        }
        notes = {key: f" ({origins[key]})" for key in parts if origins.get(key, usual) != usual}
        parts["crop_mode"] += f"{notes.pop('crop_mode', '')} {parts.pop('crop_pct')}{notes.pop('crop_pct', '')}"
        text = ", ".join(f"{part}{notes.get(key, '')}" for key, part in parts.items())
        return f"images: {text}" + (f"; from {usual}" if usual else "")


_SHOWN = ("size", "crop_mode", "crop_pct", "interpolation", "mean", "std")


def beyond_scale(how: Preprocessing) -> list[str]:
    """Which of mean and std do not fit pixels in [0, 1]: mostly they are of pixels up to 255."""
    fits = {"mean": all(0 <= value <= 1 for value in how.mean), "std": all(0 < value <= 1 for value in how.std)}
    return [key for key in fits if not fits[key]]


def check_scale(how: Preprocessing, keys: Collection[str] = ("mean", "std")) -> None:
    """ConfigError where one of these, given by a user, is not of pixels in [0, 1]."""
    refuse(_scale_faults(how, keys))


def _scale_faults(how: Preprocessing, keys: Collection[str] = ("mean", "std")) -> Iterator[Fault]:
    for key in beyond_scale(how):
        if key in keys:
            yield Fault(
                {f"data.input.{key}": getattr(how, key)},
                "must be in [0, 1] in every channel, as pixels are: if it is of pixels up to 255, divide by 255",
            )


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def input_shape(size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, height and width: those given, or of RGB images of a side."""
    return (3, size, size) if isinstance(size, int) else size


def size_text(size: int | tuple[int, int]) -> str:
    """A size as messages have it: 224, or 192 x 256 (height x width)."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


def _checked(values: dict[str, Any]) -> Preprocessing:
    try:
        return Preprocessing.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(faults_of(error, Preprocessing, {}))) from None


class InputConfig(Preprocessing):
    """`data.input`: the preprocessing of a run, which its checkpoints remember."""

    train_size: Size | None = None
    """Side of the training crops, or [height, width], pixels, where it is not the evaluation's (e.g. 160 beside
    size=224). null: size."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "img_size": "size",
        "image_size": "size",
        "input_size": "size",
        "crop_size": "size",
    }

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if min(self.std) > 0:  # else it was said
            yield from _scale_faults(self)


class EvalTransform:
    """timm's evaluation transform: a resize to `floor(size / crop_pct)` as the crop mode has it, then the center.

    `transform(image)`: an image, of Pillow or uint8 (H, W, C) -> uint8 (C, height, width), channels last.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.channels, self.height, self.width = preprocessing.input_size
        sides = height_width(preprocessing.size)
        self._scale = (math.floor(sides[0] / preprocessing.crop_pct), math.floor(sides[1] / preprocessing.crop_pct))
        border = preprocessing.crop_mode == "border"
        self._fill = torch.tensor(preprocessing.mean_color if border else [0] * self.channels, dtype=torch.uint8)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        row = torch.empty(self.height, self.width, self.channels, dtype=torch.uint8)
        pixels = image if isinstance(image, np.ndarray) else np.array(image)
        self.write(pixels if pixels.ndim == 3 else pixels[..., None], row)
        return row.permute(2, 0, 1)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        (tall, wide), mode = self._scale, self.preprocessing.crop_mode
        if mode == "squash":
            return self._scale
        if mode == "center" and tall == wide:
            return resized_size(height, width, tall)
        ratio = (max if mode == "border" else min)(height / tall, width / wide)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def write(self, pixels: np.ndarray, row: Tensor) -> None:
        """Writes the transform of an image, uint8 (H, W, C), into a row of a batch, uint8 (height, width, C)."""
        how = self.preprocessing
        height, width = self.resized(*pixels.shape[:2])
        exact = (height, width) == (self.height, self.width)
        resized = row if exact else torch.empty(height, width, self.channels, dtype=torch.uint8)
        whole = 0, 0, pixels.shape[1], pixels.shape[0]
        resize_into(pixels, whole, resized, how.interpolation, kernel=how.resize)
        if exact:
            return
        if height < self.height or width < self.width:
            row.copy_(self._fill.expand_as(row))
        (to_y, from_y), (to_x, from_x) = _centered(height, self.height), _centered(width, self.width)
        row[to_y, to_x] = resized[from_y, from_x]


def _centered(length: int, target: int) -> tuple[slice, slice]:
    """Where the center of a side of `length` pixels lies in a side of `target`, and in itself; as in torchvision."""
    if length < target:
        start = (target - length) // 2
        return slice(start, start + length), slice(None)
    start = round((length - target) / 2)
    return slice(None), slice(start, start + target)


def eval_transform(preprocessing: Preprocessing) -> EvalTransform:
    """The transform of evaluation and prediction."""
    return EvalTransform(preprocessing)
