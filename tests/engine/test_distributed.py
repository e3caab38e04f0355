"""Where a process stands: alone, under torchrun, under SLURM; and batch norm over processes."""

import os
import stat

import pytest
import torch

from ddfnet.engine.distributed import _position, distributed_session
from ddfnet.utils.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [*VARIABLES, *(name for name in os.environ if name.startswith("SLURM"))]:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone, too
        monkeypatch.delenv(name)


def test_alone():
    assert _position() == (0, 1, 0, 1)
    with distributed_session("cpu") as alone:
        assert alone.is_main
        assert alone.gather(torch.arange(2)).tolist() == [[0, 1]]
        assert alone.reduce_(torch.tensor([3]), "sum").item() == 3


def test_torchrun(monkeypatch):
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert _position() == (5, 8, 1, 4)


def test_srun(monkeypatch, tmp_path):
    """SLURM's own variables, and a stand-in for its `scontrol`."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames node[3-4]' ] && printf 'node3\\nnode4\\n'\n")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    step = {
        "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "123456",
    }  # fmt: skip
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert _position() == (11, 16, 3, 8)
    assert os.environ["MASTER_ADDR"] == "node3"
    assert os.environ["MASTER_PORT"] == "23456"


def test_an_allocation_without_srun_is_one_process(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert _position() == (0, 1, 0, 1)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"4 processes.*2 GPU.*--nproc-per-node 2"), distributed_session("cuda"):
        pass
