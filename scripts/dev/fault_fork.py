"""Runs of train.py by fork, from a process that has imported all: the starts of fault_injection.py take a second each.

A child process of fault_injection.py. Reads requests from stdin, a line of JSON each: `arguments` of train.py, number
of `processes`, `output` file. Answers with the number of a process that has a session of its own, starts so many that
run train.py, ends them when one has failed or SIGTERM comes, as torchrun does, and writes their exit code into
`output`.code.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


def serve() -> None:
    """Answers requests until stdin is closed."""
    sys.path.insert(0, str(ROOT))
    import ddfnet.engine.train
    import ddfnet.tasks.classification  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the launchers: they leave files
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _launch(**request)
        print(pid, flush=True)


def _launch(arguments: list[str], processes: int, output: str) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(source, number)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: dict[int, int | None] = {}
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            _rank(arguments, rank, processes, port)
        ranks[pid] = None

    def end(*_: Any) -> None:
        for pid, code in ranks.items():
            if code is None:
                os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while None in ranks.values():
        pid, status = os.waitpid(-1, 0)
        ranks[pid] = os.waitstatus_to_exitcode(status)
        if ranks[pid] != 0:
            end()
    codes = list(ranks.values())
    code = codes[0] if processes == 1 else int(any(codes))
    temporary = Path(output + ".code.tmp")
    temporary.write_text(str(code))
    temporary.rename(output + ".code")
    os._exit(0)


def _rank(arguments: list[str], rank: int, processes: int, port: int) -> NoReturn:
    if processes > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({key: str(value) for key, value in own.items()})
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = [str(ROOT / "train.py"), *arguments]
    code: Any = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does where a process ends by itself
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
