"""Prepared stores: the images of their source, region by region, unpacked and in training."""

import io
import os
import shutil

import numpy as np
import pytest
import torch
from image_formats import WRITERS, write_tar_of_tars
from PIL import Image
from synthetic_images import draw, mean_difference
from test_jpeg import image

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import TrainDataset
from ddfnet.data.decode import open_rgb
from ddfnet.data.prepare import parts
from ddfnet.data.prepare.encode import Encoding, encode
from ddfnet.data.prepare.unpack import unpack
from ddfnet.data.prepare.write import verify_store, write_store
from ddfnet.data.sources import open_source, store
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_has_the_images_of_its_source(photos, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(parts, "PART_IMAGES", 5)
    monkeypatch.setattr("ddfnet.data.prepare.write.PART_IMAGES", 5)
    source = index_folder(photos)
    report = write_store(source, tmp_path / "store", Encoding(), workers=workers)
    kept = open_source(tmp_path / "store")
    assert sorted(os.listdir(tmp_path / "store")) == ["images-00000.bin", "images-00001.bin", "images-00002.bin",
                                                      "index.npz", "store.json"]  # fmt: skip
    assert kept.classes == source.classes
    assert [(kept.label(i), kept.key(i)) for i in range(14)] == [(source.label(i), source.key(i)) for i in range(14)]
    assert (report.images, report.cut, report.corrupt) == (14, 14, [])
    differences = [mean_difference(kept.read(i), source.read(i)) for i in range(14)]
    assert max(differences) < 6  # noise and saturated colors; photographs change by 0.05
    assert np.mean(differences) == pytest.approx(report.difference)
    assert report.identical == sum(difference == 0 for difference in differences)
    assert verify_store(kept) == []
    assert [tuple(size) for size in kept.sizes.tolist()] == [open_rgb(source.read(i)).size for i in range(14)]


def test_regions_of_a_store_have_the_pixels_of_the_whole(photos, tmp_path):
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    rng, smaller = np.random.default_rng(0), 0
    for i in range(14):
        data = kept.read(i)
        whole = np.asarray(open_rgb(data))
        for _ in range(10):
            x, y = rng.integers(0, 60, 2).tolist()
            box = (x, y, x + int(rng.integers(1, 60)), y + int(rng.integers(1, 30)))
            part, left, top = kept.read_region(i, box)
            smaller += len(part) < len(data)
            region = np.asarray(open_rgb(part))[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
            assert np.array_equal(region, whole[box[1] : box[3], box[0] : box[2]])
    assert smaller > 70


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="no jpegtran")
def test_lossless_keeps_every_pixel(photos, tmp_path):
    image((80, 60)).save(photos / "cat" / "progressive.jpg", progressive=True)
    source = index_folder(photos)
    report = write_store(source, tmp_path / "store", Encoding(quality="lossless"))
    kept = open_source(tmp_path / "store")
    assert report.identical == report.cut == len(source) == 15
    assert report.difference == 0
    for i in range(15):
        assert np.array_equal(np.asarray(open_rgb(kept.read(i))), np.asarray(open_rgb(source.read(i))))


def test_lossless_without_its_program(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"jpegtran, which is missing: apt install libjpeg-turbo-progs"):
        Encoding(quality="lossless")


def test_files_that_are_no_plain_jpegs_stay_as_they_are(tmp_path):
    folder = tmp_path / "odd" / "x"
    folder.mkdir(parents=True)
    small = image((70, 50))
    small.save(folder / "a.png")
    small.convert("CMYK").save(folder / "cmyk.jpg")
    small.convert("P").save(folder / "palette.png")
    Image.fromarray(np.arange(3500, dtype=np.uint16).reshape(50, 70) * 18).save(folder / "deep.png")
    small.save(folder / "really_png.jpg", format="PNG")
    small.save(folder / "marked.jpg", subsampling=0, restart_marker_blocks=3)
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    source = index_folder(folder.parent)
    report = write_store(source, tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    assert [kept.read(i) for i in range(7)] == [source.read(i) for i in range(7)]
    assert report.identical == 7
    assert report.cut == 1  # 9 blocks in a row, 3 between markers: it could be cut before


def test_progressive_and_noisy_jpegs(tmp_path):
    out = io.BytesIO()
    image((96, 64)).save(out, "JPEG", progressive=True, quality=90)
    done = encode(out.getvalue(), Encoding())
    assert done.starts is not None
    assert 0 < mean_difference(done.data, out.getvalue()) == done.difference < 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))
    out = io.BytesIO()
    noise.save(out, "JPEG", quality=100, subsampling=0)
    assert encode(out.getvalue(), Encoding()).starts is not None


def test_quality_and_short_side(photos, tmp_path):
    draw(photos / "cat" / "large.png", 3, (400, 200))
    draw(photos / "cat" / "small.png", 3, (40, 20))
    source = index_folder(photos)
    report = write_store(source, tmp_path / "store", Encoding(quality=90, short_side=80))
    kept = open_source(tmp_path / "store")
    assert report.cut == 16
    assert kept.sizes.min(1).tolist() == [min(80, *open_rgb(source.read(i)).size) for i in range(16)]
    assert [kept.key(i) for i in (7, 8)] == ["cat/large.png.jpg", "cat/small.png.jpg"]
    assert all(kept.read(i)[:2] == b"\xff\xd8" for i in range(16))
    assert Image.open(io.BytesIO(kept.read(6))).mode == "L"
    expected = open_rgb(source.read(7)).resize((160, 80), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(open_rgb(kept.read(7)), np.int16) - np.asarray(expected, np.int16)).mean() < 3
    for words, options in (("contradict", {"quality": "lossless", "short_side": 3}), ("1 to 100", {"quality": 0}),
                           ("at least 1", {"short_side": 0})):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Encoding(**options)


def test_unpacked_trees_are_the_tree(tree, tmp_path):
    """From every source: the same files in the same class folders."""
    expected = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*.png")}
    write_store(index_folder(tree), tmp_path / "store", Encoding())
    sources = {"store": tmp_path / "store", "folder": tree}
    for kind in ("class_tars", "folder_tar"):
        sources[kind] = WRITERS[kind](tree, tmp_path / kind)
    for kind, path in sources.items():
        out = tmp_path / "again" / kind
        assert unpack(open_source(path), out) == 18
        assert {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.*")} == expected
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        unpack(index_folder(tree), tmp_path / "again" / "store")


def test_from_a_tar_of_tars_in_one_command(tree, tmp_path, prepare_command, capsys):
    write_tar_of_tars(tree, tmp_path / "downloads")
    shutil.copytree(tree, tmp_path / "downloads" / "val")
    assert prepare_command(tmp_path / "downloads", tmp_path / "store", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'store' / 'train'}: 18 images" in printed
    assert f"{tmp_path / 'store' / 'val'}: 18 images" in printed
    train, val = (open_source(tmp_path / "store" / split) for split in ("train", "val"))
    assert [train.read(i) for i in range(18)] == [val.read(i) for i in range(18)]
    assert prepare_command("--verify", tmp_path / "store") == 0
    assert prepare_command("--unpack", tmp_path / "store", tmp_path / "out") == 0
    assert index_folder(tmp_path / "out" / "train").classes == ["cat", "dog", "eel"]
    assert len(index_folder(tmp_path / "out" / "val")) == 18


def test_the_command_lists_corrupt_images_and_wrong_use(tree, tmp_path, prepare_command, capsys):
    (tree / "cat" / "001.png").write_bytes(b"x")
    assert prepare_command(tree, tmp_path / "store", "--workers", "1") == 1
    assert (
        "PROBLEM: " + str(tree / "cat" / "001.png") + " is corrupt (UnidentifiedImageError" in capsys.readouterr().out
    )
    for arguments, words in (
        ((tree,), "give SOURCE and the folder of the store"),
        ((tree, tmp_path / "x", "--quality", "best"), "--quality must be keep, lossless or 1 to 100, got best"),
        ((tmp_path / "none", tmp_path / "x"), "none does not exist"),
        ((tree, tmp_path / "x", "--kind", "zip"), "invalid choice: 'zip'"),
        ((tree, tmp_path / "x", "--workers", "0"), "must be at least 1"),
    ):
        assert prepare_command(*arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("options", [{}, {"interpolation": "bicubic", "rand_augment": "rand-m7-mstd0.5-inc1"},
                                     {"scale": (0.9, 1.0), "ratio": (0.2, 0.3)}, {"crop": "pad"}])  # fmt: skip
def test_training_reads_regions_and_gets_the_pixels_of_the_whole(photos, tmp_path, small, options, monkeypatch):
    """A store against the tree that it unpacks to: the same batches, from fewer bytes."""
    (photos / "cat" / "3.jpg").write_bytes(b"no image")
    draw(photos / "dog" / "whole.png", 3, (60, 50))
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    unpack(kept, tmp_path / "tree")
    augment = AugmentConfig(**options)
    stored, files = (TrainDataset(source, small, augment, seed=4) for source in (kept, index_folder(tmp_path / "tree")))
    read, original = [], store.Store.read_region
    monkeypatch.setattr(store.Store, "read_region", lambda self, *where: read.append(1) or original(self, *where))
    for request in ((epoch, i, repeat) for epoch in range(3) for i in range(15) for repeat in range(2)):
        ours, theirs = stored[request], files[request]
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    # Of 15 images one is a PNG and one corrupt; what takes its place is read as a region, too.
    assert len(read) == 0 if options.get("crop") == "pad" else len(read) >= 3 * 13 * 2


def test_larger_images_than_the_limit_stay_and_are_listed_as_large(tree, tmp_path, prepare_command, capsys):
    Image.new("RGB", (60, 50), (9, 99, 9)).save(tree / "cat" / "wide.jpg")
    (tree / "cat" / "x.heic").write_bytes(b"x")
    path = tree / "cat" / "wide.jpg"
    assert prepare_command(tree, tmp_path / "store", "--workers", "1", "--max-pixels", "2999") == 1
    out = capsys.readouterr().out
    assert f"PROBLEM: {path} is too large (60 x 50 pixels are more than the 2,999 of data.max_pixels" in out
    assert f"note: {tree}: 1 file not counted: .heic 1" in out
    kept = open_source(tmp_path / "store")
    number = [kept.key(i) for i in range(len(kept))].index("cat/wide.jpg")
    assert kept.read(number) == path.read_bytes()
    assert prepare_command(tree, tmp_path / "store", "--workers", "1") == 2  # another limit is another store
    assert "was prepared with options that differ" in capsys.readouterr().err
    assert prepare_command(tree, tmp_path / "other", "--workers", "1", "--max-pixels", "3000") == 0


def test_a_raised_limit_is_above_that_of_pillow(photos, tmp_path, monkeypatch):
    usual = Encoding().state()
    assert "max_pixels" not in usual  # as in stores of before there was a choice
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it raises from 2000 on
    for encoding in (Encoding(max_pixels=10**6), Encoding(quality=80, max_pixels=10**6)):
        report = write_store(index_folder(photos), tmp_path / str(encoding.quality), encoding)
        assert report.corrupt == []
        assert report.cut == 14
    unpack(open_source(tmp_path / "80"), tmp_path / "out")
    assert len(index_folder(tmp_path / "out")) == 14
