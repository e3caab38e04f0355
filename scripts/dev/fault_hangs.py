"""What does not move any more: the hangs of fault_injection.py."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from scripts.dev.fault_runs import Attack, Outcome, Run, descendants

RUN_TIMEOUT = 6
LATEST = RUN_TIMEOUT + 6  # seconds: looks are a second apart, and a process leaves others time to read why it ends
LATEST_SIGNAL = 10
# The worker of training, or that of validation.
_WAITS = r"(data, after step \d+ \(waiting for |evaluation data, after step \d+)"
_NOT_MOVED = rf"process {{rank}} has not moved for {RUN_TIMEOUT} s in the phase {_WAITS}"
_SILENT = rf"process {{rank}} does not answer: it is stopped, or its machine is gone; it was for {RUN_TIMEOUT} s"


def _stop(choose: Callable[[list[int]], int]) -> Callable[[Path, Run], int]:
    def cause(images: Path, started: Run) -> int:
        victim = choose(started.processes()[0])
        os.kill(victim, signal.SIGSTOP)
        return victim

    return cause


def _fifo(images: Path, started: Run) -> int:
    """Puts FIFOs in the place of all images of a class, which block whoever opens one."""
    for path in (images / "train" / "class2").iterdir():
        path.unlink()
        os.mkfifo(path)
    return 0


# What hangs, processes, workers, how it is done, and the pattern of the sentence that must name it.
CASES = [
    ("the only worker stopped", 1, 1, _stop(lambda ranks: descendants(ranks[0])[0]), _NOT_MOVED.format(rank=0)),
    ("one of two workers stopped", 1, 2, _stop(lambda ranks: descendants(ranks[0])[1]), _NOT_MOVED.format(rank=0)),
    ("images become FIFOs, read by a worker", 1, 1, _fifo, _NOT_MOVED.format(rank=0)),
    ("images become FIFOs, read by the process", 1, 0, _fifo, _NOT_MOVED.format(rank=0)),
    (
        "the worker of process 1 of 2 stopped",
        2,
        1,
        _stop(lambda ranks: descendants(ranks[1])[0]),
        _NOT_MOVED.format(rank=1),
    ),
    ("process 0 of 2 stopped", 2, 0, _stop(lambda ranks: ranks[0]), _SILENT.format(rank=0)),
    ("process 1 of 2 stopped", 2, 0, _stop(lambda ranks: ranks[1]), _SILENT.format(rank=1)),
]
# Each ends by run.timeout; those whose processes still listen end by SIGTERM, too.
ALL = [(case, False) for case in CASES] + [(case, True) for case in CASES[:5]]


def hangs(attack: Attack, index: int) -> Outcome:
    """Lets something hang in the middle of a run, which must end by itself with the name of it, or by SIGTERM."""
    (name, processes, workers, cause, pattern), by_signal = ALL[index % len(ALL)]
    folder, target = attack.folder / f"hangs{index}", attack.folder / f"hangs{index}" / "run"
    folder.mkdir()
    images = Path(shutil.copytree(attack.folder / "images", folder / "images"))
    keys = [f"data.root={images}", f"data.workers={workers}", "train.epochs=3000", "run.save_every=100"]
    keys.append(f"run.timeout={300 if by_signal else RUN_TIMEOUT}")
    started = attack.start(target, *keys, processes=processes)
    try:
        attack.until_step(started, target, attack.random.randrange(5, 30))
        time.sleep(2.5)  # for the processes to have heard of each other
        ranks, _ = started.processes()
        victim = cause(images, started)
        if by_signal:
            time.sleep(2)  # the batches that are there are trained with
            os.kill(started.pid, signal.SIGTERM)
        start = time.monotonic()
        listening = [pid for pid in ranks if pid != victim]
        while any(Path(f"/proc/{pid}/fd/0").exists() for pid in listening) and time.monotonic() - start < 60:
            time.sleep(0.05)
        seconds = time.monotonic() - start
        with suppress(ProcessLookupError):
            if victim:
                os.kill(victim, signal.SIGKILL)
        code, output = started.end()
    finally:
        started.kill()
    if by_signal:
        ok = code in (75, 1 if processes > 1 else 75) and "stopped by SIGTERM" in output and seconds <= LATEST_SIGNAL
    else:
        ok = code == (76 if processes == 1 else 1) and bool(re.search(pattern, output)) and seconds <= LATEST
    ok = ok and "Traceback" not in output.replace("traceback : Signal", "")
    how = "by SIGTERM" if by_signal else f"by run.timeout={RUN_TIMEOUT}"
    good = f"ended {how}, named" if not by_signal else f"ended {how}"
    failed = f"exit code {code} after {seconds:.1f} s: {output}"
    return Outcome.of(name, f"{good}, in {seconds:.1f} s" if ok else None, failed)
