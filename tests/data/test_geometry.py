import math
import random
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as F

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.geometry import Geometry
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import GEOMETRY, uniforms

SIZES = [(500, 375), (375, 500), (64, 64), (300, 40), (31, 400), (7, 5), (2400, 1600)]


def geometry(size=32, resize="pillow", **augment):
    return Geometry(Preprocessing(size=size, resize=resize), AugmentConfig(**augment))


def draws_of(made, count=1, seed=0):
    return uniforms(GEOMETRY, seed, 0, range(count), [0] * count, made.count)


def image_of(width, height, key=0):
    pixels = np.random.default_rng(key).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


class Scripted:
    """Stands for the module `random` in timm's crop: answers with our draws, in the order in which timm asks."""

    def __init__(self, draws):
        self.attempts, self.places = iter(draws[5:]), [draws[4], draws[3]]  # top, then left

    def uniform(self, low, high):
        return low + (high - low) * next(self.attempts)

    def randint(self, low, high):
        return low + int(self.places.pop(0) * (high - low + 1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augment", [
    {}, {"scale": (0.5, 1.0), "ratio": (1.0, 1.0)}, {"scale": (0.9, 1.0), "ratio": (0.2, 0.3)}, {"ratio": (3.0, 4.0)}
])  # fmt: skip
def test_boxes_are_timms_for_the_same_draws(size, augment):
    made = geometry(**augment)
    options = AugmentConfig(**augment)
    blank, differ = Image.new("1", size), set()
    for draws in draws_of(made, 60).tolist():
        with mock.patch("timm.data.transforms.random", Scripted(draws)):
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(blank, options.scale, options.ratio)
        box = made.box(draws, *size)
        assert box == (left, top, left + width, top + height)
        assert 0 <= box[0] < box[2] <= size[0]
        assert 0 <= box[1] < box[3] <= size[1]
        differ.add(box)
    if size == (500, 375) and not augment:
        assert len(differ) > 50


def test_boxes_have_timms_distribution():
    """Quantiles of each side, against as many boxes that timm draws for itself."""
    made, blank = geometry(), Image.new("1", (500, 375))
    ours = np.array([made.box(draws, 500, 375) for draws in draws_of(made, 20000, seed=3).tolist()])
    random.seed(5)
    params = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(20000)])
    theirs = np.stack([theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], axis=1)
    for side in range(4):
        points = np.linspace(0, 500, 60)
        distance = np.abs(
            np.searchsorted(np.sort(ours[:, side]), points) - np.searchsorted(np.sort(theirs[:, side]), points)
        )
        assert distance.max() / 20000 < 1.95 * math.sqrt(2 / 20000)  # Kolmogorov and Smirnov, one in 1000


def test_images_of_a_few_pixels():
    made = geometry(size=8, resize="torch")
    for width, height in [(1, 1), (1, 2), (3, 1), (2, 2), (1, 50)]:
        for draws in draws_of(made, 30).tolist():
            left, top, right, bottom = made.box(draws, width, height)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            row = torch.zeros(8, 8, 3, dtype=torch.uint8)
            made.write(np.full((height, width, 3), 200, np.uint8), draws, row)
            assert (row == 200).all()


@pytest.mark.parametrize("flips", [{}, {"hflip": 1.0}, {"hflip": 0.0, "vflip": 1.0}, {"hflip": 1.0, "vflip": 1.0}])
@pytest.mark.parametrize("interpolation", ["random", "bicubic", "lanczos", "nearest"])
def test_pixels_of_pillow_are_timms(flips, interpolation):
    """Crop, resize and flip by the functions that timm's transforms call."""
    made, image = geometry(interpolation=interpolation, **flips), image_of(120, 96)
    modes = {"bilinear": 2, "bicubic": 3, "lanczos": 1, "nearest": 0}
    seen = set()
    for draws in draws_of(made, 12).tolist():
        row = torch.zeros(32, 32, 3, dtype=torch.uint8)
        made.write(image, draws, row)
        left, top, right, bottom = made.box(draws, 120, 96)
        mode = ("bilinear" if draws[0] < 0.5 else "bicubic") if interpolation == "random" else interpolation
        seen.add(mode)
        resample = F._interpolation_modes_from_int(modes[mode])
        crop = F.resized_crop(Image.fromarray(image), top, left, bottom - top, right - left, [32, 32], resample)
        if draws[1] < flips.get("hflip", 0.5):
            crop = F.hflip(crop)
        if flips.get("vflip"):
            crop = F.vflip(crop)
        assert np.array_equal(row.numpy(), np.asarray(crop))
    assert len(seen) == (2 if interpolation == "random" else 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_of_torch_are_near_pillows(interpolation):
    """Where Pillow resizes rows first, within 1 level; a flip before the resize moves at most 1 more."""
    image, apart = image_of(500, 375), []
    options = {"size": 224, "interpolation": interpolation, "ratio": (1.0, 1.3), "scale": (0.3, 1.0)}
    kernels = {kernel: geometry(resize=kernel, **options) for kernel in ("torch", "pillow")}
    for draws in draws_of(kernels["torch"], 12).tolist():
        rows = {kernel: torch.zeros(224, 224, 3, dtype=torch.uint8) for kernel in kernels}
        for kernel, made in kernels.items():
            made.write(image, draws, rows[kernel])
        apart.append((rows["torch"].int() - rows["pillow"].int()).abs())
    assert max(difference.max().item() for difference in apart) <= 2
    assert np.mean([difference.float().mean() for difference in apart]) < 0.02


def test_flips_have_their_rates():
    made = geometry(hflip=0.3, vflip=0.6)
    image = np.zeros((9, 9, 3), np.uint8)
    image[:, 6:, 0], image[6:, :, 1] = 255, 255
    counts = np.zeros(2)
    for draws in draws_of(made, 3000).tolist():
        draws[5:7] = 1.0, 0.5  # the whole image
        row = torch.empty(32, 32, 3, dtype=torch.uint8)
        made.write(image, draws, row)
        counts += row[16, 0, 0].item() > 128, row[0, 16, 1].item() > 128
    assert counts / 3000 == pytest.approx([0.3, 0.6], abs=0.03)


# --- crop: pad --------------------------------------------------------------------------------------------------------


def test_pad_crop_is_a_shifted_copy_with_black_borders():
    image = image_of(32, 32)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    windows = {(y, x): padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    made, shifts = geometry(crop="pad", hflip=0.0), []
    for draws in draws_of(made, 200).tolist():
        row = torch.empty(32, 32, 3, dtype=torch.uint8)
        made.write(image, draws, row)
        (shift,) = (shift for shift, window in windows.items() if np.array_equal(window, row.numpy()))
        shifts.append(shift)
    assert len(set(shifts)) > 60
    assert np.mean(shifts, axis=0) == pytest.approx([4, 4], abs=0.6)


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (20, 20), (33, 32)])
@pytest.mark.parametrize("kernel", ["torch", "pillow"])
def test_pad_crop_resizes_the_short_side(size, kernel):
    made = geometry(crop="pad", resize=kernel, hflip=1.0)
    image = image_of(*size)
    for draws in draws_of(made, 5).tolist():
        row = torch.empty(32, 32, 3, dtype=torch.uint8)
        made.write(image, draws, row)
        resized = F.pad(F.resize(Image.fromarray(image), 32, F.InterpolationMode.BICUBIC), [4])
        top, left = int(draws[4] * (resized.height - 31)), int(draws[3] * (resized.width - 31))
        expected = np.asarray(F.hflip(F.crop(resized, top, left, 32, 32)))
        difference = np.abs(row.numpy().astype(int) - expected)
        assert difference.max() <= (0 if kernel == "pillow" else 1)


def test_a_batch_is_padded_like_its_images():
    made = geometry(crop="pad", vflip=0.4)
    images = np.stack([image_of(32, 32, key) for key in range(20)])
    draws = draws_of(made, 20)
    together = torch.empty(20, 32, 32, 3, dtype=torch.uint8)
    made.write_padded(made.padded(images[::-1]), np.arange(20)[::-1], draws, together)
    for image, own, expected in zip(images, draws.tolist(), together, strict=True):
        row = torch.empty(32, 32, 3, dtype=torch.uint8)
        made.write(image, own, row)
        assert torch.equal(row, expected)


def test_images_that_cannot_be_written_to_are_read_quietly():
    image = image_of(32, 32)
    image.setflags(write=False)
    for augment in ({"hflip": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}, {"crop": "pad"}):
        made = geometry(resize="torch", **augment)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.write(image, draws_of(made)[0].tolist(), torch.empty(32, 32, 3, dtype=torch.uint8))
