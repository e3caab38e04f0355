"""Several processes of a command, as torchrun starts them, but forked from one that has imported everything.

Torchrun and the imports of two processes take 20 s of processor time, each time. Tests of what a launcher does, of
signals and of kills start the real one (`tests.conftest.launch`).
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.conftest import ROOT, environment

PRELOADED = ["ddfnet.engine.train", "ddfnet.engine.evaluate_checkpoint", "ddfnet.tasks.classification", "torch._dynamo"]
_CONTEXT = multiprocessing.get_context("forkserver")


def launch_forked(
    script: str, *arguments: object, processes: int = 1, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs train.py or eval.py in this many processes; output and errors are those of one process after the other."""
    _CONTEXT.set_forkserver_preload(PRELOADED)  # takes effect where there is no such server yet
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        command = [str(ROOT / script), *map(str, arguments)]
        started = []
        for rank in range(processes):
            own = {} if processes == 1 else {**shared, "RANK": rank, "LOCAL_RANK": rank}
            files = [str(Path(folder, f"{stream}-{rank}")) for stream in ("out", "err")]
            started.append(_CONTEXT.Process(target=_run, args=(command, {**environment(), **own}, files)))
        free.close()
        for process in started:
            process.start()
        try:
            for process in started:
                process.join(timeout)
        finally:
            for process in started:
                process.kill()
                process.join()
        code = max(abs(process.exitcode or 0) for process in started)
        out, err = ("".join(path.read_text() for path in sorted(Path(folder).glob(f"{s}-*"))) for s in ("out", "err"))
    return subprocess.CompletedProcess(command, code, out, err)


def _run(command: list[str], own: dict[str, object], files: list[str]) -> None:
    os.environ.clear()
    os.environ.update({name: str(value) for name, value in own.items()})
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)  # OMP_NUM_THREADS comes after the imports
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
