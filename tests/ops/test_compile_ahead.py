"""Kernels compiled in other processes are those that the launches look for."""

import json
import logging
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.ops import compile_ahead as ahead
from ddfnet.ops import compile_process
from tests.conftest import ROOT

KERNELS = {
    *("spatial_filters_kernel", "channel_squeeze_kernel", "channel_filters_kernel", "ddf_forward_kernel"),
    *("ddf_backward_filters_kernel", "channel_filters_backward_kernel", "channel_squeeze_backward_kernel"),
    *("ddf_backward_x_kernel", "spatial_filters_backward_kernel", "channel_weights_backward_kernel"),
}
NORMS = {
    *("batch_norm_moments_kernel", "batch_norm_merge_kernel", "batch_norm_apply_kernel", "batch_norm_affine_kernel"),
    *("batch_norm_backward_sums_kernel", "batch_norm_backward_kernel", "batch_norm_kernel"),
}


def start(cache, *case):
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(ROOT / "tests/ops/compile_ahead_cases.py"), *case]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    (line,) = (line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core compiles nothing ahead")
@pytest.mark.parametrize(
    ("case", "modes", "kernels"),
    [
        # a block with its norms (`fused_norms=all`), which has other kernels in evaluation
        ("norms", ["training", "evaluation"], KERNELS | NORMS),
        pytest.param("layer", ["training"], KERNELS, marks=pytest.mark.slow),  # those of evaluation are among them
    ],
)
def test_launches_find_what_was_compiled_ahead(case, modes, kernels, tmp_path):
    """Two processes that start together compile each kernel once; a third one launches without compiling."""
    pytest.importorskip("triton")
    results = [result(process) for process in [start(tmp_path, "ahead", case) for _ in range(2)]]
    lines = [line for each in results for line in each["lines"] if not line.startswith("waiting for another process")]
    # the second call of each, and the other process, found all
    pattern = r"compiled (\d+) Triton kernels? for (\w+): \d+ s, \d+ process(?:es)?"
    said = [re.fullmatch(pattern, line).groups() for line in lines]
    assert sorted(mode for _, mode in said) == sorted(modes)  # by whichever process came first
    assert [each["missing"] for each in results] == [0, 0]
    assert all(each["unchanged"] for each in results)
    launched = result(start(tmp_path, "launch", case))
    assert set(launched["launches"]) == kernels
    assert (launched["hits"], launched["compiled"]) == (sum(int(count) for count, _ in said), 0)


@pytest.fixture
def cuda(monkeypatch):
    """As if the tensors of a call were on CUDA."""
    monkeypatch.setattr(ahead, "_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())


def test_a_failure_is_one_warning(cuda, caplog):
    """A model that reads a value, which fake tensors have not; here PyTorch may have no device for those either."""

    class Reads(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    model, x = Reads(), torch.ones(2)
    ddfnet.compile_ahead(model)
    with caplog.at_level(logging.INFO, "ddfnet"):
        assert model(x).tolist() == [2, 2]
        model(x)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("kernels are compiled in the first step, not before it: ")
    assert "\n" not in record.message


def test_once_for_training_and_once_for_evaluation(cuda, monkeypatch):
    calls = []
    monkeypatch.setattr(ahead, "_compile", lambda model, *_: calls.append(model.training))
    model, x = nn.Identity(), torch.ones(2)
    handle = ddfnet.compile_ahead(model)
    for training in (True, True, False, True, False):
        model.train(training)(x)
    assert calls == [True, False]
    assert not model._forward_pre_hooks
    with ddfnet.compile_ahead(model):
        pass
    handle.remove()
    model(x)
    assert calls == [True, False]


def test_nothing_happens_on_a_cpu(monkeypatch):
    monkeypatch.setattr(ahead, "_compile", lambda *_: pytest.fail("compiled"))
    model = nn.Identity()
    ddfnet.compile_ahead(model)
    model(torch.ones(2))


# What the worker takes for kernels: each is compiled by writing a file.
FAKE_KERNELS = """
import os, pathlib, signal, time

class Kernel:
    def __init__(self, compile):
        self.compile = compile
    def warmup(self, grid, path):
        self.compile(pathlib.Path(path))

def kill(path):
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

fine, killed = Kernel(pathlib.Path.touch), Kernel(kill)
"""


@pytest.fixture
def fake_job(tmp_path, monkeypatch):
    """Makes a job of FAKE_KERNELS, which is never in the cache."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from ddfnet.ops.compile_worker import Job, pretend_device

    (tmp_path / "fake_kernels.py").write_text(FAKE_KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ahead, "missing", lambda jobs: jobs)
    monkeypatch.setattr(ahead, "_TIMEOUT", 120)
    before = triton.runtime.driver._active
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        pretend_device(GPUTarget("cuda", 90, 32))
        yield lambda name, file: Job("fake_kernels", name, (), (("path", str(tmp_path / file)),))
    triton.runtime.driver._active = before


def test_a_killed_process_ends_it_at_once(fake_job, tmp_path):
    jobs = [fake_job("killed", "a"), fake_job("fine", "a")]
    with pytest.raises(RuntimeError, match=r"^a compiling process was killed \(out of memory\?\)"):
        ahead.compile_jobs(jobs, 2, pytest.fail)
    assert (tmp_path / "a").exists()
    # The lock is free again, and what is fine is compiled.
    assert ahead.compile_jobs([fake_job("fine", "b"), fake_job("fine", "c")], 2, pytest.fail) == 2
    assert (tmp_path / "b").exists()
    assert (tmp_path / "c").exists()


def test_a_lock_that_stays_taken(fake_job, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "_TIMEOUT", 0.5)
    path, lines = tmp_path / "cache/ddfnet.lock", []
    with (
        compile_process.one_process_at_a_time(path, time.monotonic(), pytest.fail),
        pytest.raises(RuntimeError, match=rf"it has locked {path}$"),
    ):
        ahead.compile_jobs([fake_job("fine", "a"), fake_job("fine", "b")], 2, lines.append)
    assert lines == [f"waiting for another process that compiles Triton kernels (lock {path})"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("end", ["wait", "kill -9 $$"])
def test_no_process_is_left_behind(tmp_path, end):
    """Neither by a program that takes too long nor by one that was killed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", f"(echo started; sleep 600) > '{pipe}' & sleep 1; echo reason >&2; {end}"]
    if end == "wait":
        with pytest.raises(subprocess.TimeoutExpired):
            compile_process.run_group(command, "", os.environ, 3)
    else:
        assert compile_process.run_group(command, "", os.environ, 120) == (-9, "reason\n")
    assert os.read(reader, 100) == b"started\n"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            assert os.read(reader, 100) == b""  # nobody holds the other end
            break
        except BlockingIOError:
            time.sleep(0.01)
    else:
        pytest.fail("a process is left")
    os.close(reader)


def test_number_of_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for kib, count in ((900_000, 0), (3_500_000, 3), (64_000_000, 8)):
        monkeypatch.setattr(compile_process, "_available_kib", lambda kib=kib: kib)
        assert compile_process.worker_count() == count
    monkeypatch.undo()
    assert compile_process._available_kib() > 0
