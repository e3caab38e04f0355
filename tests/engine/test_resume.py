"""A run that was stopped, however, ends with the bits of one that was not."""

import signal
import subprocess
import time

import pytest
import torch

from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.files import read_jsonl
from tests.conftest import TINY, command, environment
from tests.processes import launch_forked

LONG = (
    "train.epochs=12",
    "run.save_every=3",
    "run.log_every=2",
    "train.ema={decay: 0.9}",
    "model.drop_rate=0.1",
    "augment.cutmix=1.0",
)


def state(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def assert_same_bits(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(one, two):
    for part in ("model", "ema", "optimizer", "local", "best", "step", "loss_count"):
        assert_same_bits(state(one)[part], state(two)[part], part)


def kept(folder):
    """Metrics without the wall-clock figures."""
    clock = ("images_per_second", "data_wait", "eta_seconds")
    records = read_jsonl(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in clock} for record in records]


@pytest.fixture
def start(tiny_config):
    """Starts train.py and waits until it has taken some steps; the caller stops it."""
    processes = []

    def _start(folder, *overrides, steps=5, number=1):
        arguments = command("train.py", "--config", tiny_config, f"run.dir={folder}", *overrides, processes=number)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(arguments, env=environment(), **output)
        processes.append(process)
        deadline = time.monotonic() + 120
        while not any(record["step"] >= steps for record in read_jsonl(folder / "metrics.jsonl")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "the run takes no steps"
            time.sleep(0.01)
        return process

    yield _start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, image_tree):
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(root=image_tree))
    result = launch_forked("train.py", "--config", config, f"run.dir={folder / 'run'}", *LONG)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_killed_run_ends_bit_equal(start, tiny_config, tmp_path, uninterrupted):
    folder = tmp_path / "killed"
    process = start(folder, *LONG)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = state(folder)["step"]
    assert 0 < reached < 48, "killed in the middle"
    (folder / ".last.pt.abcdefgh.tmp").write_bytes(b"what a kill during a save leaves behind")
    result = launch_forked("train.py", "--config", tiny_config, f"run.dir={folder}", *LONG)
    assert result.returncode == 0, result.stderr
    assert f"resuming from {folder / 'last.pt'}: step {reached} of 48" in result.stdout
    assert_same_run(folder, uninterrupted)
    assert kept(folder) == kept(uninterrupted)
    assert not list(folder.glob(".*.tmp"))


def test_signal_finishes_the_step_saves_and_asks_for_a_restart(start, tiny_config, tmp_path, uninterrupted):
    folder = tmp_path / "stopped"
    process = start(folder, *LONG)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped by SIGTERM" in output
    reached = state(folder)["step"]
    assert 0 < reached < 48
    assert launch_forked("train.py", "--config", tiny_config, f"run.dir={folder}", *LONG).returncode == 0
    assert_same_run(folder, uninterrupted)


def test_two_processes_stop_together_and_resume(start, tiny_config, tmp_path):
    folder = tmp_path / "two"
    process = start(folder, "train.epochs=20", number=2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert "stopped by" in output
    reached = state(folder)["step"]
    assert 0 < reached < 80
    overrides = (f"run.dir={folder}", "train.epochs=20")
    result = launch_forked("train.py", "--config", tiny_config, *overrides, processes=2)
    assert result.returncode == 0, result.stderr
    assert state(folder)["step"] == 80


@pytest.mark.parametrize("optimizer", ["sgd", "lookahead_adamw"])
def test_step_by_step_in_one_process_equals_a_whole_run(tiny_config, tmp_path, optimizer):
    """Stopping after every epoch, without any kill, also gives the same bits."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # The schedule is the same for one epoch and for three.
    constant = ["schedule.name=constant", "schedule.warmup_epochs=0", f"optim.name={optimizer}"]
    assert train(load_config(tiny_config, [f"run.dir={whole}", *constant])) == 0
    path = parts / "last.pt"
    for end in (1, 2, 3):
        overrides = [f"run.dir={parts}", f"train.epochs={end}", "run.allow_changes=true"]
        assert train(load_config(tiny_config, [*overrides, *constant])) == 0
        assert torch.load(path, weights_only=True)["step"] == 4 * end
    assert_same_run(parts, whole)


def test_finished_run_is_left_alone(tiny_config, tmp_path, capsys):
    overrides = [f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    assert train(load_config(tiny_config, overrides)) == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    capsys.readouterr()
    assert train(load_config(tiny_config, overrides)) == 0
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert "finished at step 4" in capsys.readouterr().out
