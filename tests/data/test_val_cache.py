import errno
import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_images import make_tree

from ddfnet.data import val_cache
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.preprocessing import EvalTransform, Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.data.val_cache import ValCache
from ddfnet.utils.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def images(index, how, cache=None):
    return EvalDataset(index, how, cache=cache).read(list(range(len(index))))["image"]


def count_decodes(monkeypatch):
    calls, original = [], EvalDataset._pixels
    monkeypatch.setattr(EvalDataset, "_pixels", lambda self, i: calls.append(i) or original(self, i))
    return calls


def finished(index, how, folder):
    """A finished cache, and what was read to make it."""
    expected = images(index, how, ValCache(folder, index, how))
    return ValCache(folder, index, how), expected


def flip(cache, *rows):
    """One bit of each of some rows changes on the disk, as no size or date tells."""
    content = bytearray(cache.final.read_bytes())
    for row in rows:
        content[cache._rows_at + row * 24 * 24 * 3 + 700] ^= 1
    cache.final.write_bytes(content)


def make_read_only(monkeypatch, folder):
    """As a disk that is mounted read only: root may write to a file of any mode."""
    real_open, real_access = os.open, os.access

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    def only_to_read(path, flags, *arguments, **options):
        if Path(os.fsdecode(path)).parent == folder and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            refuse()
        return real_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", only_to_read)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real_access(path, mode))
    monkeypatch.setattr(Path, "unlink", refuse)


def test_filled_finished_and_read(index, small, folder, monkeypatch, caplog):
    expected, calls = images(index, small), count_decodes(monkeypatch)
    cache = ValCache(folder, index, small)
    assert not cache.complete
    assert torch.equal(images(index, small, cache), expected)
    assert sorted(calls) == list(range(18))
    assert torch.equal(images(index, small, cache), expected)  # in the same run, from the file
    assert len(calls) == 18
    with caplog.at_level(logging.INFO, logger="ddfnet"):
        again = ValCache(folder, index, small)
    assert again.complete
    assert EvalDataset(index, small, cache=again).is_quick
    assert "18 of 18 images, 0.0 GB" in caplog.text
    assert [path.name for path in folder.iterdir()] == [again.final.name]
    assert again.final.stat().st_size == again.bytes
    assert torch.equal(images(index, small, again), expected)
    assert len(calls) == 18


def test_what_is_of_other_images_or_another_transform_is_not_taken(index, small, folder, tree):
    images(index, small, ValCache(folder, index, small))
    others = [
        (index, small.replaced(interpolation="bilinear")),
        (index, small.replaced(resize="pillow")),
        (index, small.replaced(crop_pct=1.0)),
        (index, small.replaced(size=32)),
    ]
    names = {ValCache(folder, source, how).final for source, how in others} | {ValCache(folder, index, small).final}
    assert len(names) == 5
    assert ValCache(folder, index, small.replaced(mean=(0, 0, 0))).complete  # the device normalizes


def test_a_cache_whose_images_changed_is_stale_and_named(index, small, folder, tree, caplog):
    images(index, small, ValCache(folder, index, small))
    old = ValCache(folder, index, small).path
    os.utime(index.name(3), ns=(1, 1))
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        cache = ValCache(folder, index_folder(tree), small)
    assert not cache.complete
    assert f"{old} is stale, other images: delete it" in caplog.text
    (tree / "eel" / "006.png").write_bytes((tree / "eel" / "005.png").read_bytes())
    assert ValCache(folder, index_folder(tree), small).final not in (cache.final, old)


def test_other_versions_of_the_libraries_make_other_pixels(index, small, folder, monkeypatch, caplog):
    images(index, small, ValCache(folder, index, small))
    monkeypatch.setattr(val_cache.PIL, "__version__", "99.0")
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        assert not ValCache(folder, index, small).complete
    assert "is stale, other pillow" in caplog.text


def test_a_cache_of_before_32_bit_gray_was_read_is_made_anew(tree, folder, small, monkeypatch, caplog):
    path = next(tree.rglob("*.png"))
    gray = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) // 16
    Image.fromarray(gray).save(path.with_suffix(".tif"))
    path.unlink()
    index = index_folder(tree)
    (i,) = [i for i in range(len(index)) if str(index.name(i)).endswith(".tif")]
    with monkeypatch.context() as before:
        before.setattr(val_cache, "_FORMAT", 1)
        old = ValCache(folder, index, small)
        for row in range(len(index)):
            old.write(row, np.zeros(old.shape[1:], np.uint8))  # black, as it was read then
        old = ValCache(folder, index, small)
        assert old.complete
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        cache = ValCache(folder, index, small)
    assert f"{old.path} is stale, other format: delete it" in caplog.text
    assert not cache.complete
    expected = EvalTransform(small)(Image.fromarray(gray.astype(np.uint8)).convert("RGB"))
    assert torch.equal(images(index, small, cache)[i], expected)


def test_the_same_files_in_another_place_are_the_same_images(index, small, folder, tree, tmp_path):
    images(index, small, ValCache(folder, index, small))
    tree.rename(tmp_path / "moved")
    assert ValCache(folder, index_folder(tmp_path / "moved"), small).complete


def write_some(folder, tree, small, part, ready=None):
    index = index_folder(tree)
    dataset = EvalDataset(index, small, cache=ValCache(folder, index, small))
    for i in part:
        dataset.read([i])
        if ready is not None:
            ready.set()
            time.sleep(0.05)


def test_several_processes_write_at_the_same_time(index, tree, small, folder, monkeypatch):
    """Ranks with their strides, which overlap here, and two of everything."""
    context = multiprocessing.get_context("fork")
    parts = [range(rank, 18, 4) for rank in range(4)] + [range(18), range(17, -1, -1)]
    processes = [context.Process(target=write_some, args=(folder, tree, small, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected, calls = images(index, small), count_decodes(monkeypatch)
    cache = ValCache(folder, index, small)
    assert cache.complete
    assert torch.equal(images(index, small, cache), expected)
    assert calls == []


def test_a_writer_that_is_killed_loses_nothing_that_was_written(index, tree, small, folder, monkeypatch):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=write_some, args=(folder, tree, small, range(18), ready))
    writer.start()
    assert ready.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    expected, calls = images(index, small), count_decodes(monkeypatch)
    cache = ValCache(folder, index, small)
    assert not cache.complete
    assert torch.equal(images(index, small, cache), expected)
    assert 0 < len(calls) < 18
    assert ValCache(folder, index, small).complete


def test_a_row_that_did_not_reach_the_disk_is_made_again(index, small, folder, monkeypatch):
    """As after a power failure: the checksum is there, the pixels are not."""
    cache = ValCache(folder, index, small)
    expected = images(index, small, cache)
    with open(cache.partial, "r+b") as file:
        file.seek(cache._rows_at + 5 * 24 * 24 * 3)
        file.write(bytes(100))
    again = ValCache(folder, index, small)
    assert not again.complete
    calls = count_decodes(monkeypatch)
    assert torch.equal(images(index, small, again), expected)
    assert calls == [5]
    assert ValCache(folder, index, small).complete


def test_damaged_rows_of_a_finished_file_are_read_from_their_images_and_mended(
    index, small, folder, monkeypatch, caplog
):
    cache, expected = finished(index, small, folder)
    whole = cache.final.read_bytes()
    flip(cache, 5, 11)
    again, calls = ValCache(folder, index, small), count_decodes(monkeypatch)
    assert again.complete
    for _ in range(2):
        assert torch.equal(images(index, small, again), expected)
    assert calls == [5, 11]
    assert caplog.text.count("WARNING") == 1
    assert f"{cache.final} is damaged: row 5, maybe others; their images are read again" in caplog.text
    assert cache.final.read_bytes() == whole
    caplog.clear()
    assert torch.equal(images(index, small, ValCache(folder, index, small)), expected)
    assert calls == [5, 11]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_damaged_checksum_of_a_finished_file_is_mended(index, small, folder):
    cache, expected = finished(index, small, folder)
    whole = cache.final.read_bytes()
    cache.final.write_bytes(whole[:4096] + bytes(8) + b"x" + whole[4105:])  # none, and another
    assert torch.equal(images(index, small, ValCache(folder, index, small)), expected)
    assert cache.final.read_bytes() == whole


def test_a_row_is_compared_with_its_checksum_once_in_a_process(index, small, folder, monkeypatch):
    finished(index, small, folder)
    calls, original = [], val_cache._checksum
    monkeypatch.setattr(val_cache, "_checksum", lambda row: calls.append(row) or original(row))
    again = ValCache(folder, index, small)
    for _ in range(3):
        images(index, small, again)
    assert len(calls) == 18


def test_a_finished_file_on_a_disk_that_is_read_only(index, small, folder, monkeypatch, caplog):
    cache, expected = finished(index, small, folder)
    cache.partial.touch()
    flip(cache, 3)
    damaged, calls = cache.final.read_bytes(), count_decodes(monkeypatch)
    make_read_only(monkeypatch, folder)
    again = ValCache(folder, index, small)
    assert again.complete
    for _ in range(2):
        assert torch.equal(images(index, small, again), expected)
    assert calls == [3, 3]  # it cannot be mended
    assert caplog.text.count("WARNING") == 1
    assert cache.final.read_bytes() == damaged


def test_an_unfinished_file_on_a_disk_that_is_read_only_is_refused(index, small, folder, monkeypatch):
    ValCache(folder, index, small)
    make_read_only(monkeypatch, folder)
    with pytest.raises(
        DataError, match=r"data.val_cache=\S+ cannot be used: .* is not a folder that can be written to"
    ):
        ValCache(folder, index, small)


def test_without_writing_nothing_is_made(index, small, folder, tmp_path):
    expected = images(index, small)
    cache = ValCache(folder, index, small, writes=False)
    assert torch.equal(images(index, small, cache), expected)
    assert torch.equal(images(index, small, pickle.loads(pickle.dumps(cache))), expected)
    assert not folder.exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file is not a folder that can be written to; name another folder"):
        ValCache(tmp_path / "file" / "cache", index, small, writes=False)


def test_without_writing_what_is_there_is_read_and_left(index, small, folder, monkeypatch):
    expected, partial = images(index, small), ValCache(folder, index, small)
    EvalDataset(index, small, cache=partial).read([1, 2])
    before, calls = partial.partial.read_bytes(), count_decodes(monkeypatch)
    cache = ValCache(folder, index, small, writes=False)
    assert torch.equal(images(index, small, cache), expected)
    assert sorted(calls) == [0, *range(3, 18)]
    assert [path.read_bytes() for path in folder.iterdir()] == [before]
    cache, _ = finished(index, small, folder)
    cache.partial.touch()
    flip(cache, 5)
    damaged = cache.final.read_bytes()
    assert torch.equal(images(index, small, ValCache(folder, index, small, writes=False)), expected)
    assert cache.final.read_bytes() == damaged
    assert cache.partial.exists()
    os.truncate(cache.final, 5000)
    cache.partial.unlink()
    assert torch.equal(images(index, small, ValCache(folder, index, small, writes=False)), expected)
    assert [path.stat().st_size for path in folder.iterdir()] == [5000]


@pytest.mark.parametrize("moment", [1, 2], ids=["before it is made", "before it is read"])
def test_another_process_finishes_the_file_while_this_one_opens_it(index, small, folder, monkeypatch, moment):
    cache, expected = finished(index, small, folder)
    os.replace(cache.final, cache.partial)
    real_open, opened = os.open, []

    def late(path, flags, *arguments, **options):
        if path == cache.partial:
            opened.append(path)
            if len(opened) == moment:
                os.replace(cache.partial, cache.final)
        return real_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", late)
    again = ValCache(folder, index, small)
    assert again.complete
    assert list(folder.iterdir()) == [cache.final]
    assert torch.equal(images(index, small, again), expected)


def test_a_system_without_the_calls_it_needs(index, small, folder, monkeypatch):
    monkeypatch.delattr(os, "pwrite")
    with pytest.raises(ConfigError, match=r"data.val_cache=\S+ is not available on this system \(Windows\): set it to"):
        ValCache(folder, index, small)
    assert not folder.exists()


def test_a_file_that_was_cut_is_made_again(index, small, folder, caplog):
    expected = images(index, small, ValCache(folder, index, small))
    cache = ValCache(folder, index, small)
    os.truncate(cache.final, 5000)
    again = ValCache(folder, index, small)
    assert "is damaged; it is made again" in caplog.text
    assert not again.complete
    assert torch.equal(images(index, small, again), expected)


def test_a_corrupt_image_is_an_error_and_not_kept(index, small, folder):
    content = index.read(4)
    with open(index.name(4), "wb") as file:
        file.write(b"junk")
    cache = ValCache(folder, index, small)
    with pytest.raises(DataError, match=r"004\.png is corrupt"):
        images(index, small, cache)
    with open(index.name(4), "wb") as file:
        file.write(content)
    row = np.empty((24, 24, 3), np.uint8)
    assert cache.read(3, row)
    assert not cache.read(4, row)


def test_a_full_disk_ends_the_writing_only(index, small, folder, monkeypatch, caplog):
    cache, expected = ValCache(folder, index, small), images(index, small)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(val_cache, "_write_at", full)
    assert torch.equal(images(index, small, cache), expected)
    assert caplog.text.count("No space left on device; images are read as usual") == 1


def test_no_room_is_told_before_anything_is_read(index, small, folder, monkeypatch):
    monkeypatch.setattr(val_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DataError, match=r"data.val_cache=.* cannot be used: it needs 0.0 GB, 0.0 GB are free"):
        ValCache(folder, index, small)
    assert not list(folder.glob("*"))


def test_a_folder_that_cannot_be_made(index, small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.val_cache=\S+ cannot be used: .*name another folder"):
        ValCache(tmp_path / "file" / "cache", index, small)


def test_it_travels_to_workers_that_are_spawned(index, small, folder):
    expected, cache = images(index, small), ValCache(folder, index, small)
    images(index, small, pickle.loads(pickle.dumps(cache)))
    for one in (cache, ValCache(folder, index, small)):
        row = np.empty((24, 24, 3), np.uint8)
        assert pickle.loads(pickle.dumps(one)).read(7, row)
        assert np.array_equal(row, expected[7].permute(1, 2, 0).numpy())


def test_a_file_of_another_kind_in_the_folder_is_left_alone(index, small, folder):
    folder.mkdir()
    (folder / "notes.pixels").write_text(json.dumps([1]))
    ValCache(folder, index, small)
    assert (folder / "notes.pixels").exists()


def test_many_images(tmp_path, folder):
    index = index_folder(make_tree(tmp_path / "many", per_class=200))
    how = Preprocessing(size=8)
    expected = images(index, how)
    assert torch.equal(images(index, how, ValCache(folder, index, how)), expected)
    assert torch.equal(images(index, how, ValCache(folder, index, how)), expected)
