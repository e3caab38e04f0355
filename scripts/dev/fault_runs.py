"""Small runs to be attacked, their processes and their bits: the library of fault_injection.py."""

import json
import os
import random
import signal
import subprocess
import sys
import time
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
data: {{root: {root}, workers: {workers}, input: {{size: 16, crop_pct: 1.0}}}}
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
        self.random = random.Random(seed)
        make_images(folder / "images")
        self.config = folder / "run.yaml"
        self.config.write_text(CONFIG.format(root=folder / "images", workers=workers))

    def begin(self, index: int) -> None:
        """Random numbers for attack `index`."""
        self.random = random.Random(f"{self.seed} {index}")

    def command(self, target: Path, *overrides: str, processes: int | None = None) -> list[str]:
        launcher, number = [sys.executable], processes or self.processes
        if number > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        return [*launcher, str(ROOT / "train.py"), "--config", str(self.config), f"run.dir={target}", *overrides]

    def start(self, target: Path, command: list[str] | None = None) -> subprocess.Popen[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NPROC": "2"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        return subprocess.Popen(
            command or self.command(target), env=env, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, target: Path) -> tuple[int, str]:
        """Starts a run and waits for its end: exit code and output."""
        process = self.start(target)
        return wait(process)

    def whole(self) -> Path:
        """The folder of a run that nothing has happened to."""
        folder = self.folder / "whole"
        if not folder.exists():
            code, output = self.finish(folder)
            if code != 0:
                raise RuntimeError(f"the run without any attack ended with {code}: {output[-1500:]}")
        return folder

    def until_step(self, process: subprocess.Popen[str], target: Path, step: int) -> bool:
        """Waits until a run has come to a step; False if it has ended, or takes too long."""
        deadline = time.monotonic() + TIMEOUT
        while not any(record["step"] >= step for record in read_jsonl(target / "metrics.jsonl")):
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process; of one that does not end, its session is killed and the code is -1."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, "did not end"
    return process.returncode, output


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


def ranks_and_workers(launcher: int) -> tuple[list[int], list[int]]:
    """The processes of a run, under torchrun or alone, and their data workers, which were forked from them."""
    below = [launcher, *descendants(launcher)]
    ranks = [pid for pid in below if _is_training(pid) and not _is_training(_parent(pid))]
    return ranks, [worker for rank in ranks for worker in descendants(rank)]


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
