"""The methods without training, against loops over pixels in float64."""

import math

import numpy as np
import pytest
import torch

from ddfnet.tasks.depth.baselines import BASELINES, guided_filter, joint_bilateral
from ddfnet.tasks.depth.network import interpolate, sampling_phase


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    low = 1 + torch.rand(1, 1, 4, 3, generator=generator, dtype=torch.float64)
    return low, torch.rand(1, 3, 16, 12, generator=generator, dtype=torch.float64)


def cubic(t):
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def hat(t):
    return max(0.0, 1 - abs(t))


@pytest.mark.parametrize(("name", "kernel", "reach"), [("bilinear", hat, 1), ("bicubic", cubic, 2)])
def test_interpolation(scene, name, kernel, reach):
    low, guidance = scene
    factor, (h, w), phase = 4, low.shape[2:], sampling_phase(4)
    expected = torch.zeros(h * factor, w * factor, dtype=torch.float64)
    for y in range(h * factor):
        for x in range(w * factor):
            v, u = (y - phase) / factor, (x - phase) / factor
            for i in range(math.floor(v) - reach, math.floor(v) + reach + 1):
                for j in range(math.floor(u) - reach, math.floor(u) + reach + 1):
                    value = low[0, 0, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
                    expected[y, x] += kernel(v - i) * kernel(u - j) * value
    torch.testing.assert_close(BASELINES[name](low, guidance, factor)[0, 0], expected)


def test_nearest(scene):
    low, guidance = scene
    out = BASELINES["nearest"](low, guidance, 4)[0, 0]
    assert all(out[y, x] == low[0, 0, y // 4, x // 4] for y in range(16) for x in range(12))


def test_guided_filter(scene):
    low, guidance = scene
    radius, epsilon = 3, 0.02
    depth, guide = interpolate(low, 4, "bicubic")[0, 0].numpy(), guidance[0].numpy()
    height, width = depth.shape

    def window(y, x):
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    slope, offset = np.zeros((3, height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            colors = guide[(slice(None), *window(y, x))].reshape(3, -1)
            values = depth[window(y, x)].ravel()
            covariance = np.cov(colors, bias=True) + epsilon * np.eye(3)
            cross = ((colors - colors.mean(1, keepdims=True)) * (values - values.mean())).mean(1)
            slope[:, y, x] = np.linalg.solve(covariance, cross)
            offset[y, x] = values.mean() - slope[:, y, x] @ colors.mean(1)
    expected = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            at = window(y, x)
            expected[y, x] = slope[(slice(None), *at)].mean((1, 2)) @ guide[:, y, x] + offset[at].mean()
    got = guided_filter(low, guidance, 4, radius=radius, epsilon=epsilon)[0, 0]
    torch.testing.assert_close(got, torch.from_numpy(expected))


def test_joint_bilateral(scene):
    low, guidance = scene
    radius, space, color, factor, phase = 1, 0.7, 0.2, 4, sampling_phase(4)
    (h, w), guide = low.shape[2:], guidance[0].numpy()
    expected = torch.zeros(h * factor, w * factor, dtype=torch.float64)
    for y in range(h * factor):
        for x in range(w * factor):
            total = weights = 0.0
            for i in range(y // factor - radius, y // factor + radius + 1):
                for j in range(x // factor - radius, x // factor + radius + 1):
                    if not (0 <= i < h and 0 <= j < w):
                        continue
                    distance = ((y - phase) / factor - i) ** 2 + ((x - phase) / factor - j) ** 2
                    other = guide[:, y, x] - guide[:, i * factor + phase, j * factor + phase]
                    weight = math.exp(-distance / (2 * space**2) - (other @ other) / (2 * color**2))
                    total, weights = total + weight * float(low[0, 0, i, j]), weights + weight
            expected[y, x] = total / weights
    got = joint_bilateral(low, guidance, factor, radius=radius, sigma_space=space, sigma_color=color)
    torch.testing.assert_close(got[0, 0], expected)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("factor", [2, 4, 16])
def test_flat_depth_stays_flat_whatever_the_image_shows(name, factor):
    low = torch.full((2, 1, 3, 4), 2.5)
    for guidance in (torch.rand(2, 3, 3 * factor, 4 * factor), torch.zeros(2, 3, 3 * factor, 4 * factor)):
        out = BASELINES[name](low, guidance, factor)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, torch.full((2, 1, 3 * factor, 4 * factor), 2.5))


def test_guidance_moves_an_edge_to_its_place():
    """Depth and color have one edge, between the samples: only the guided methods find where it is."""
    factor, edge = 4, 14
    depth = torch.where(torch.arange(32) < edge, 1.0, 2.0).expand(1, 1, 32, 32)
    guidance = torch.where(torch.arange(32) < edge, 0.2, 0.8).expand(1, 3, 32, 32)
    phase = sampling_phase(factor)
    low = depth[..., phase::factor, phase::factor]
    errors = {name: (up(low, guidance, factor) - depth).square().mean().item() for name, up in BASELINES.items()}
    assert errors["joint_bilateral"] < 1e-4
    assert errors["guided_filter"] < errors["bicubic"] / 2


@pytest.mark.parametrize("name", BASELINES)
def test_autocast_changes_nothing(scene, name):
    low, guidance = (part.float() for part in scene)
    expected = BASELINES[name](low, guidance, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(BASELINES[name](low, guidance, 4), expected)
