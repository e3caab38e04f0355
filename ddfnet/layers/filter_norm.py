"""Filter normalization (Zhou et al., CVPR 2021, eq. 3), and the baselines of the paper (table 3)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddfnet.layers.checks import check_choice, check_kernel_size, describe
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.filter_norm import filter_norm


class FilterNorm(TracedAsLeaf):
    """Normalizes each predicted filter over its k*k taps: zero mean, then a given standard deviation.

    `alpha * (f - mean(f)) / (std(f) + 1e-10)` with the unbiased std, as in the official code. A spatial filter has
    the constant alpha = gain / k; a channel filter has a learned one per tap, started at `randn * gain / k`.
    Computed in float32 at least: in float16 the 1e-10 would be 0 and constant logits would give NaN.

    Args:
        channels: filters per sample: heads for `spatial`, channels for `channel`.
        kernel_size: k, odd.
        kind: `spatial` for input (B, channels*k*k, H, W), `channel` for (B, channels*k*k, 1, 1).
        nonlinearity: name for `torch.nn.init.calculate_gain` of what follows the filter.

    Attributes:
        std: alpha; a parameter of shape (channels*k*k,) for `channel`, a float for `spatial`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        kind: Literal["spatial", "channel"],
        *,
        nonlinearity: str = "linear",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("spatial", "channel"))
        check_kernel_size(kernel_size)
        self.channels, self.kernel_size, self.kind = channels, kernel_size, kind
        alpha = nn.init.calculate_gain(nonlinearity) / kernel_size  # type: ignore[arg-type]
        self.std: nn.Parameter | float = alpha
        if kind == "channel":
            self.std = nn.Parameter(torch.randn(channels * kernel_size**2, device=device, dtype=dtype) * alpha)

    def forward(self, filters: Tensor) -> Tensor:
        """(B, channels*k*k, H, W) -> the same shape; spatial filters keep their dtype, the few channel filters do not.

        Channel filters come in float32 (float64 for float64 input): rounding them would save nothing.
        """
        if (node := self.traced(filters)) is not None:
            return node
        return filter_norm(filters, self.channels, self.std)

    def extra_repr(self) -> str:
        return describe(self, "kernel_size", "kind")


def normalization_layer(
    normalization: Literal["filter", "batch", "sigmoid"],
    channels: int,
    kernel_size: int,
    kind: Literal["spatial", "channel"],
    *,
    nonlinearity: str = "linear",
    **factory: Any,
) -> nn.Module:
    """The layer behind the logits of a filter: (B, channels*k*k, H, W) -> the same shape.

    Args:
        normalization: `filter`: `FilterNorm`; `batch`: batch normalization of each tap, with PyTorch's start (unit
            weights); `sigmoid`. The last two are baselines of the paper's table 3, which gives no details of them.
        channels, kernel_size, kind, nonlinearity: see `FilterNorm`; the baselines do not need the last two.
        factory: device and dtype.

    Raises:
        ValueError: another normalization.
    """
    check_choice("normalization", normalization, ("filter", "batch", "sigmoid"))
    if normalization == "filter":
        return FilterNorm(channels, kernel_size, kind, nonlinearity=nonlinearity, **factory)
    if normalization == "batch":
        return nn.BatchNorm2d(channels * kernel_size**2, **factory)
    return nn.Sigmoid()
