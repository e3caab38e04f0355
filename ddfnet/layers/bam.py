"""Bottleneck attention module (Park et al., BMVC 2018)."""

from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.layers.checks import check_at_least, check_reduction


class BAM(nn.Module):
    """Bottleneck attention module (Park et al., "BAM", BMVC 2018, eq. 1 to 4 and figure 2).

    `x * (1 + sigmoid(channel(x) + spatial(x)))`. The channel branch sees the globally averaged input, the spatial
    branch a map of C / reduction channels through two dilated 3x3 convolutions.

    The sum is the paper's (eq. 2); the authors' code multiplies the branches. Batch normalization follows each hidden
    layer, as in the authors' code; the paper's eq. 3 and 4 write it at the end of each branch. Since the channel branch
    normalizes over the samples alone, training needs at least two of them per process.

    Args:
        channels: C, input and output channels.
        reduction: both branches have C // reduction hidden channels.
        dilation: of the 3x3 convolutions.

    Shape:
        (B, C, H, W) -> (B, C, H, W), same memory format.

    Raises:
        ValueError: a reduction that leaves no hidden channel, or a dilation below 1.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        dilation: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction, channels)
        check_at_least("dilation", dilation)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = channels // reduction

        def conv_norm_relu(inputs: int, **conv: Any) -> list[nn.Module]:
            # the biases do nothing before a batch normalization; they are in the authors' code and its counts
            return [nn.Conv2d(inputs, hidden, **conv, **factory), nn.BatchNorm2d(hidden, **factory), nn.ReLU(True)]

        dilated: dict[str, Any] = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.channel_branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *conv_norm_relu(channels, kernel_size=1), nn.Conv2d(hidden, channels, 1, **factory)
        )
        self.spatial_branch = nn.Sequential(
            *conv_norm_relu(channels, kernel_size=1),
            *conv_norm_relu(hidden, **dilated),
            *conv_norm_relu(hidden, **dilated),
            nn.Conv2d(hidden, 1, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + (self.channel_branch(x) + self.spatial_branch(x)).sigmoid())
