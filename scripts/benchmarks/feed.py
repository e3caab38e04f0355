#!/usr/bin/env python
"""Measure whether the loader keeps up: images per second of a configuration's loader alone, its model alone, and both.

    python scripts/benchmarks/feed.py --config configs/ddf_resnet50.yaml data.root=/data/imagenet
    python scripts/benchmarks/feed.py --config configs/ddf_resnet50.yaml data.root=STORE --json feed.json

One process, as a run has it: workers, transfer, the device's transforms, the optimizer step. "loader" makes batches and
finishes them on the device, without a model; "model" repeats the steps of one batch that is there already; "both" is
training. The three take turns, --rounds times; medians, with the range in brackets. "waiting" is the share of the time
of "both" in which the loop waited for a batch: the column `data_wait` of a run. Writes nothing but --json.

Exit code 0: measured; 2: a mistake in the input.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch

from ddfnet.data.loader import worker_count
from ddfnet.engine.distributed import distributed_session
from ddfnet.engine.logging import RunLog
from ddfnet.engine.trainer import Trainer
from ddfnet.tasks import create_task, load_config
from ddfnet.tasks.plan import plan_run
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.files import write_json
from ddfnet.utils.markdown import table
from scripts.benchmarks import common as bench

WARM_UP = 2  # steps before the first round, of each kind
NAMES = ("loader", "model", "both")


def measure(config: Any, *, steps: int, rounds: int) -> dict[str, Any]:
    """Images per second of each of `NAMES` in every round, and the share of waiting of "both"."""
    with distributed_session(config.run.device) as distributed:
        task, device = create_task(config), distributed.device
        plan = plan_run(config, world_size=1, train_images=task.train_images)
        plan = replace(plan, total_steps=2**40)  # the stream must not end
        torch.manual_seed(config.run.seed)
        model = task.build_model()
        task.open_data(writes=False)
        log = RunLog(None, active=False, total_steps=plan.total_steps)
        trainer = Trainer(config, plan, task, model, distributed, folder=None, log=log)
        trainer.model.train()
        batches = task.train_batches(plan, rank=0, start_step=0, device=device)
        resident = itertools.repeat(next(batches))

        def load(source: Iterator[Any]) -> None:
            for _ in range(plan.accumulation):
                next(source)

        kinds: dict[str, Callable[[], None]] = {
            "loader": lambda: load(batches),
            "model": lambda: trainer.train_step(resident),
            "both": lambda: trainer.train_step(batches),
        }
        result: dict[str, Any] = {name: [] for name in (*NAMES, "waiting")}
        for number in range(-1, rounds):
            for name, step in kinds.items():
                count = steps if number >= 0 else WARM_UP
                _wait_for(device)
                trainer.records.meter.restart()
                start = time.perf_counter()
                for _ in range(count):
                    step()
                _wait_for(device)
                seconds = time.perf_counter() - start
                waiting = trainer.records.meter.read()[1]
                if number >= 0:
                    result[name].append(count * config.train.batch_size / seconds)
                    result["waiting"] += [waiting] if name == "both" else []
        return {**result, "device": str(device), "workers": 0 if task.train_in_process else config.data.workers}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="the run's YAML")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the configuration")
    add("--steps", type=at_least(1), default=30, help="optimizer steps of a round (default: %(default)s)")
    add("--rounds", type=at_least(1), default=5, help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write all figures here")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    loaded = load_config(arguments.config, arguments.overrides)
    config = loaded.config
    measured = measure(config, steps=arguments.steps, rounds=arguments.rounds)
    environment = bench.environment(torch.device(measured["device"]))
    workers = measured["workers"]
    workers = worker_count(workers) if workers == "auto" else workers
    print(
        f"{bench.title(environment)}; {config.model.name}, batch {config.train.batch_size}, {config.train.precision}, "
        f"{workers} loader processes"
    )
    lines = []
    for name in NAMES:
        values = measured[name]
        cell = f"{bench.number(statistics.median(values))} [{bench.number(min(values))} {bench.number(max(values))}]"
        lines.append([name, cell])
    print(table(["", "images/s"], lines))
    print(f"waiting for data: {statistics.median(measured['waiting']):.1%} of the time of both")
    if arguments.json:
        settings = {"overrides": arguments.overrides, "steps": arguments.steps, "batch": config.train.batch_size}
        write_json(arguments.json, {"environment": environment, "settings": settings, **measured})
    return 0


if __name__ == "__main__":
    run(main)
