import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic_images import make_tree

from ddfnet.data import val_cache
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.data.val_cache import ValCache
from ddfnet.utils.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def images(index, how, cache=None):
    return EvalDataset(index, how, cache=cache).read(list(range(len(index))))["image"]


def count_decodes(monkeypatch):
    calls, original = [], EvalDataset._pixels
    monkeypatch.setattr(EvalDataset, "_pixels", lambda self, i: calls.append(i) or original(self, i))
    return calls


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
