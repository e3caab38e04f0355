"""Disks that are full, fail, or lack something; output that nobody reads: nothing that was saved is lost."""

import errno
import io
import json
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from ddfnet.checkpoint import read_checkpoint, save_checkpoint
from ddfnet.engine import disk_space, run_folder
from ddfnet.engine.run_checkpoints import resumable
from ddfnet.engine.run_folder import run_folder_lock
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils import files
from ddfnet.utils.cli import EXIT_STORAGE
from ddfnet.utils.errors import ConfigError, NonFiniteLossError, StorageError
from ddfnet.utils.files import NoSpaceError, read_jsonl, size_text
from tests.conftest import command, environment, exit_code

Usage = namedtuple("Usage", "total used free")


def run(config, folder, *overrides):
    return train(load_config(config, [f"run.dir={folder}", *overrides]))


@pytest.fixture(autouse=True)
def _first_notes(monkeypatch):
    monkeypatch.setattr(files, "_noted", set())


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full after so many bytes in files that are written whole."""

    class Disk:
        left = 10**12

    class Raw(io.FileIO):
        def write(self, data):
            if memoryview(data).nbytes > Disk.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            Disk.left -= memoryview(data).nbytes
            return super().write(data)

    monkeypatch.setattr(files, "io", SimpleNamespace(FileIO=Raw))
    return Disk


def test_a_full_disk_is_a_sentence_of_ours_whatever_the_library_says(tmp_path, disk):
    """torch.save itself speaks of an unexpected position."""
    save_checkpoint(tmp_path / "a.pt", {"model": {"x": torch.zeros(10)}})
    before = (tmp_path / "a.pt").read_bytes()
    disk.left = 3_000_000
    with pytest.raises(NoSpaceError, match=r"needed for a\.pt, .* free") as error:
        save_checkpoint(tmp_path / "a.pt", {"model": {"x": torch.zeros(1_000_000)}})
    assert "4.0 MB needed" in error.value.strerror
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before


def test_a_disk_that_gets_full_while_training(tiny_config, tmp_path, disk, capsys):
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1")
    before = {path: path.read_bytes() for path in resumable(folder)}
    size = before[folder / "last.pt"].__len__()
    longer = [f"run.dir={folder}", "train.epochs=2", "run.allow_changes=true", "checkpoints.background=true"]
    disk.left = size + size // 2  # one more, and a half
    assert exit_code(lambda _: train(load_config(tiny_config, longer)), []) == EXIT_STORAGE
    text = capsys.readouterr().err
    assert f"run.dir={folder}: no space left on" in text
    assert "make space, then start again to resume" in text
    assert not list(folder.rglob("*.tmp"))
    assert [read_checkpoint(path)["step"] for path in resumable(folder)] == [8, 8, 4]
    disk.left = 10**12
    assert train(load_config(tiny_config, longer)) == 0
    assert read_checkpoint(folder / "last.pt")["step"] == 8


def test_the_start_compares_free_space_with_what_the_checkpoints_need(tiny_config, tmp_path, monkeypatch, capsys):
    free = 5_000_000
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    with pytest.raises(StorageError, match=r"checkpoints need 8\.\d MB to begin with, 5\.0 MB are free"):
        run(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    free = 12_000_000
    assert run(tiny_config, tmp_path / "run", "train.epochs=1") == 0
    assert "note: the checkpoints to be kept need 14" in capsys.readouterr().out
    assert run(tiny_config, tmp_path / "run", "train.epochs=1") == 0  # now some of them are there
    assert "note: the checkpoints" not in capsys.readouterr().out


def test_the_estimate_is_that_of_the_files(tiny_config, tmp_path, monkeypatch):
    """Before the first step the optimizer is empty; it must be counted all the same."""
    sizes = []
    plain = disk_space._sizes
    monkeypatch.setattr(disk_space, "_sizes", lambda state: sizes.append(plain(state)) or sizes[-1])
    for name in ("sgd", "adamw"):
        folder = tmp_path / name
        run(tiny_config, folder, "train.epochs=1", f"optim.name={name}", "train.ema={decay: 0.5}")
        weights, whole = sizes.pop()
        assert weights == pytest.approx((folder / "best.pt").stat().st_size, rel=0.1)
        assert whole == pytest.approx((folder / "last.pt").stat().st_size, rel=0.1)


def unsupported(*_, **__):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_a_disk_without_locks_permissions_links_and_fsync(tiny_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_folder.fcntl, "flock", unsupported)
    monkeypatch.setattr(files.os, "chmod", unsupported)
    monkeypatch.setattr(files.os, "link", unsupported)
    monkeypatch.setattr(files.os, "fsync", unsupported)
    assert run(tiny_config, tmp_path / "run", "train.epochs=1") == 0
    assert [read_checkpoint(path)["step"] for path in resumable(tmp_path / "run")] == [4, 4]
    for lacks in ("no locks (Operation not supported)", "no fsync (Operation", "no fsync of folders"):
        assert caplog.text.count(lacks) == 1


def test_an_error_of_the_disk_while_writing_through_is_no_lack(tmp_path, monkeypatch):
    """After it the bytes may be lost: the file must not take the place of the one before."""
    files.write_text(tmp_path / "a", "before")

    def fails(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_files_have_the_permissions_of_the_umask(tmp_path, monkeypatch):
    """Which is not touched: it is that of all threads."""
    monkeypatch.setattr(files.os, "umask", None)
    files.write_text(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_disk_that_does_not_say_how_large_it_is(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    assert run(tiny_config, tmp_path / "run", "train.epochs=1") == 0


def test_a_disk_that_becomes_read_only(tiny_config, tmp_path, monkeypatch, capsys):
    """Resuming rewrites metrics.jsonl: where that fails it is a sentence, too."""
    folder = tmp_path / "run"
    run(tiny_config, folder, "train.epochs=1")
    plain = files._write_atomically

    def write(path, *arguments):
        if path.name == "metrics.jsonl":
            raise OSError(errno.EROFS, "Read-only file system")
        plain(path, *arguments)

    monkeypatch.setattr(files, "_write_atomically", write)
    longer = [f"run.dir={folder}", "train.epochs=2", "run.allow_changes=true"]
    assert exit_code(lambda _: train(load_config(tiny_config, longer)), []) == EXIT_STORAGE
    assert f"cannot write into run.dir={folder} (Read-only file system)" in capsys.readouterr().err


def test_records_that_waited_are_written_at_the_end(tmp_path, monkeypatch):
    from ddfnet.engine.logging import RunLog

    log = RunLog(tmp_path, active=True, total_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", unsupported)
        log.evaluation(1, 0.1, "val", {"n": 1})
    assert not (tmp_path / "metrics.jsonl").exists()
    log.close()
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_a_full_disk_does_not_hide_a_loss_that_is_not_finite(tiny_config, tmp_path, monkeypatch):
    from ddfnet.engine import non_finite

    monkeypatch.setattr(non_finite, "write_json", unsupported)
    with pytest.raises(NonFiniteLossError, match="is not finite"):
        run(tiny_config, tmp_path / "run", "optim.lr=1e30")


def test_a_lock_that_another_run_has_is_an_error_on_any_disk(tiny_config, tmp_path):
    with run_folder_lock(tmp_path / "run"), pytest.raises(ConfigError, match="another process is training"):
        run(tiny_config, tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    with run_folder_lock(tmp_path):
        (lock,) = run_folder._locks
        number, child = lock.fileno(), os.fork()
        if child == 0:
            try:
                os.fstat(number)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(ConfigError), run_folder_lock(tmp_path):  # the parent has it still
            pass


def test_records_wait_until_the_disk_has_space_again(tiny_config, tmp_path, monkeypatch, caplog):
    from ddfnet.engine.logging import RunLog

    log = RunLog(tmp_path, active=True, total_steps=3)
    log.evaluation(1, 0.1, "val", {"n": 1})
    whole = (tmp_path / "metrics.jsonl").read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        plain = type(tmp_path).open
        patch.setattr(type(tmp_path), "open", lambda *a, **k: Full(plain(*a, **k)))
        log.evaluation(2, 0.2, "val", {"n": 2})
        log.evaluation(3, 0.3, "val", {"n": 3})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    log.evaluation(4, 0.4, "val", {"n": 4})
    log.close()
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert caplog.text.count("its records wait until it can") == 1


def test_a_tensorboard_that_fails_does_not_end_training(tiny_config, tmp_path, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.setattr(SummaryWriter, "add_scalar", unsupported)
    assert run(tiny_config, tmp_path / "run", "run.tensorboard=true", "train.epochs=1") == 0
    assert "training continues without them" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_leaves_does_not_end_training(tiny_config, tmp_path):
    arguments = command("train.py", "--config", tiny_config, f"run.dir={tmp_path / 'run'}")
    reader, writer = os.pipe()
    process = subprocess.Popen(arguments, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.close(reader)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "the console cannot be written (Broken pipe): training continues without it" in text
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 12


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_log_disk_does_not_end_training(tiny_config, tmp_path):
    arguments = command("train.py", "--config", tiny_config, f"run.dir={tmp_path / 'run'}")
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, env=environment(), stdout=full, stderr=full, timeout=120, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 12


def test_sizes_in_words():
    assert [size_text(size) for size in (812, 3_400_000, 1_210_000_000)] == ["812 bytes", "3.4 MB", "1.21 GB"]
