"""The configuration of joint depth upsampling."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddfnet.config import Positive
from ddfnet.tasks.config import Config, DataSection, FlipConfig, ModelSection


class DepthModel(ModelSection):
    name: Literal["ddf_up_net"] = "ddf_up_net"
    """DDF-Up-Net (paper, figure 6 b)."""
    channels: Positive = 32
    """Width of its layers."""
    kernel_size: Annotated[int, Field(ge=3)] = 3
    """Taps of the DDF-Up filters along each axis, odd."""

    @model_validator(mode="after")
    def _odd_kernel(self) -> "DepthModel":
        if self.kernel_size % 2 == 0:
            raise ValueError(f"model.kernel_size={self.kernel_size} must be odd: use {self.kernel_size + 1}")
        return self


class DepthData(DataSection):
    format: Literal["nyu", "folder"] = "nyu"
    """nyu: the labeled .mat file of NYU Depth V2 (root names the file, its first 1000 pairs train, the rest validate).
    folder: root/train and root/val, each with rgb/ and depth/ (gray PNG of 8 or 16 bits) of equal file names."""
    factor: Literal[4, 8, 16] = 4
    """Upsampling factor: the low resolution keeps every factor-th pixel of the ground truth."""
    crop: Positive = 256
    """Side of the random training crops, pixels, a multiple of the factor."""
    depth_scale: Annotated[float, Field(gt=0)] = 0.001
    """folder: meters per unit of the depth files. 0 there means no measurement."""
    border: Annotated[int, Field(ge=0)] = 0
    """Pixels at each side of an image that neither loss nor metric sees. 6 in PAC-Net's protocol for NYU Depth V2."""
    baselines: bool = True
    """The first evaluation of a process also finds the RMSE of nearest, bilinear and bicubic interpolation, guided
    filter and joint bilateral upsampling; all evaluations report it."""

    @model_validator(mode="after")
    def _crop_fits_factor(self) -> "DepthData":
        if self.crop % self.factor:
            raise ValueError(f"data.crop={self.crop} must be a multiple of data.factor={self.factor}")
        return self


class DepthConfig(Config):
    """One depth run: what `train.py --config FILE` reads when `task` is depth."""

    task: Literal["depth"]
    model: DepthModel = DepthModel()
    data: DepthData
    augment: FlipConfig = FlipConfig()
