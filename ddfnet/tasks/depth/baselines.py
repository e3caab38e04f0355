"""Baselines: joint upsampling without training (paper, table 7: Bicubic, GF, JBU).

Every function takes `low` (B, 1, h, w), meters without missing values, `guidance` (B, 3, h * factor, w * factor), RGB
in [0, 1], and `factor`, and returns (B, 1, h * factor, w * factor) in the dtype of `low`. All know where the samples
stand in the image: see `ddfnet.tasks.depth.network.interpolate`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.tasks.depth.network import interpolate, sampling_phase

Upsampler = Callable[[Tensor, Tensor, int], Tensor]


def guided_filter(
    low: Tensor, guidance: Tensor, factor: int, *, radius: int | None = None, epsilon: float = 1e-3
) -> Tensor:
    """Guided filter with a color guide (He, Sun, Tang: Guided Image Filtering, TPAMI 2013, eq. 14 to 16) over the
    bicubically upsampled depth.

    In every window the depth is fitted as an affine function of R, G and B with the ridge penalty epsilon; a pixel
    takes the mean of the functions of all windows that hold it. Windows end at the border of the image.

    Args:
        radius: a window has (2 * radius + 1) ** 2 pixels; None: the factor, so that it holds a few samples of the low
            resolution.
        epsilon: added to the variances of the colors, which are in [0, 1].
    """
    radius = factor if radius is None else radius
    # float64: covariances are small differences of large means.
    depth, guide = interpolate(low.double(), factor, "bicubic"), guidance.double()

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)

    guide_mean, depth_mean = mean(guide), mean(depth)
    covariance = mean(guide * depth) - guide_mean * depth_mean
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = mean(torch.stack([guide[:, i] * guide[:, j] for i, j in pairs], 1))
    rr, rg, rb, gg, gb, bb = (
        products[:, n] - guide_mean[:, i] * guide_mean[:, j] + (epsilon if i == j else 0.0)
        for n, (i, j) in enumerate(pairs)
    )
    slope = _solve_symmetric(rr, rg, rb, gg, gb, bb, covariance)
    offset = depth_mean - (slope * guide_mean).sum(1, keepdim=True)
    return ((mean(slope) * guide).sum(1, keepdim=True) + mean(offset)).to(low.dtype)


def _solve_symmetric(rr: Tensor, rg: Tensor, rb: Tensor, gg: Tensor, gb: Tensor, bb: Tensor, right: Tensor) -> Tensor:
    """Solves 3 x 3 systems, one for each pixel: matrix entries (B, H, W), right side (B, 3, H, W)."""
    # By cofactors: millions of tiny systems are quicker so than through a general solver.
    a, b, c = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    e, f, i = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * a + rg * b + rb * c
    x, y, z = right.unbind(1)
    solution = torch.stack([a * x + b * y + c * z, b * x + e * y + f * z, c * x + f * y + i * z], 1)
    return solution / determinant[:, None]


def joint_bilateral(
    low: Tensor, guidance: Tensor, factor: int, *, radius: int = 2, sigma_space: float = 0.5, sigma_color: float = 0.1
) -> Tensor:
    """Joint bilateral upsampling (Kopf, Cohen, Lischinski, Uyttendaele, SIGGRAPH 2007).

    A pixel is the mean of the samples around it, weighted by two Gaussians: of the distance in the low resolution, and
    of the difference between its color and the color of the image where the sample was taken.

    Args:
        radius: a pixel looks at the (2 * radius + 1) ** 2 samples around that of its own cell; those outside the
            image have no weight.
        sigma_space: of the first Gaussian, in samples (0.5 and 5 x 5 samples are the authors').
        sigma_color: of the second, for the Euclidean distance of RGB in [0, 1].
    """
    batch, _, h, w = low.shape
    phase = sampling_phase(factor)
    guide = guidance.to(low.dtype)
    samples = F.pad(low, [radius] * 4)
    colors = F.pad(guide[:, :, phase::factor, phase::factor], [radius] * 4)
    inside = F.pad(torch.ones_like(low[:1]), [radius] * 4)
    cells = guide.view(batch, 3, h, factor, w, factor)
    offset = (torch.arange(factor, device=low.device, dtype=low.dtype) - phase) / factor  # of a pixel to its sample
    total, weights = torch.zeros_like(cells[:, :1]), torch.zeros_like(cells[:, :1])
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            window = (slice(None), slice(None), slice(dy, dy + h), slice(dx, dx + w))
            distance = (offset[:, None, None] - (dy - radius)) ** 2 + (offset - (dx - radius)) ** 2
            color = (cells - colors[window][:, :, :, None, :, None]).square().sum(1, keepdim=True)
            exponent = distance / (2 * sigma_space**2) + color / (2 * sigma_color**2)
            # The sample of the own cell may have another color and nearly no weight: a floor keeps the sum above 0.
            weight = inside[window][:, :, :, None, :, None] * (torch.exp(-exponent) + 1e-30)
            total += weight * samples[window][:, :, :, None, :, None]
            weights += weight
    return (total / weights).view(batch, 1, h * factor, w * factor)


BASELINES: dict[str, Upsampler] = {
    "nearest": lambda low, guidance, factor: interpolate(low, factor, "nearest"),
    "bilinear": lambda low, guidance, factor: interpolate(low, factor, "bilinear"),
    "bicubic": lambda low, guidance, factor: interpolate(low, factor, "bicubic"),
    "guided_filter": guided_filter,
    "joint_bilateral": joint_bilateral,
}
