"""Runs the interpreter_*cases.py beside it with TRITON_INTERPRET=1.

It has to be set before the kernels are imported.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def version(package):
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_in_the_interpreter():
    if version("triton") < (3, 7) and version("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 makes loop bounds from arrays, which numpy 2.4 refuses")
    paths = [str(ROOT), str(ROOT / "tests" / "ops" / "ddf"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    # several processes, because it is slow: the interpreter makes about 2000 calls of NumPy a second. Three that take
    # about as long each: one more takes some seconds to start
    others = [str(HERE / f"interpreter_{name}_cases.py") for name in ("training", "sum", "channel")]
    parts = [("interpreter_cases.py", "-k", half) for half in ("test_options", "not test_options")]
    parts += [("interpreter_norm_cases.py", *others)]
    runs = [
        subprocess.Popen(
            [*command, str(HERE / file), *choice],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for file, *choice in parts
    ]  # fmt: skip
    for run in runs:
        output = run.communicate()[0]
        assert run.returncode == 0, output[-20000:]
