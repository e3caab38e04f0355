"""Kernels compiled in other processes are those that the launches look for."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet.ops import compile_ahead as ahead
from tests.conftest import ROOT

KERNELS = {
    *("spatial_filters_kernel", "channel_filters_kernel", "ddf_forward_kernel", "ddf_backward_filters_kernel"),
    *("channel_filters_backward_kernel", "ddf_backward_x_kernel", "spatial_filters_backward_kernel"),
}


def start(case, cache):
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(ROOT / "tests/ops/compile_ahead_cases.py"), case]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    (line,) = (line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core compiles nothing ahead")
def test_launches_find_what_was_compiled_ahead(tmp_path):
    """Two processes that start together compile each kernel once; a third one launches without compiling."""
    pytest.importorskip("triton")
    first, second = (result(process) for process in [start("ahead", tmp_path) for _ in range(2)])
    (line,) = first["lines"] + second["lines"]  # the second call of each, and the other process, found all
    assert re.fullmatch(rf"compiled {len(KERNELS)} Triton kernels for training: \d+ s, 2 processes", line)
    assert first["missing"] == second["missing"] == 0  # those of evaluation are among them
    assert first["unchanged"]
    assert second["unchanged"]
    launched = result(start("launch", tmp_path))
    assert set(launched["launches"]) == KERNELS
    assert (launched["hits"], launched["compiled"]) == (len(KERNELS), 0)


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
