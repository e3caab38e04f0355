#!/usr/bin/env python
"""What the engine costs: its loop beside a bare PyTorch loop, its checkpoints, and the time to a first step.

    python scripts/benchmarks/engine.py overhead --model ddf_mul_resnet14_32px --size 32 --batch 32 --processes 1 2
    python scripts/benchmarks/engine.py saves --model ddf_mul_resnet50 --size 224 --batch 8
    python scripts/benchmarks/engine.py start --timm CHECKOUT     # beside timm's train.py, of a checkout of timm

overhead: train.py's own run on batches that are in memory, and between blocks of its steps blocks of a bare loop
(forward, loss, backward, step of the optimizer; DistributedDataParallel where there are two processes) on a second
network of the same kind, with the same batches, in the same processes. A block of 50 steps has one log line.
saves: milliseconds that saving a checkpoint takes from the training thread, and how long the other thread writes.
start: seconds from the start of the process to its first finished step, of a new run and of one that resumes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import torch

from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter, at_least, run
from scripts.benchmarks.common import environment, title, writable_folder
from scripts.benchmarks.engine_loops import CLASSES, measure, write_config


def _config(folder: Path, options: argparse.Namespace, *, processes: int, workers: int) -> Path:
    steps = max(40, options.blocks * options.block + 2)  # an epoch does not end while something is measured
    sizes = {"size": options.size, "batch": options.batch, "steps": steps}
    return write_config(folder, options.model, processes=processes, workers=workers, **sizes)


def in_processes(folder: Path, options: argparse.Namespace, processes: int, overrides: list[str]) -> dict[str, Any]:
    """`measure` in one or several new processes; that of the first process."""
    config, result = _config(folder, options, processes=processes, workers=0), folder / "result.json"
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*start, __file__, "worker", "--block", str(options.block), "--blocks", str(options.blocks)]
    command += ["--config", str(config), "--result", str(result), *(f"--override={key}" for key in overrides)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(result.read_text()))


def overhead(options: argparse.Namespace) -> list[str]:
    """Lines of a table: milliseconds of a step of both loops."""
    rows = []
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            found = in_processes(Path(folder), options, processes, [])
        bare, engine = (1000 * statistics.median(found[name]) / options.block for name in ("bare", "engine"))
        ratios = [one / other - 1 for one, other in zip(found["engine"], found["bare"], strict=True)]
        ratio = statistics.median(ratios)
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            [options.model, processes, options.batch // processes, options.size, f"{bare:.2f}", f"{engine:.2f}",
             f"{1000 * ratio * bare:.0f}", f"{ratio:+.2%}", f"{quartiles[0]:+.1%} to {quartiles[2]:+.1%}", len(ratios)]
        )  # fmt: skip
    head = ["model", "processes", "images each", "size", "bare loop, ms a step", "engine, ms a step"]
    return markdown.table([*head, "difference, us", "overhead", "middle half", "pairs of blocks"], rows).splitlines()


def saves(options: argparse.Namespace) -> list[str]:
    """Lines of a table: what a save costs, in the background and not."""
    rows = []
    for background in ("true", "false"):
        keys = [f"run.save_every={options.block}", f"checkpoints.background={background}", "train.ema={decay: 0.999}"]
        with tempfile.TemporaryDirectory(dir=options.disk) as folder:
            found = in_processes(Path(folder), options, 1, keys)
            size = (Path(folder) / "run/last.pt").stat().st_size
        thread, write = (statistics.median(found[name][1:]) for name in ("save", "write"))
        step = statistics.median(found["engine"]) / options.block
        part = thread / step
        rows.append(
            [options.model, background, f"{size / 2**20:.0f}", f"{1000 * step:.0f}", f"{1000 * thread:.0f}",
             f"{1000 * write:.0f}", *(f"{part / every:.2%}" for every in (100, 500)), len(found["save"]) - 1]
        )  # fmt: skip
    head = ["model", "checkpoints.background", "MiB", "step, ms", "save, training thread, ms", "writing, ms"]
    return markdown.table([*head, "part of 100 steps", "part of 500", "saves"], rows).splitlines()


def start(options: argparse.Namespace) -> list[str]:
    """Lines of a table: seconds to the first step."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = _config(root, options, processes=1, workers=1)
        ours = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "run.log_every=1", "run.save_every=3"]
        times = range(options.times)
        first = [_seconds_to([*ours, f"run.dir={root}/run{i}"], "step ", 4) for i in times]
        resumed = [_seconds_to([*ours, f"run.dir={root}/run{i}"], "step ", 1) for i in times]
        rows.append(["ddfnet", *_medians(first, resumed)])
        if options.timm:
            timm = [sys.executable, str(options.timm / "train.py"), "--data-dir", str(root / "images")]
            timm += ["--device", "cpu", "--val-split", "val", "--model", options.model, "--num-classes", str(CLASSES)]
            timm += ["--img-size", str(options.size), "--batch-size", str(options.batch), "--workers", "1"]
            timm += ["--log-interval", "1", "--recovery-interval", "3", "--output", str(root / "timm")]
            first = [_seconds_to(timm, "Train: ", 5) for _ in times]
            last = sorted((root / "timm").glob("*/recovery-*.pth.tar"))[-1]
            resumed = [_seconds_to([*timm, "--resume", str(last)], "Train: ", 1) for _ in times]
            rows.append(["timm's train.py", *_medians(first, resumed)])
    rows = [[*row, options.model, options.size, options.batch, options.times] for row in rows]
    head = ["", "first step, s", "first step after resuming, s", "model", "size", "images", "times"]
    return markdown.table(head, rows).splitlines()


def _medians(*seconds: list[float]) -> list[str]:
    return [f"{statistics.median(values):.1f}" for values in seconds]


def _seconds_to(command: list[str], mark: str, steps: int) -> float:
    """Seconds from the start of a command to its first line of a step; it is ended after so many of them."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    begin, first, seen = time.monotonic(), 0.0, 0
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=env, **output)  # type: ignore[call-overload]
    lines = []
    for line in process.stdout:
        lines.append(line)
        if mark in line and "step 0" not in line and "resuming" not in line:
            first, seen = first or time.monotonic() - begin, seen + 1
            if seen >= steps:
                break
    process.kill()
    process.communicate()
    if not seen:
        raise RuntimeError(f"{command} took no step: {''.join(lines)[-2000:]}")
    return first


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine.py", description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("what", choices=("overhead", "saves", "start", "worker"))
    add("--model", default="ddf_mul_resnet14_32px", help="default: %(default)s")
    add("--size", type=at_least(8), default=32, help="pixels (default %(default)s)")
    add("--batch", type=at_least(2), default=32, help="images of all processes (default %(default)s)")
    add("--processes", type=at_least(1), nargs="+", default=[1], help="of overhead (default 1)")
    add("--block", type=at_least(1), default=50, help="steps of one loop before the other has its turn (default 50)")
    add("--blocks", type=at_least(4), default=14, help="of each loop, the first 2 are not counted (default 14)")
    add("--threads", type=at_least(1), default=1, help="of each process (default 1)")
    add("--disk", type=writable_folder, metavar="FOLDER", help="where saves go (default: the temporary folder)")
    add("--timm", type=Path, metavar="CHECKOUT", help="start: its train.py, too")
    add("--times", type=at_least(1), default=3, help="start: of each, the median counts (default 3)")
    for name in ("--config", "--result", "--override"):
        add(name, action="append" if name == "--override" else None, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.what == "worker":
        found = measure(Path(options.config), options.override, options.block, options.blocks)
        if int(os.environ.get("RANK", 0)) == 0:
            Path(options.result).write_text(json.dumps(found))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    lines = {"overhead": overhead, "saves": saves, "start": start}[options.what](options)
    record = environment(torch.device("cpu"))
    facts = [f"`{record['command']}`", f"{title(record)}, {record['date']}, commit {record['git']}"]
    print("\n\n".join([*facts, "\n".join(lines)]))
    return 0


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
