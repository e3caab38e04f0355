"""Small runs to be attacked, their processes and their bits: the library of fault_injection.py."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddfnet.checkpoint import read_checkpoint
from ddfnet.utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
model: {{name: ddf_mul_resnet14_32px}}
data: {{root: {root}, cache: none, workers: {workers}, input: {{size: 16, crop_pct: 1.0}}}}
augment: {{crop: pad}}
optim: {{lr: 0.05}}
train: {{epochs: 8, batch_size: 8, device_batch_size: 4, ema: {{decay: 0.9}}}}
run: {{log_every: 1, save_every: 3, tensorboard: false, device: cpu}}
"""
STEPS = 32
TIMEOUT = 180
_CLOCK = ("images_per_second", "data_wait", "eta_seconds")  # of the records: figures of the wall clock


def make_images(root: Path) -> None:
    """35 training and 10 validation images of 5 classes, of noise around a color of their own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        for label in range(5):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(40 * label + 40, 30, (18, 18, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{i}.png")


@dataclass
class Outcome:
    """How one attack ended: what was attacked, in words what came of it, whether that is as it must be."""

    kind: str
    what: str
    ok: bool

    @classmethod
    def of(cls, kind: str, good: str | None, output: str) -> "Outcome":
        """With the end of the output where nothing good came of it."""
        return cls(kind, good or f"FAILED {output[-1500:]}", good is not None)


class Run:
    """A run that was started: its processes and its end.

    Args:
        pid: of the launcher, which has a session of its own.
        output: file of what it prints.
        process: the launcher, where it is a child of this process (torchrun); otherwise that of fault_fork.py.
    """

    def __init__(self, pid: int, output: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid, self.output, self.process = pid, output, process

    def poll(self) -> int | None:
        """Exit code; -9 where all of it was killed; None while it runs."""
        if self.process is not None:
            return self.process.poll()
        code = Path(f"{self.output}.code")
        lives = Path(f"/proc/{self.pid}").exists()
        return int(code.read_text()) if code.exists() else None if lives else -9

    def end(self) -> tuple[int, str]:
        """Waits for the end: exit code and output. One that does not end is killed, with its session: code -1."""
        deadline = time.monotonic() + TIMEOUT
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                return -1, f"did not end: {self.output.read_text(errors='replace')}"
            time.sleep(0.02)
        return code, self.output.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9 of the whole session, if there is anything left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def processes(self) -> tuple[list[int], list[int]]:
        """The processes that train, and their data workers."""
        below = descendants(self.pid)
        if self.process is None:
            ranks = [pid for pid in below if _parent(pid) == self.pid]
        else:
            ranks = [pid for pid in below if _is_training(pid) and not _is_training(_parent(pid))]
        return ranks, [worker for rank in ranks for worker in descendants(rank)]


class Attack:
    """Small runs in a folder. Each attack has random numbers of its own, so that parts of a series can be run alone.

    Args:
        folder: for all of them.
        workers: data workers of each process.
        processes: of each run.
        seed: of the series.
    """

    def __init__(self, folder: Path, *, workers: int, processes: int, seed: int) -> None:
        self.folder, self.processes, self.seed = folder, processes, seed
        self.random, self._numbers = random.Random(seed), itertools.count()
        make_images(folder / "images")
        self.config = folder / "run.yaml"
        self.config.write_text(CONFIG.format(root=folder / "images", workers=workers))
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NPROC": "2"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._forks = _start_forks(self.environment)

    def close(self) -> None:
        """Ends the process from which runs are forked."""
        self._forks.communicate()

    def begin(self, index: int) -> None:
        """Random numbers for attack `index`."""
        self.random = random.Random(f"{self.seed} {index}")

    def start(self, target: Path, *overrides: str, processes: int | None = None) -> Run:
        """Starts a run, forked from a process that has imported all."""
        output = self.folder / f"output{next(self._numbers)}"
        arguments = ["--config", str(self.config), f"run.dir={target}", *overrides]
        request = {"arguments": arguments, "processes": processes or self.processes, "output": str(output)}
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        print(json.dumps(request), file=self._forks.stdin, flush=True)
        return Run(int(self._forks.stdout.readline()), output)

    def launch(self, target: Path, launcher: list[str], *overrides: str) -> Run:
        """Starts a run by a launcher, such as torchrun."""
        output = self.folder / f"output{next(self._numbers)}"
        command = [*launcher, "--config", str(self.config), f"run.dir={target}", *overrides]
        with output.open("wb") as file:
            options = {"env": self.environment, "start_new_session": True, "stdout": file, "stderr": file}
            process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        return Run(process.pid, output, process)

    def torchrun(self, target: Path, *overrides: str) -> Run:
        """Starts a run of two processes by torchrun."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return self.launch(target, [*launcher, str(ROOT / "train.py")], *overrides)

    def finish(self, target: Path) -> tuple[int, str]:
        """Starts a run and waits for its end: exit code and output."""
        return self.start(target).end()

    def whole(self) -> Path:
        """The folder of a run that nothing has happened to."""
        folder = self.folder / "whole"
        if not folder.exists():
            code, output = self.finish(folder)
            if code != 0:
                raise RuntimeError(f"the run without any attack ended with {code}: {output[-1500:]}")
        return folder

    def until_step(self, run: Run, target: Path, step: int) -> bool:
        """Waits until a run has come to a step; False if it has ended, or takes too long."""
        deadline = time.monotonic() + TIMEOUT
        while not any(record["step"] >= step for record in read_jsonl(target / "metrics.jsonl")):
            if run.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


def _start_forks(environment: dict[str, str]) -> subprocess.Popen[str]:
    """The process from which runs are forked."""
    command = [sys.executable, str(ROOT / "scripts/dev/fault_fork.py")]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def same_bits(a: object, b: object) -> bool:
    """Whether nested dictionaries and lists of tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


def same_run(one: Path, two: Path) -> bool:
    """Whether two runs have ended with the same bits of all that `last.pt` holds."""
    a, b = (read_checkpoint(folder / "last.pt") for folder in (one, two))
    return all(same_bits(a[part], b[part]) for part in ("model", "ema", "optimizer", "local", "best", "step"))


def same_records(one: Path, two: Path) -> bool:
    """Whether two runs have the same metrics, but for figures of the clock."""
    a, b = (
        [{key: value for key, value in record.items() if key not in _CLOCK} for record in read_jsonl(path)]
        for path in (one / "metrics.jsonl", two / "metrics.jsonl")
    )
    return a == b


def descendants(pid: int) -> list[int]:
    """All processes below one, by /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue

    def below(number: int) -> list[int]:
        found = [child for child, parent in parents.items() if parent == number]
        return [*found, *(deeper for child in found for deeper in below(child))]

    return below(pid)


def _is_training(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(b"train.py") for word in command[1:3])


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
