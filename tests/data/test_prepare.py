"""Prepared stores: same images, resumption, verification, unpacking, and what is wrong with one is named."""

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_formats import WRITERS, write_tar_of_tars
from PIL import Image
from synthetic_images import draw, make_tree
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
from ddfnet.utils.errors import DataError, UserError
from tests.conftest import exit_code

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_images.py"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """2 classes of 7 JPEGs each, of all kinds of sampling."""
    for c, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(7):
            options = {"subsampling": i % 3} if i < 6 else {}
            mode = "L" if i == 6 else "RGB"
            image((130 + 9 * i, 90), 7 * c + i, mode).save(folder / f"{i}.jpg", quality=88, **options)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def main():
    script = runpy.run_path(str(SCRIPT))
    return lambda *arguments: exit_code(script["main"], list(arguments))


def mean_difference(a, b):
    return np.abs(np.asarray(open_rgb(a), np.int16) - np.asarray(open_rgb(b), np.int16)).mean()


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


def test_corrupt_images_are_listed_and_stay(photos, tmp_path):
    (photos / "cat" / "3.jpg").write_bytes(b"no image")
    cut = (photos / "dog" / "1.jpg").read_bytes()[:1500]
    (photos / "dog" / "1.jpg").write_bytes(cut)
    (photos / "dog" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    source = index_folder(photos)
    report = write_store(source, tmp_path / "store", Encoding())
    assert [name for name, _ in report.corrupt] == [source.name(i) for i in (3, 8, 14)]
    assert "FileNotFoundError" in report.corrupt[2][1]
    kept = open_source(tmp_path / "store")
    assert (kept.read(3), kept.read(8), kept.read(14)) == (b"no image", cut, b"")
    assert kept.sizes[[3, 8, 14]].tolist() == [[0, 0]] * 3
    assert report.identical <= 12


def test_a_store_that_was_cut_off_is_continued(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_IMAGES", 5)
    monkeypatch.setattr("ddfnet.data.prepare.write.PART_IMAGES", 5)
    source, target = index_folder(photos), tmp_path / "store"
    write_store(source, tmp_path / "whole", Encoding())
    calls = []

    def interrupt(data, encoding):
        calls.append(data)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return encode(data, encoding)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_store(source, target, Encoding())
    with pytest.raises(DataError, match=r"is an unfinished store; run prepare_images\.py again, it continues"):
        open_source(target)
    with pytest.raises(UserError, match=r"prepared with options that differ from these .*name another folder"):
        write_store(source, target, Encoding(quality=80))
    (target / "images-00001.bin").write_bytes(b"half a file that a crash left")
    calls.clear()
    monkeypatch.setattr(parts, "encode", lambda data, encoding: calls.append(data) or encode(data, encoding))
    seen = []
    write_store(source, target, Encoding(), progress=lambda done, total: seen.append((done, total)))
    assert len(calls) == 9  # the first part was done
    assert (seen[0], seen[-1]) == ((5, 14), (14, 14))
    for name in ("images-00000.bin", "images-00001.bin", "images-00002.bin"):
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls.clear()
    write_store(source, target, Encoding())  # a finished one is kept
    assert calls == []


def test_killed_in_the_middle(tmp_path):
    """SIGKILL of the whole command, then again: the result is that of an undisturbed run."""
    make_tree(tmp_path / "images", per_class=900, suffix=".jpg")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "images"), str(tmp_path / "store"), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (tmp_path / "store" / "parts").exists() and any((tmp_path / "store" / "parts").iterdir()):
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2,700 images" in done.stdout
    kept, source = open_source(tmp_path / "store"), index_folder(tmp_path / "images")
    assert verify_store(kept) == []
    files = [*(f"images-{part:05d}.bin" for part in range(3)), "index.npz", "store.json"]
    assert sorted(os.listdir(tmp_path / "store")) == files  # nothing of the killed run is left
    for i in range(0, 2700, 300):
        assert mean_difference(kept.read(i), source.read(i)) < 6


def test_a_worker_that_is_killed_is_a_clear_error(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("ddfnet.data.prepare.write.PART_IMAGES", 5)
    main_process = os.getpid()

    def die(data, encoding):
        if os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(data, encoding)

    monkeypatch.setattr(parts, "encode", die)
    with pytest.raises(UserError, match=r"a worker process was killed.*run it again"):
        write_store(index_folder(photos), tmp_path / "store", Encoding(), workers=2)


def test_a_full_disk_is_a_clear_error(photos, tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(parts, "write_atomically", full)
    with pytest.raises(UserError, match=r"cannot write .*images-00000\.bin: No space left on device; .* run it again"):
        write_store(index_folder(photos), tmp_path / "store", Encoding())


def test_stores_that_are_damaged_or_something_else(photos, tmp_path):
    source, target = index_folder(photos), tmp_path / "store"
    with pytest.raises(UserError, match=r"holds other things \((cat|dog), \.\.\.\)"):
        write_store(source, photos, Encoding())
    write_store(source, target, Encoding())
    meta = json.loads((target / "store.json").read_text())
    index, images = (target / "index.npz").read_bytes(), (target / "images-00000.bin").read_bytes()

    def fails(words):
        with pytest.raises(DataError, match=words) as caught:
            open_source(target)
        assert str(target) in str(caught.value)

    (target / "images-00000.bin").write_bytes(images[:-1])
    fails(r"images-00000\.bin has [\d,]+ bytes, it should have [\d,]+; copy the store again")
    (target / "images-00000.bin").unlink()
    fails(r"images-00000\.bin is missing")
    (target / "images-00000.bin").write_bytes(images)
    for bad in (index[: len(index) // 2], b"", b"\x93NUMPY" + bytes(40)):
        (target / "index.npz").write_bytes(bad)
        fails(r"index\.npz or store\.json is damaged.*prepare the store again")
    (target / "index.npz").write_bytes(index)
    for change in ({"images": 3}, {"classes": ["cat"]}, {"file_sizes": []}, {"classes": None}):
        (target / "store.json").write_text(json.dumps({**meta, **change}))
        fails(r"is damaged.*prepare the store again")
    (target / "store.json").write_text(json.dumps({**meta, "format": 99}))
    fails("is of format 99, this version reads 1")
    (target / "store.json").write_text("{")
    fails(r"store\.json is damaged")
    with pytest.raises(UserError, match=r"store\.json is damaged"):
        write_store(source, target, Encoding())
    with pytest.raises(DataError, match="is no store"):
        store.open_store(str(tmp_path))


def test_an_index_that_holds_code_is_refused(photos, tmp_path):
    """Arrays of objects would be unpickled."""
    target = tmp_path / "store"
    write_store(index_folder(photos), target, Encoding())
    with np.load(target / "index.npz") as content:
        arrays = dict(content)
    arrays["labels"] = np.array([object] * 14, dtype=object)
    np.savez(target / "index.npz", **arrays)
    with pytest.raises(DataError, match="damaged"):
        open_source(target)


def test_changed_bytes_are_noticed(photos, tmp_path, main, capsys):
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    with open(tmp_path / "store" / "images-00000.bin", "r+b") as file:
        file.seek(int(kept.start[5]) + 100)
        file.write(b"\0\0\0\0")
    assert [name for name, _ in verify_store(kept)] == [kept.name(5)]
    assert main("--verify", tmp_path / "store") == 1
    assert f"PROBLEM: {kept.name(5)}: its bytes have changed" in capsys.readouterr().out


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


def test_unpacking_writes_nothing_outside(tmp_path):
    from image_formats import write_tar

    draw(tmp_path / "one.png", 1)
    content = (tmp_path / "one.png").read_bytes()
    for name in ("../../evil.png", "/evil.png", "cat/../../evil.png", "cat/x\\..\\..\\evil.png", "C:/x/evil.png"):
        path = write_tar(tmp_path / "in" / "train.tar", [("cat/a.png", content), (name, content)])
        with pytest.raises(DataError, match=r"outside its class folder|in no folder"):
            unpack(open_source(path), tmp_path / "deep" / "out")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == ["one.png"]


def test_from_a_tar_of_tars_in_one_command(tree, tmp_path, main, capsys):
    write_tar_of_tars(tree, tmp_path / "downloads")
    shutil.copytree(tree, tmp_path / "downloads" / "val")
    assert main(tmp_path / "downloads", tmp_path / "store", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'store' / 'train'}: 18 images" in printed
    assert f"{tmp_path / 'store' / 'val'}: 18 images" in printed
    train, val = (open_source(tmp_path / "store" / split) for split in ("train", "val"))
    assert [train.read(i) for i in range(18)] == [val.read(i) for i in range(18)]
    assert main("--verify", tmp_path / "store") == 0
    assert main("--unpack", tmp_path / "store", tmp_path / "out") == 0
    assert index_folder(tmp_path / "out" / "train").classes == ["cat", "dog", "eel"]
    assert len(index_folder(tmp_path / "out" / "val")) == 18


def test_the_command_lists_corrupt_images_and_wrong_use(tree, tmp_path, main, capsys):
    (tree / "cat" / "001.png").write_bytes(b"x")
    assert main(tree, tmp_path / "store", "--workers", "1") == 1
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
        assert main(*arguments) == 2
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


def test_a_region_that_is_damaged_later_is_replaced(photos, tmp_path, small):
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    with open(tmp_path / "store" / "images-00000.bin", "r+b") as file:
        file.seek(int(kept.start[5]))
        file.write(bytes(300))
    dataset = TrainDataset(kept, small, AugmentConfig(), seed=0)
    assert dataset[(0, 5, 0)][3].startswith("ValueError: not a JPEG")
    assert dataset[(0, 4, 0)][3] == ""


def test_larger_images_than_the_limit_stay_and_are_listed_as_large(tree, tmp_path, main, capsys):
    Image.new("RGB", (60, 50), (9, 99, 9)).save(tree / "cat" / "wide.jpg")
    (tree / "cat" / "x.heic").write_bytes(b"x")
    path = tree / "cat" / "wide.jpg"
    assert main(tree, tmp_path / "store", "--workers", "1", "--max-pixels", "2999") == 1
    out = capsys.readouterr().out
    assert f"PROBLEM: {path} is too large (60 x 50 pixels are more than the 2,999 of data.max_pixels" in out
    assert f"note: {tree}: 1 file not counted: .heic 1" in out
    kept = open_source(tmp_path / "store")
    number = [kept.key(i) for i in range(len(kept))].index("cat/wide.jpg")
    assert kept.read(number) == path.read_bytes()
    assert main(tree, tmp_path / "store", "--workers", "1") == 2  # another limit is another store
    assert "was prepared with options that differ" in capsys.readouterr().err
    assert main(tree, tmp_path / "other", "--workers", "1", "--max-pixels", "3000") == 0


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
