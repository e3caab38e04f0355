import logging

import numpy as np
import pytest
import torch
from image_formats import WRITERS
from PIL import Image
from synthetic_images import draw

from ddfnet.data import memory
from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.decode import Decoder, open_rgb
from ddfnet.data.memory import DecodedImages, cached_images, decode_all, estimated_bytes
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources import open_source
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError

REQUESTS = [(1, i, repeat) for i in (3, 17, 0, 3, 9) for repeat in (0, 1)]
RECIPES = [{}, {"crop": "pad"}, {"crop": "pad", "color_jitter": 0}, {"rand_augment": "rand-m7-mstd0.5-inc1"}]


@pytest.fixture
def mixed(tmp_path):
    """Images of several sizes and modes."""
    for n in range(12):
        draw(tmp_path / "mixed" / "ab"[n % 2] / f"{n}.png", n, size=(30 + n, 50 - n))
    Image.new("L", (20, 10), 77).save(tmp_path / "mixed" / "a" / "gray.jpg")
    return index_folder(tmp_path / "mixed")


def test_images_are_those_of_the_source(mixed, index):
    for source, equal in ((mixed, False), (index, True)):
        decoded = decode_all(source, Decoder())
        assert decoded.equal_sized is equal
        for i in range(len(source)):
            assert np.array_equal(decoded.pixels(i), np.asarray(open_rgb(source.read(i))))
    assert decoded.stacked().shape == (18, 32, 40, 3)
    assert np.array_equal(decoded.stacked()[17], decoded.pixels(17))


def test_a_source_that_is_not_stored_in_its_own_order(index, tree, tmp_path):
    WRITERS["tar_of_tars"](tree, tmp_path / "out")
    source = open_source(tmp_path / "out" / "ILSVRC2012_img_train.tar")
    decoded = decode_all(source, Decoder())
    for i in range(18):
        assert np.array_equal(decoded.stacked()[i], np.asarray(open_rgb(index.read(i))))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [24, 32])
def test_training_batches_are_the_same_from_memory(index, mixed, recipe, size):
    for source in (index, mixed):
        requests = [(e, i % len(source), r) for e, i, r in REQUESTS]
        plain, cached = (
            TrainDataset(source, Preprocessing(size=size), AugmentConfig(**recipe), seed=2, decoded=decoded).read(
                requests
            )
            for decoded in (None, decode_all(source, Decoder()))
        )
        for key in ("image", "target", "index", "repeat"):
            assert torch.equal(plain[key], cached[key])


@pytest.mark.parametrize("size", [24, 40])
def test_evaluation_is_the_same_from_memory(index, mixed, size):
    for source in (index, mixed):
        plain, cached = (
            EvalDataset(source, Preprocessing(size=size), decoded=decoded).read(list(range(len(source))))
            for decoded in (None, decode_all(source, Decoder()))
        )
        assert torch.equal(plain["image"], cached["image"])
        assert torch.equal(plain["target"], cached["target"])


def test_corrupt_images_stay_corrupt(index, small):
    with open(index.name(4), "wb") as file:
        file.write(b"junk")
    decoded = decode_all(index, Decoder())
    assert decoded.pixels(4) is None
    assert not decoded.equal_sized
    augment = AugmentConfig(crop="pad")
    plain, cached = (TrainDataset(index, small, augment, seed=0, decoded=which) for which in (None, decoded))
    assert cached[(0, 4, 0)][3] == plain[(0, 4, 0)][3] != ""
    assert torch.equal(cached[(0, 4, 0)][0], plain[(0, 4, 0)][0])
    for options in ({}, {"decoded": decoded}):
        with pytest.raises(DataError, match=r"004\.png is corrupt .*would change the result(\. All .*check_data.*)?$"):
            EvalDataset(index, small, **options).read([3, 4])


def test_corrupt_evaluation_images_are_told_before_training(index, small, caplog):
    for i in (2, 7, 9):
        with open(index.name(i), "r+b") as file:
            file.truncate(200)
    with caplog.at_level(logging.INFO, logger="ddfnet"):
        decoded = decode_all(index, Decoder())
    assert "15 of 18 images decoded into memory" in caplog.text
    assert [i for i, _ in decoded.faults] == [2, 7, 9]
    with pytest.raises(DataError, match=r"002\.png is corrupt .*2 other images .*: \S+dog/001\.png, \S+dog/003\.png$"):
        EvalDataset(index, small, decoded=decoded)


def test_an_evaluation_image_that_could_not_be_read_once_is_no_fault(index, small):
    decoded = decode_all(index, Decoder())
    sizes = decoded.sizes.copy()
    sizes[4] = 0
    once = DecodedImages(decoded.blob, decoded.offsets, sizes, faults=((4, "OSError: Input/output error"),))
    plain, cached = (EvalDataset(index, small, decoded=which).read([3, 4]) for which in (decoded, once))
    assert torch.equal(plain["image"], cached["image"])


def test_large_sets_are_left_on_disk(index, monkeypatch, caplog):
    needed = 18 * 40 * 32 * 3
    assert estimated_bytes(index, Decoder()) == needed
    monkeypatch.setattr(memory, "LIMIT", needed - 1)
    assert cached_images(index, Decoder(), "auto") is None
    assert cached_images(index, Decoder(), "none") is None
    with caplog.at_level(logging.INFO, logger="ddfnet"):
        assert cached_images(index, Decoder(), "memory") is not None
    assert "18 images decoded into memory, 0 MB" in caplog.text
    monkeypatch.setattr(memory, "LIMIT", needed)
    assert cached_images(index, Decoder(), "auto") is not None


def test_a_set_whose_first_images_are_small(index, monkeypatch):
    """The estimate errs; what is decoded counts."""
    monkeypatch.setattr(memory, "estimated_bytes", lambda *arguments: 0.0)
    assert decode_all(index, Decoder(), limit=10_000) is None


def test_workers_are_for_work(index):
    decoded = decode_all(index, Decoder())
    pad = AugmentConfig(crop="pad", rand_augment="rand-m7")

    def quick(size, augment, **options):
        return TrainDataset(index, Preprocessing(size=size), augment, seed=0, **options).is_quick

    assert quick(32, pad, decoded=decoded, on_device=True)
    assert not quick(32, pad, decoded=decoded)  # Pillow has the operations to do
    assert not quick(24, pad, decoded=decoded, on_device=True)
    assert not quick(32, pad, on_device=True)
    assert not quick(32, AugmentConfig(color_jitter=0), decoded=decoded)
    assert not EvalDataset(index, Preprocessing(size=32), decoded=decoded).is_quick
