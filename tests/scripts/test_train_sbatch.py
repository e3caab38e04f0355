"""The SLURM job, with commands of SLURM that only note how they were called."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash")


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (76, False)])
def test_the_job_goes_back_into_the_queue_when_it_was_interrupted(tmp_path, code, requeued):
    for name, ending in (("srun", f"exit {code}"), ("scontrol", "")):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@"\n{ending}\n')
        command.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(tmp_path)}
    arguments = ["bash", str(ROOT / "scripts/train.sbatch"), "--config", "a.yaml", "optim.lr=0.1"]
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert lines[0] == "srun python train.py --config a.yaml optim.lr=0.1"
    assert ("scontrol requeue 17" in lines) == requeued
    assert done.stderr == ""
