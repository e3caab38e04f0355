"""What a process leaves behind when it leaves the process group."""

from pathlib import Path

import pytest

from tests.processes import launch_forked

SCRIPT = """
import os, sys
from ddfnet.engine.train import train
from ddfnet.tasks import load_config

code = train(load_config(sys.argv[1], sys.argv[2:]))
tasks = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(f"process {os.environ['RANK']} ends with {code} and {sum('gloo' in name for name in tasks)} threads of gloo")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_training(tiny_config, tmp_path):
    """One that waits for Python's lock when Python ends would abort the process after all its work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    overrides = [f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    result = launch_forked(script, tiny_config, *overrides, processes=2)
    assert result.returncode == 0, result.stderr
    for rank in (0, 1):
        assert f"process {rank} ends with 0 and 0 threads of gloo" in result.stdout
