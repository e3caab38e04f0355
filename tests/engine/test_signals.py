"""Signals at any moment, waits that do not end: a code, a sentence, no traceback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddfnet.checkpoint import read_checkpoint
from ddfnet.utils.files import read_jsonl
from tests.conftest import command, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and processes of Linux")
LONG = ("train.epochs=400", "run.save_every=2000")


@pytest.fixture(autouse=True)
def _no_nohup():
    """Programs inherit that SIGHUP is ignored, and then ignore it: as these tests would, started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    # None: a handler that was not set from Python
    signal.signal(signal.SIGHUP, signal.SIG_DFL if before is None else before)


@pytest.fixture
def start(tiny_config):
    """Starts train.py in a session of its own; all of its processes are gone afterwards."""
    processes = []

    def _start(folder, *overrides, number=1, steps=None):
        arguments = command("train.py", "--config", tiny_config, f"run.dir={folder}", *overrides, processes=number)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(arguments, env=environment(), start_new_session=True, **output)
        processes.append(process)
        deadline = time.monotonic() + 120
        while steps and not any(record["step"] >= steps for record in read_jsonl(folder / "metrics.jsonl")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "the run takes no steps"
            time.sleep(0.01)
        return process

    yield _start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process, timeout=60):
    output, _ = process.communicate(timeout=timeout)
    assert "Traceback" not in output, output
    return process.returncode, output


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGINT"])
def test_each_signal_saves_and_asks_for_a_restart(start, tmp_path, name):
    process = start(tmp_path / "run", *LONG, steps=2)
    process.send_signal(getattr(signal, name))
    code, output = end(process)
    assert code == 75
    assert f"stopped by {name} at step" in output
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 2


def test_nohup_stays_deaf_to_the_end_of_the_terminal(tiny_config, tmp_path):
    arguments = command("train.py", "--config", tiny_config, f"run.dir={tmp_path / 'run'}", "train.epochs=8")
    process = subprocess.Popen(["nohup", *arguments], env=environment(), stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "finished at step 32" in output


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0])
def test_a_signal_during_the_start(start, tmp_path, seconds):
    """At moments on the way through imports, data and model."""
    process = start(tmp_path / "run", *LONG)
    time.sleep(0.1 + seconds)  # Python itself has begun
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75 or (code == -signal.SIGTERM and not output), (
        output
    )  # the latter before the first line of train.py
    assert not output or "start again" in output


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_while_the_other_process_does_not_come(tiny_config, tmp_path, rank):
    """PyTorch waits for it in C++."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = command("train.py", "--config", tiny_config, f"run.dir={tmp_path / 'run'}")
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(arguments, env={**environment(), **place}, **output)
    time.sleep(4)  # for the imports; before their end, too, the code is 75
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert ("start again" in output) is (rank == "0")  # the first process of a machine speaks


def test_a_second_interrupt_ends_at_once(start, tmp_path):
    process = start(tmp_path / "run", *LONG, "data.workers=1", steps=2)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGSTOP)  # or the first would be enough
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, output = end(process)
    assert code == 130
    assert "ended at once by a second SIGINT" in output
    wait_for_the_end_of(worker)


def wait_for_the_end_of(pid):
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_a_signal_is_obeyed_while_a_worker_hangs(start, tmp_path):
    process = start(tmp_path / "run", *LONG, "data.workers=1", steps=2)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1)
    before = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    process.send_signal(signal.SIGTERM)
    code, output = end(process, timeout=30)
    assert code == 75
    assert f"stopped by SIGTERM at step {before}; saved" in output
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == before


def test_a_signal_is_obeyed_while_the_main_process_reads_a_fifo(start, tmp_path, tiny_config, image_tree):
    """An image that is a FIFO blocks its reader for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"""
import sys
sys.path[0] = {str(Path(__file__).parents[2])!r}
from ddfnet.data.dataset import TrainDataset
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.utils.cli import run
plain, calls = TrainDataset.read, []
def read(self, requests):
    calls.append(1)
    if len(calls) == 6:
        open({str(fifo)!r}).read()
    return plain(self, requests)
TrainDataset.read = read
run(lambda: train(load_config({str(tiny_config)!r}, ["run.dir={tmp_path / "run"}"])))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not any(record["step"] >= 2 for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, output = end(process, timeout=30)
    assert code == 75
    # Between two micro-batches of the third step, of which nothing stays.
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2
    assert "stopped by SIGTERM at step 2" in output


def test_an_evaluation_is_interrupted_between_batches(start, tmp_path, tiny_config):
    """One that takes longer than a launcher waits."""
    folder = tmp_path / "run"
    script = f"""
import sys, time
sys.path[0] = {str(Path(__file__).parents[2])!r}
from ddfnet.engine.train import train
from ddfnet.evaluation.metrics import ClassificationEvaluator
from ddfnet.tasks import load_config
from ddfnet.utils.cli import run
plain = ClassificationEvaluator.update
def update(self, model, batch):
    print("evaluating", flush=True)
    time.sleep(2)
    plain(self, model, batch)
ClassificationEvaluator.update = update
run(lambda: train(load_config({str(tiny_config)!r}, ["run.dir={folder}", "train.epochs=1"])))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while "evaluating" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75
    assert output.count("evaluating") < 6  # of 7 batches
    last = read_checkpoint(folder / "last.pt")
    assert (last["step"], last["evaluation_due"]) == (4, True)


def test_workers_end_with_a_killed_parent_and_leave_the_lock(start, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *LONG, "data.workers=2", steps=2)
    workers = children(process.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # they cannot see to it themselves
    process.kill()
    process.wait(60)
    for worker in workers:
        wait_for_the_end_of(worker)
    from ddfnet.engine.run_folder import run_folder_lock

    with run_folder_lock(folder):
        pass


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_do_not_die_of_signals_to_the_group(start, tmp_path, method):
    process = start(tmp_path / "run", *LONG, "data.workers=1", f"data.start_method={method}", steps=2)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGUSR1)
    code, output = end(process)
    assert code == 75
    assert "a data worker ended" not in output
    assert "stopped by SIGUSR1 at step" in output
