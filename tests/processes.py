"""Several processes of a command, as torchrun starts them, but forked from one that has imported everything.

Torchrun and the imports of two processes take 20 s of processor time, each time. What differs: variables for memory and
threads come after the imports, native code uses no threads of OpenMP, and the processes end without Python's own end.
So tests of what a launcher does, of signals, kills and ends start the real one (`tests.conftest.launch`).
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

from tests.conftest import ROOT, environment

PRELOADED = ["ddfnet.engine.train", "ddfnet.engine.evaluate_checkpoint", "ddfnet.tasks.classification", "torch._dynamo"]
_CONTEXT = multiprocessing.get_context("forkserver")
_GRACE_SECONDS = 10.0  # for the others after one has failed


def launch_forked(
    script: str, *arguments: object, processes: int = 1, cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs a script in this many processes.

    Output and errors are those of one process after the other, the exit code that of the first which failed.
    """
    _CONTEXT.set_forkserver_preload(PRELOADED)  # takes effect where there is no such server yet
    command, started, codes = [str(ROOT / script), *map(str, arguments)], [], []
    shared: dict[str, object] = {}
    if processes > 1:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun holds one
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "TORCHELASTIC_USE_AGENT_STORE": True}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(processes):
                own = {**shared, "RANK": rank, "LOCAL_RANK": rank} if shared else {}
                files = [str(Path(folder, f"{stream}-{rank}")) for stream in ("out", "err")]
                started.append(_CONTEXT.Process(target=_run, args=(command, {**environment(), **own}, files, cwd)))
                started[-1].start()
            running = {process.sentinel: process for process in started}
            while running:
                ended = wait(running, max(0.0, deadline - time.monotonic()))
                if not ended and not any(codes):
                    raise subprocess.TimeoutExpired(command, timeout)
                if not ended:
                    break
                codes += [running.pop(sentinel).exitcode for sentinel in ended]
                if any(codes):
                    deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                process.kill()  # where it had no group of its own yet
                process.join()
        out, err = ("".join(path.read_text() for path in sorted(Path(folder).glob(f"{s}-*"))) for s in ("out", "err"))
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), out, err)


def _run(command: list[str], own: dict[str, object], files: list[str], cwd: Path) -> None:
    os.setsid()
    os.chdir(cwd)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server of a test of workers may hold some
    os.environ.clear()
    os.environ.update({name: str(value) for name, value in own.items()})
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
