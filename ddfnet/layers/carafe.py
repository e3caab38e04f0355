"""CARAFE: upsampling with filters predicted at each new pixel (Wang et al., ICCV 2019)."""

import torch
from torch import Tensor, nn

from ddfnet.layers.ddf_up import check_scale
from ddfnet.layers.filter_norm import check_kernel_size
from ddfnet.ops.ddf import ddf_up


class CARAFE(nn.Module):
    """CARAFE (Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, section 3).

    A 1x1 convolution compresses the channels, a second convolution encodes scale * scale filters of k x k taps for
    each pixel and group, a softmax over the taps makes each filter a weighted average, and `ddfnet.ops.ddf_up` applies
    them, with no channel filter. Parameter names, shapes and the order of the encoder's channels are those of the
    authors' implementation, so that published weights load; so is the start, with filters that hardly differ from a
    box.

    Args:
        channels: C, input and output channels.
        scale: how many new pixels an old one becomes along each axis; 2 or more.
        kernel_size: k, odd; the paper's k_up.
        encoder_kernel_size: of the second convolution, odd; the paper's k_encoder, and it recommends k - 2.
        compressed_channels: the paper's C_m.
        groups: of channels, each with filters of its own.

    Shape:
        (B, C, H, W) -> (B, C, H * scale, W * scale), same memory format.

    Raises:
        ValueError: a kernel size that is even or 1, an even encoder kernel size, groups that do not divide the
            channels, fewer than one compressed channel, or a scale below 2.
        TypeError: a scale that is not an int.
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
        if encoder_kernel_size < 1 or encoder_kernel_size % 2 == 0:
            raise ValueError(f"encoder_kernel_size: got {encoder_kernel_size}, expected an odd number")
        if compressed_channels < 1:
            raise ValueError(f"compressed_channels: got {compressed_channels}, expected at least 1")
        if groups < 1 or channels % groups:
            raise ValueError(
                f"groups must divide the channels: got {groups} groups for {channels} channels; "
                f"give a divisor of {channels}"
            )
        self.channels, self.scale, self.kernel_size, self.groups = channels, scale, kernel_size, groups
        factory = {"device": device, "dtype": dtype}
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
        nn.init.zeros_(self.channel_compressor.bias)
        nn.init.zeros_(self.content_encoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.content_encoder(self.channel_compressor(x))
        # the authors shuffle pixels here, which takes the phases from the end of the channels; for ddf_up they lead
        taps = logits.unflatten(1, (self.groups, self.kernel_size**2, self.scale**2)).softmax(2)
        filters = taps.movedim(3, 1).flatten(1, 3)
        return ddf_up(x, None, filters, scale=self.scale, kernel_size=self.kernel_size)

    def extra_repr(self) -> str:
        return f"{self.channels}, scale={self.scale}, kernel_size={self.kernel_size}, groups={self.groups}"
