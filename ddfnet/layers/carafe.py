"""CARAFE: upsampling with filters predicted for each output pixel (Wang et al., ICCV 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.layers.checks import check_at_least, check_divides, check_kernel_size, check_odd, check_scale, describe
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.ddf import ddf_up


class CARAFE(TracedAsLeaf):
    """CARAFE (Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, section 3).

    A 1x1 convolution compresses the channels, a second convolution encodes scale * scale filters of k x k taps for
    each pixel and group, a softmax over the taps makes each filter a weighted average, and `ddfnet.ddf_up` applies
    them, with no channel filter. Parameter names, shapes and the order of the encoder's channels are those of the
    authors' implementation, so that published weights load; so is the start, with filters that hardly differ from a
    box.

    Args:
        channels: C, input and output channels.
        scale: the upscale factor, an int of 2 or more.
        kernel_size: k, odd; the paper's k_up.
        encoder_kernel_size: of the second convolution, odd; the paper's k_encoder, and it recommends k - 2.
        compressed_channels: the paper's C_m.
        groups: of channels, each with filters of its own.

    Shape:
        (B, C, H, W) -> (B, C, H * scale, W * scale), same memory format.

    Raises:
        ValueError, TypeError: an argument that does not fit; the message names it.
    """

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        kernel_size: int = 5,
        *,
        encoder_kernel_size: int = 3,
        compressed_channels: int = 64,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_scale(scale)
        check_kernel_size(kernel_size)
        check_odd("encoder_kernel_size", encoder_kernel_size)
        check_at_least("compressed_channels", compressed_channels)
        check_divides("groups", groups, channels)
        self.channels, self.scale, self.kernel_size, self.groups = channels, scale, kernel_size, groups
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1, **factory)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            scale**2 * groups * kernel_size**2,
            encoder_kernel_size,
            padding=encoder_kernel_size // 2,
            **factory,
        )
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for conv in (self.channel_compressor, self.content_encoder):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        return ddf_up(x, None, self.predict_filters(x), scale=self.scale, kernel_size=self.kernel_size)

    def predict_filters(self, x: Tensor) -> Tensor:
        """The filters as `ddf_up` takes them, (B, scale^2 * groups * k^2, H, W)."""
        logits = self.content_encoder(self.channel_compressor(x))
        # the authors shuffle pixels here, which takes the phases from the end of the channels; for ddf_up they lead
        taps = logits.unflatten(1, (self.groups, self.kernel_size**2, self.scale**2)).softmax(2)
        return taps.movedim(3, 1).flatten(1, 3)

    def extra_repr(self) -> str:
        return describe(self, "scale", "kernel_size", "groups")
