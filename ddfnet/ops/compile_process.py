"""How `compile_ahead` shares a machine: how many processes, one compiling program at a time, none left behind."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: processes that start together compile the same
    fcntl = None  # type: ignore[assignment]

_MAX_WORKERS = 32
_KIB_PER_WORKER = 1_000_000


def worker_count() -> int:
    """One per core that this process may use, as far as 1 GB of memory is available for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(cores, _available_kib() // _KIB_PER_WORKER, _MAX_WORKERS)


def _available_kib() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1])
    return _MAX_WORKERS * _KIB_PER_WORKER  # unknown


@contextlib.contextmanager
def one_process_at_a_time(path: Path, deadline: float, log: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock on `path`, which the system releases when this process ends, however it does.

    Args:
        path: a file, made where there is none.
        deadline: when to stop waiting, in seconds of `time.monotonic`.
        log: gets one line if there is something to wait for.

    Raises:
        RuntimeError: another process held it up to the deadline.
    """
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
        waiting = False
        while file is not None and fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RuntimeError(f"another process still compiles, or hangs: it has locked {path}") from None
            except OSError:  # some network file systems have no locks
                break
            if not waiting:
                log(f"waiting for another process that compiles Triton kernels (lock {path})")
                waiting = True
            time.sleep(0.2)
        yield


def run_group(command: Sequence[str], text: str, environment: Mapping[str, str], timeout: float) -> tuple[int, str]:
    """Runs a program with `text` on its standard input; when it fails, all processes that it started end with it.

    Returns:
        Its exit code, and what was written to its standard error.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    # A file, not a pipe: processes that outlive the program would hold a pipe open, and reading it would not end.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            process.communicate(text, timeout)
        finally:
            if process.returncode != 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")
