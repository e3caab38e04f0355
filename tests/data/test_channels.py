"""Images of 1, 2 and 4 channels, and rows that are not square."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.batches import TrainBatchTransform
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.decode import Decoder
from ddfnet.data.memory import decode_all
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.data.val_cache import ValCache

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def how(channels, **changes):
    return Preprocessing(mean=(0.4,) * channels, std=(0.25,) * channels, **{"size": (16, 24), **changes})


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(mode, size=(40, 30)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    return Image.fromarray(pixels if bands > 1 else pixels[..., 0], mode)


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "1"])
def test_every_mode_is_read_with_every_number_of_channels(mode, channels):
    image = noise("RGB").convert("P") if mode == "P" else noise("L").convert("1") if mode == "1" else noise(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    pixels = Decoder(channels=channels)(encoded(image, kind))
    assert pixels.shape == (30, 40, channels)
    rgb = np.asarray(image.convert("RGB"))
    if channels >= 3:
        assert np.array_equal(pixels[..., :3], rgb)
    else:
        luminance = rgb @ np.array([0.299, 0.587, 0.114])
        assert np.abs(pixels[..., 0] - luminance).max() <= 1
    if channels in (2, 4):
        alpha = np.asarray(image)[..., -1] if mode in ("LA", "RGBA") else 255
        assert (pixels[..., -1] == alpha).all()


@pytest.mark.parametrize("kernel", ["torch", "pillow"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_each_channel_is_resized_by_itself(channels, kernel):
    """As the same channel of an RGB image: alpha, or whatever the fourth is, does not weigh the others."""
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, channels)).astype(np.uint8)
    made = eval_transform(how(channels, resize=kernel))(pixels)
    assert made.shape == (channels, 16, 24)
    for c in range(channels):
        alone = eval_transform(how(3, resize=kernel))(np.repeat(pixels[..., c : c + 1], 3, axis=2))
        assert (made[c].int() - alone[0].int()).abs().max() <= (1 if kernel == "torch" else 0)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_batches_from_files_from_memory_and_from_a_cache_are_the_same(index, tmp_path, channels, crop):
    augment = AugmentConfig(crop=crop, color_jitter=0.4 if channels == 1 else 0, interpolation="bicubic")
    requests = [(0, i, 0) for i in range(4)]
    batch = TrainDataset(index, how(channels), augment, seed=0).read(requests)
    assert batch["image"].shape == (4, channels, 16, 24)
    decoded = decode_all(index, Decoder(channels=channels))
    assert torch.equal(
        TrainDataset(index, how(channels), augment, seed=0, decoded=decoded).read(requests)["image"], batch["image"]
    )
    plain = EvalDataset(index, how(channels)).read([0, 5])["image"]
    assert plain.shape == (2, channels, 16, 24)
    assert torch.equal(EvalDataset(index, how(channels), decoded=decoded).read([0, 5])["image"], plain)
    for _ in range(2):
        cache = ValCache(tmp_path / "cache", index, how(channels))
        assert torch.equal(EvalDataset(index, how(channels), cache=cache).read([0, 5])["image"], plain)


class GrayAsRgb:
    def crop(self, data, box_of):
        pixels, box = Decoder(channels=1).crop(data, box_of)
        return np.repeat(pixels, 3, axis=2), box


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_operations_on_gray_are_those_on_an_rgb_image_of_it(index, where):
    """The mean of all three is that of the one, so that what an affine operation leaves empty is the same."""
    augment = AugmentConfig(rand_augment="rand-m9-n3-mstd0.5", where=where, interpolation="bilinear")
    made = {}
    for channels in (1, 3):
        dataset = TrainDataset(index, how(channels), augment, seed=3, on_device=where == "device")
        if channels == 3:
            dataset.decoder = GrayAsRgb()
        batch = dataset.read([(0, i, 0) for i in range(8)])
        transform = TrainBatchTransform(how(channels), augment, device="cpu", seed=3, num_classes=3)
        made[channels] = transform(batch)["image"]
    assert made[1].shape == (8, 1, 16, 24)
    assert (made[1] - made[3]).abs().max() <= 2 / 255 / 0.25


def test_a_policy_moves_by_shares_of_its_own_side(index):
    """timm's TranslateXRel is a share of the width, TranslateYRel of the height."""
    from ddfnet.data.policy.stages import TimmOps
    from ddfnet.data.policy.table import VALUE

    names = ("TranslateXRel", "TranslateYRel")
    ones = np.ones(2)
    ops = TimmOps(names, ones, 10 * ones, 0 * ones, 10 * ones, (16, 24), None)
    table = ops.draw(np.array([[0], [1]]), np.full((2, 1, 6), 0.25))
    assert table[:, 0, VALUE].tolist() == pytest.approx([0.45 * 24, 0.45 * 16])


def test_caches_of_other_crop_modes_are_other_files(index, tmp_path):
    paths = set()
    for changes in ({}, {"crop_mode": "squash"}, {"crop_mode": "border"}, {"size": (24, 16)}):
        paths.add(ValCache(tmp_path, index, how(3, **changes)).path)
    border = how(3, crop_mode="border").replaced(mean=(0.1, 0.1, 0.1))
    paths.add(ValCache(tmp_path, index, border).path)
    assert len(paths) == 5
    # The normalization is done later: another mean is the same pixels.
    assert ValCache(tmp_path, index, how(3).replaced(mean=(0.1, 0.1, 0.1))).path in paths
