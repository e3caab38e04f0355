"""The configuration of joint depth upsampling."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ddfnet.config import Fault, Positive
from ddfnet.tasks.config import Config, DataSection, FlipConfig, ModelSection


class DepthModel(ModelSection):
    name: Literal["ddf_up_net"] = "ddf_up_net"
    """DDF-Up-Net (paper, figure 6 b)."""
    channels: Positive = 32
    """Width of its layers."""
    kernel_size: Annotated[int, Field(ge=3)] = 3
    """Taps of the DDF-Up filters along each axis, odd."""

    def faults(self) -> Iterator[Fault]:
        if self.kernel_size % 2 == 0:
            yield Fault({"model.kernel_size": self.kernel_size}, f"must be odd: use {self.kernel_size + 1}")


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

    def faults(self) -> Iterator[Fault]:
        if self.crop % self.factor:
            fix = f"use {max(1, self.crop // self.factor) * self.factor}"
            yield Fault(
                {"data.crop": self.crop, "data.factor": self.factor},
                f"contradict: the crop must be a multiple of the factor; {fix}",
            )


class DepthConfig(Config):
    """One depth run: what `train.py --config FILE` reads when `task` is depth."""

    task: Literal["depth"]
    model: DepthModel = DepthModel()
    data: DepthData
    augment: FlipConfig = FlipConfig()
