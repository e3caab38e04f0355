"""A process that hangs or fails ends the run, by name."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine import watch as watching
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate import _watched
from ddfnet.engine.watch import Watch
from ddfnet.utils.files import read_jsonl
from tests.conftest import ROOT, command, environment
from tests.engine.test_signals import children, wait_for_the_end_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="signals and processes of Linux"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # threads that "exit"
]


class Process(Distributed):
    """One of several, which share a store in memory."""

    shared = None

    def store(self, name):
        return dist.PrefixStore(name, self.shared)


@pytest.fixture
def watches(monkeypatch):
    """Watches of several processes, in threads; what they print and the codes with which they end."""
    ended, started = [], []
    monkeypatch.setattr(watching, "_TICK_SECONDS", 0.05)
    monkeypatch.setattr(watching, "_GRACE_SECONDS", 0.3)

    def _watches(count, timeout):
        store = dist.HashStore()
        for rank in range(count):
            process = Process(rank, count, torch.device("cpu"))
            object.__setattr__(process, "shared", store)
            started.append(Watch(process, timeout))
            started[-1].start()
        return started, ended

    def leave(code):
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(watching, "_exit", leave)
    yield _watches
    for watch in started:
        watch.end()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_process_that_all_others_wait_for_is_named(watches, capsys):
    (one, two), ended = watches(2, 1.0)
    one.phase("backward", 7)
    two.samples = one.samples = lambda step: [f"image {step}", "b", "c", "d"]
    two.phase("data", 7)
    until(lambda: len(ended) >= 2)
    text = capsys.readouterr().err
    assert "process 1 has not moved for 1 s in the phase data, after step 7 (waiting for image 7, b, c and" in text
    assert set(ended) == {76}


def test_in_an_evaluation_the_one_that_waits_for_data_is_named(watches, capsys):
    """The others wait for its counts."""
    (one, two), ended = watches(2, 1.0)
    one.phase("evaluation", 7)
    two.phase("evaluation", 7)
    for _ in _watched([1, 2], one):
        pass
    next(_watched([1, 2], two))
    two.phase("evaluation data")
    until(lambda: len(ended) >= 2)
    assert "process 1 has not moved for 1 s in the phase evaluation data, after step 7" in capsys.readouterr().err


def test_none_is_named_while_one_moves(watches, capsys):
    (one, two), ended = watches(2, 0.5)
    one.phase("backward", 7)
    for _ in range(40):
        two.phase("evaluation")
        time.sleep(0.05)
    assert not ended
    assert one
    assert capsys.readouterr().err == ""


def test_a_process_that_is_silent_is_named(watches, capsys):
    (one, two), ended = watches(2, 1.0)
    one.phase("backward", 7)
    two.phase("forward", 7)
    until(lambda: one._heard[1].beats >= 0)
    two.end()  # as if it were stopped
    until(lambda: ended)
    assert "process 1 does not answer: it is stopped, or its machine is gone; it was" in capsys.readouterr().err


def test_an_error_of_one_process_ends_the_others(watches):
    (one, two, three), ended = watches(3, 100.0)
    two.failed(ValueError("a file that only it has read"))
    until(lambda: len(ended) == 2)
    assert ended == [1, 1]
    told = one.another_failed()
    assert (told["rank"], told["text"]) == (1, "ValueError: a file that only it has read")
    assert two.another_failed() is None
    assert three.another_failed()["rank"] == 1


def test_a_signal_that_ends_one_process_ends_the_others_alike(watches):
    (one, two), ended = watches(2, 100.0)
    two.interrupted("SIGTERM")
    until(lambda: ended)
    assert ended == [75]
    one._store = SimpleNamespace()  # it ends with the process that serves it
    assert one.another_failed()["text"] == "stopped by SIGTERM while its data did not come: start again to resume"


def test_a_store_that_does_not_answer_delays_nothing(watches, monkeypatch, capsys):
    """It may be on the machine that has gone."""
    (one, _), ended = watches(2, 1.0)
    until(lambda: one._heard[1].beats >= 0)
    answers = threading.Event()
    monkeypatch.setattr(one, "_store", SimpleNamespace(compare_set=lambda *_: answers.wait()))
    until(lambda: ended)
    answers.set()
    told = capsys.readouterr().err  # by one: that it has not moved; by the other: that it does not answer
    assert "for 1 s in the phase start, after step 0" in told


HANGS = """
import sys
sys.path[0] = {root!r}
from ddfnet.data.dataset import TrainDataset
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.cli import run
plain, calls = TrainDataset.read, []
def read(self, requests):
    calls.append(1)
    if len(calls) == 6:
        open({fifo!r}).read()
    return plain(self, requests)
TrainDataset.read = read
run(lambda: train(load_config({config!r}, ["run.dir={folder}", "run.timeout=4"])))
"""


def test_a_reader_that_hangs_in_the_main_process_is_named_and_nothing_is_lost(tiny_config, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    script = HANGS.format(root=str(ROOT), fifo=str(tmp_path / "fifo"), config=str(tiny_config), folder=tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 76, done.stderr
    assert "process 0 has not moved for 4 s in the phase data, after step 2 (waiting for " in done.stderr
    assert "Traceback" not in done.stderr
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2]


FAILS = """
import os, sys, time
sys.path[0] = {root!r}
from ddfnet.engine import train as module
from ddfnet.tasks import load_config
from ddfnet.utils.cli import run
from ddfnet.utils.errors import DataError
from ddfnet.tasks.classification import ClassificationTask
plain, calls = ClassificationTask.loss, []
def loss(self, model, batch):
    calls.append(1)
    if len(calls) == 6 and os.environ["RANK"] == "1":
        raise {error}
    return plain(self, model, batch)
ClassificationTask.loss = loss
run(lambda: module.train(load_config({config!r}, ["run.dir={folder}", "train.epochs=50"])))
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [('DataError("only here")', "DataError: only here"), ('RuntimeError("a defect")', "RuntimeError: a defect")],
)
def test_an_error_of_one_of_two_processes(tiny_config, tmp_path, error, words):
    script = tmp_path / "fails.py"
    script.write_text(FAILS.format(root=str(ROOT), error=error, config=str(tiny_config), folder=tmp_path / "run"))
    arguments = command(str(script), processes=2)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Connection closed" not in done.stderr  # what the other one sees of it
    assert done.stderr.count('Traceback (most recent call last):\n  File "' + str(script)) <= 1


def start(tiny_config, folder, *overrides, elastic=False):
    environ = {**environment(), "NPROC": "2", "MAX_RESTARTS": "5"}
    arguments = command("train.py", "--config", tiny_config, f"run.dir={folder}", *overrides, processes=2)
    if elastic:
        arguments = ["bash", str(ROOT / "scripts/train_elastic.sh"), "--config", str(tiny_config), f"run.dir={folder}"]
        arguments += overrides
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(arguments, env=environ, start_new_session=True, **output)
    deadline = time.monotonic() + 120
    while not any(record["step"] >= 8 for record in read_jsonl(folder / "metrics.jsonl")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, children(process.pid)


def test_processes_end_with_their_launcher(tiny_config, tmp_path):
    process, ranks = start(tiny_config, tmp_path / "run", "train.epochs=2000", "run.save_every=9000")
    assert len(ranks) == 2
    process.kill()
    for rank in ranks:
        wait_for_the_end_of(rank)
    assert "stopped by SIGTERM at step" in process.communicate()[0]  # they have saved


def test_torchrun_starts_again_after_a_process_was_killed(tiny_config, tmp_path):
    process, ranks = start(tiny_config, tmp_path / "run", "train.epochs=30", "run.save_every=5", elastic=True)
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert "resuming from" in output
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 120
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named(tiny_config, tmp_path, stopped):
    process, ranks = start(tiny_config, tmp_path / "run", "train.epochs=2000", "run.timeout=6")
    time.sleep(3)  # one that is stopped before its first beat has only "not been heard of"
    os.kill(ranks[stopped], signal.SIGSTOP)
    output, _ = process.communicate(timeout=150)  # torchrun itself needs 30 s for a process that is stopped
    assert process.returncode == 1
    assert f"process {stopped} does not answer: it is stopped, or its machine is gone" in output


def test_a_mistake_of_the_user_is_not_started_again(tiny_config):
    arguments = ["bash", str(ROOT / "scripts/train_elastic.sh"), "--config", str(tiny_config), "train.epoch=3"]
    environ = environment()
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("unknown key train.epoch") == 1
