"""Attacks small runs and checks that nothing is lost: the long form of tests/engine/test_resume.py and its kind.

  python scripts/dev/fault_injection.py kills --count 50    kill -9 of the group, the main process, a process, a worker
  python scripts/dev/fault_injection.py files --count 40    damaged checkpoints, records and settings
  python scripts/dev/fault_injection.py disk --count 20     a disk that gets full (needs root: mounts a tmpfs)
  python scripts/dev/fault_injection.py elastic --count 20  kills of one process under scripts/train_elastic.sh

Each run trains a small network on generated images in a temporary folder. A killed run is started again and must end
with the bits of one that was not killed; a damaged folder is a sentence with exit code 2, or an older checkpoint takes
over; a full disk is exit code 74 and leaves whole checkpoints. Prints a line for each attack.
Exit code 0: all as it must be; 1: some were not; 2: bad arguments.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image

from ddfnet.checkpoint import read_checkpoint
from ddfnet.engine.run_checkpoints import resumable
from ddfnet.utils.cli import at_least, run
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.files import read_jsonl

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


class Attack:
    """Small runs in a folder, and their bits."""

    def __init__(self, folder: Path, *, workers: int, processes: int, seed: int) -> None:
        self.folder, self.processes, self.random = folder, processes, random.Random(seed)
        make_images(folder / "images")
        (folder / "run.yaml").write_text(CONFIG.format(root=folder / "images", workers=workers))

    def command(self, target: Path) -> list[str]:
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [*launcher, str(ROOT / "train.py"), "--config", str(self.folder / "run.yaml"), f"run.dir={target}"]

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
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -1, "did not end"
        return process.returncode, output

    def until_step(self, process: subprocess.Popen[str], target: Path, step: int) -> bool:
        """Waits until a run has come to a step; False if it has ended, or takes too long."""
        deadline = time.monotonic() + TIMEOUT
        while not any(record["step"] >= step for record in read_jsonl(target / "metrics.jsonl")):
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


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
    a, b = (read_checkpoint(folder / "last.pt") for folder in (one, two))
    return all(same_bits(a[part], b[part]) for part in ("model", "ema", "optimizer", "local", "best", "step"))


def descendants(pid: int) -> list[int]:
    """All processes below one, by /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = [child for child, parent in parents.items() if parent == pid]
    return [*found, *(below for child in found for below in descendants(child))]


def kills(attack: Attack, count: int) -> int:
    """Kills at random moments; the number of runs that did not end with the bits of one that was not killed."""
    attack.finish(attack.folder / "whole")
    failed = 0
    for i in range(count):
        target, kind = attack.folder / f"killed{i}", attack.random.choice(["group", "main", "any"])
        process = attack.start(target)
        step = attack.random.randrange(1, STEPS)
        reached = attack.until_step(process, target, step)
        time.sleep(attack.random.random() * 0.1)
        if kind == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            below = descendants(process.pid)
            victim = attack.random.choice(below) if kind == "any" and below else process.pid
            if process.poll() is None:
                os.kill(victim, signal.SIGKILL)
        try:
            process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        code, output = attack.finish(target)
        same = code == 0 and same_run(target, attack.folder / "whole")
        failed += not same
        print(f"kill {i}: {kind} after step {step}{'' if reached else ' (ended before)'}: "
              f"{'same bits' if same else 'FAILED ' + output[-800:]}", flush=True)  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
    return failed


def _cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(max(1, path.stat().st_size))])


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(max(1, path.stat().st_size)))


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _missing(path: Path, rng: random.Random) -> None:
    path.unlink()


MUTATIONS: list[Callable[[Path, random.Random], None]] = [_cut, _flip, _noise, _folder, _missing]


def files(attack: Attack, count: int) -> int:
    """Damages files of a run; the number of times that ended otherwise than in a sentence or the same bits."""
    attack.finish(attack.folder / "whole")
    failed = 0
    for i in range(count):
        target = attack.folder / f"damaged{i}"
        shutil.copytree(attack.folder / "whole", target)
        name = attack.random.choice(["last.pt", "last.pt", "run.json", "metrics.jsonl", "config.yaml", "best.pt"])
        mutate = attack.random.choice(MUTATIONS)
        mutate(target / name, attack.random)
        code, output = attack.finish(target)
        sentence = code == 2 and output.count("error:") == 1
        ok = "Traceback" not in output and (sentence or (code == 0 and same_run(target, attack.folder / "whole")))
        failed += not ok
        what = "a sentence" if sentence else "resumed" if ok else "FAILED " + output[-800:]
        print(f"file {i}: {name} {mutate.__name__[1:]}: {what}", flush=True)
        shutil.rmtree(target)
    return failed


def disk(attack: Attack, count: int) -> int:
    """Runs on disks of growing size; the number of times that a checkpoint was lost or the code was another one."""
    mount, failed = attack.folder / "disk", 0
    mount.mkdir()
    for i in range(count):
        size = 9000 + 500 * i
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(mount)], check=True)
        try:
            code, output = attack.finish(mount / "run")
            left = list((mount / "run").rglob("*.tmp")) if (mount / "run").exists() else []
            try:
                for path in resumable(mount / "run"):
                    read_checkpoint(path)
                whole = True
            except CheckpointError:
                whole = False
            ok = code in (0, 74) and "Traceback" not in output and whole and not left
            failed += not ok
            print(f"disk {i}: {size} kB, exit code {code}: {'whole' if ok else 'FAILED ' + output[-800:]}", flush=True)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    return failed


def elastic(attack: Attack, count: int) -> int:
    """Kills one of two processes; the number of runs that torchrun did not bring to their end with the same bits."""
    attack.processes = 2
    attack.finish(attack.folder / "whole")
    failed = 0
    for i in range(count):
        target = attack.folder / f"elastic{i}"
        script = ["bash", str(ROOT / "scripts/train_elastic.sh")]
        process = attack.start(target, [*script, "--config", str(attack.folder / "run.yaml"), f"run.dir={target}"])
        step = attack.random.randrange(1, STEPS - 4)
        attack.until_step(process, target, step)
        ranks = [pid for pid in descendants(process.pid) if b"train.py" in _command(pid)]
        if ranks:
            os.kill(attack.random.choice(ranks), signal.SIGKILL)
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = "did not end"
        same = process.returncode == 0 and same_run(target, attack.folder / "whole")
        failed += not same
        print(f"elastic {i}: after step {step}: {'same bits' if same else 'FAILED ' + output[-800:]}", flush=True)
        shutil.rmtree(target, ignore_errors=True)
    return failed


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


ATTACKS = {"kills": kills, "files": files, "disk": disk, "elastic": elastic}


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="fault_injection.py", description=__doc__, formatter_class=raw)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--count", type=at_least(1), default=10, help="default %(default)s")
    parser.add_argument("--workers", type=at_least(0), default=1, help="data.workers (default %(default)s)")
    parser.add_argument("--processes", type=at_least(1), default=1, help="of each run (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        raise UserError("the attacks need Linux: processes are found in /proc")
    with tempfile.TemporaryDirectory(prefix="fault_injection.") as folder:
        attack = Attack(Path(folder), workers=options.workers, processes=options.processes, seed=options.seed)
        failed = ATTACKS[options.attack](attack, options.count)
    print(f"{options.count - failed} of {options.count} as they must be")
    return 1 if failed else 0


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
