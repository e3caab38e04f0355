"""Commands in one process, or in several as torchrun starts them, but forked from one that has imported everything.

The imports of a process take 7 s of processor time, torchrun and two processes 20 s, each time. What differs: variables
for memory and threads come after the imports, native code uses no threads of OpenMP, modules are there that a command
may not have imported, what it starts by spawn or forkserver has pytest's `__main__` in place of the script's, and the
processes end without Python's own end. So tests of what a launcher does, of signals, kills, imports and ends start the
real one (`tests.conftest.launch`).
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import shlex
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from tests.conftest import ROOT, environment

PRELOADED = ["ddfnet.engine.train", "ddfnet.engine.evaluate_checkpoint", "ddfnet.tasks.classification", "torch._dynamo"]
PRELOADED += ["matplotlib.pyplot", "tests.processes"]
_GRACE_SECONDS = 10.0  # for the others after one has failed


def start_forked(
    command: Sequence[str], variables: Mapping[str, str], output: str, errors: str, cwd: Path
) -> BaseProcess:
    """Starts what `python COMMAND` would do in a folder, with these variables alone, printing into files."""
    context = multiprocessing.get_context("forkserver")  # which Windows lacks
    context.set_forkserver_preload(PRELOADED)  # takes effect where there is no such server yet
    process = context.Process(target=_run, args=(list(command), dict(variables), (output, errors), str(cwd)))
    process.start()
    return process


def end(process: BaseProcess) -> None:
    """Kills a process and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # where it had no group of its own yet
    process.join()


def launch_forked(
    script: str | Path,
    *arguments: object,
    processes: int = 1,
    cwd: Path = ROOT,
    timeout: float = 300,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or the code after `-c`, in this many processes, with variables besides the usual ones.

    Output and errors are those of one process after the other, the exit code that of the first which failed.
    """
    started, codes = [], []
    command = [str(script) if script == "-c" else str(ROOT / script), *map(str, arguments)]
    shared: dict[str, object] = dict(variables or {})
    if processes > 1:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun holds one
        shared |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "TORCHELASTIC_USE_AGENT_STORE": True}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(processes):
                own = {**shared, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else shared
                own = {name: str(value) for name, value in {**environment(), **own}.items()}
                out, err = (str(Path(folder, f"{stream}-{rank}")) for stream in ("out", "err"))
                started.append(start_forked(command, own, out, err, cwd))
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
                end(process)
        out, err = ("".join(path.read_text() for path in sorted(Path(folder).glob(f"{s}-*"))) for s in ("out", "err"))
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), out, err)


# What a shell starts instead of Python: it has one forked, hands signals on to it and ends as it does.
_CLIENT = """
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
server.sendall(json.dumps([os.getpid(), os.getcwd(), dict(os.environ), sys.argv[2:]]).encode() + b"\\n")
answers = server.makefile()
process = int(answers.readline())
def hand_on(number, _):
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, hand_on)
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextlib.contextmanager
def python_for_shells() -> Iterator[str]:
    """Words that start in a shell what `python` would start there, without its imports. Standard input is empty.

    Elsewhere than on Linux they start the real one.
    """
    if sys.platform != "linux":
        yield shlex.quote(sys.executable)
        return
    running: set[BaseProcess] = set()
    # Starting a process looks after all others, whose exit codes can be read once.
    lock, closing = threading.Lock(), threading.Event()

    class Server(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            client, cwd, variables, command = json.loads(self.rfile.readline())
            with lock:
                if closing.is_set():
                    return
                process = start_forked(command, variables, f"/proc/{client}/fd/1", f"/proc/{client}/fd/2", cwd)
                running.add(process)
            self.wfile.write(b"%d\n" % process.pid)
            wait([process.sentinel])
            with lock:
                running.discard(process)
                code = process.exitcode
            with contextlib.suppress(BrokenPipeError):  # the shell was killed
                self.wfile.write(b"%d\n" % code)

    with tempfile.TemporaryDirectory() as folder:
        address, client = Path(folder, "socket"), Path(folder, "client.py")
        client.write_text(_CLIENT)
        server = socketserver.ThreadingUnixStreamServer(str(address), Server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield shlex.join([sys.executable, "-IS", str(client), str(address)])
        finally:
            server.shutdown()
            thread.join()
            with lock:
                closing.set()
                for process in running:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.kill()  # where it had no group of its own yet
            server.server_close()


def _run(command: list[str], variables: dict[str, str], files: tuple[str, str], cwd: str) -> None:
    os.setsid()
    os.chdir(cwd)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server of a test of workers may hold some
    os.environ.clear()
    os.environ.update(variables)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    elif command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        runpy.run_path(command[0], run_name="__main__")
