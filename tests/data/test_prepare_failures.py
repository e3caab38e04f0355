"""Stores that are cut off, killed, damaged or something else: the next run continues, or a sentence names it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from synthetic_images import draw, make_tree, mean_difference

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import TrainDataset
from ddfnet.data.prepare import parts
from ddfnet.data.prepare.encode import Encoding, encode
from ddfnet.data.prepare.unpack import unpack
from ddfnet.data.prepare.write import verify_store, write_store
from ddfnet.data.sources import open_source, store
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.errors import DataError, UserError
from tests.conftest import ROOT
from tests.processes import launch_forked

pytestmark = pytest.mark.usefixtures("own_cache")


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
    script, *arguments = ("scripts/prepare_images.py", tmp_path / "images", tmp_path / "store", "--workers", "2")
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (tmp_path / "store" / "parts").exists() and any((tmp_path / "store" / "parts").iterdir()):
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was at work
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert any((tmp_path / "store" / "parts").iterdir())
    assert not (tmp_path / "store" / "store.json").exists()
    done = launch_forked(script, *arguments)
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


def test_changed_bytes_are_noticed(photos, tmp_path, prepare_command, capsys):
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    with open(tmp_path / "store" / "images-00000.bin", "r+b") as file:
        file.seek(int(kept.start[5]) + 100)
        file.write(b"\0\0\0\0")
    assert [name for name, _ in verify_store(kept)] == [kept.name(5)]
    assert prepare_command("--verify", tmp_path / "store") == 1
    assert f"PROBLEM: {kept.name(5)}: its bytes have changed" in capsys.readouterr().out


def test_unpacking_writes_nothing_outside(tmp_path):
    from image_formats import write_tar

    draw(tmp_path / "one.png", 1)
    content = (tmp_path / "one.png").read_bytes()
    for name in ("../../evil.png", "/evil.png", "cat/../../evil.png", "cat/x\\..\\..\\evil.png", "C:/x/evil.png"):
        path = write_tar(tmp_path / "in" / "train.tar", [("cat/a.png", content), (name, content)])
        with pytest.raises(DataError, match=r"outside its class folder|in no folder"):
            unpack(open_source(path), tmp_path / "deep" / "out")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == ["one.png"]


def test_a_region_that_is_damaged_later_is_replaced(photos, tmp_path, small):
    write_store(index_folder(photos), tmp_path / "store", Encoding())
    kept = open_source(tmp_path / "store")
    with open(tmp_path / "store" / "images-00000.bin", "r+b") as file:
        file.seek(int(kept.start[5]))
        file.write(bytes(300))
    dataset = TrainDataset(kept, small, AugmentConfig(), seed=0)
    assert dataset[(0, 5, 0)][3].startswith("ValueError: not a JPEG")
    assert dataset[(0, 4, 0)][3] == ""
