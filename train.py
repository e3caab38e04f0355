#!/usr/bin/env python
"""Train a network as a YAML file describes.

one GPU or CPU:
  python train.py --config configs/ddf_resnet50.yaml data.root=/data/imagenet
8 GPUs:
  torchrun --nproc-per-node 8 train.py --config configs/ddf_resnet50.yaml \\
    data.root=/data/imagenet
2 x 8 GPUs:
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \\
    --rdzv-endpoint HOST:29500 train.py --config configs/ddf_resnet50.yaml \\
    data.root=/data/imagenet train.device_batch_size=64
CPU, 2 processes:
  torchrun --nproc-per-node 2 train.py --config configs/demo.yaml

Any key of the configuration can be given after the options as key.sub=value. A
run resumes by itself from the last.pt of its run folder. SIGTERM, SIGHUP or
Ctrl-C (and SIGUSR1, but not to torchrun, which does not pass it on) finish the
step and save; start again to resume. Exit codes: 0 finished, 1 failed, 2 a
mistake in the input, 74 the disk is full or fails, 75 interrupted, 76 a process
hung; torchrun itself exits with 1 for each of them but 0.
"""

import argparse
import os
import signal


def end_before_the_start(number: int, frame: object) -> None:
    """What a signal does until training has handlers of its own: there is nothing to save yet."""
    try:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun ends the others so where one has found a mistake
            os.write(2, b"train.py: stopped by a signal before there was a step to save: start again\n")
    finally:  # the terminal may have gone
        os._exit(75)


def parse_arguments() -> argparse.Namespace:
    raw, usage = (
        argparse.RawDescriptionHelpFormatter,
        "%(prog)s --config FILE [--print-config | --dry-run] [--quiet]\n         [KEY=VALUE ...]",
    )
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, usage=usage)
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file, see configs/ and docs/reference/config.md")
    examples = 'e.g. optim.lr=0.1 "train.ema={decay: 0.99}" run.dir=runs/a'
    add("overrides", nargs="*", metavar="key.sub=value", help=examples)
    add("--print-config", action="store_true", help="print the resolved configuration and the origin of each value")
    add("--dry-run", action="store_true", help="build everything, run two steps on small batches, write nothing")
    add("--quiet", action="store_true", help="show no progress: no bar, no lines of steps; metrics.jsonl has them")
    parsed, unknown = parser.parse_known_intermixed_args()
    if unknown:
        keys = "keys of the configuration are written KEY=VALUE, e.g. optim.lr=0.1"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; {keys}")
    if parsed.config is None:
        files = [text for text in parsed.overrides if "=" not in text and text.endswith((".yaml", ".yml"))]
        parser.error(f"{files[0]} is given as --config {files[0]}" if files else "--config FILE is required")
    return parsed


def main(arguments: argparse.Namespace) -> int:
    from ddfnet.engine.train import train
    from ddfnet.tasks import load_config

    loaded = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        notes = (*loaded.notes, *loaded.ineffective_keys())
        print("".join(f"# {note}\n" for note in notes) + loaded.to_yaml(), end="")
        return 0
    return train(loaded, dry_run=arguments.dry_run, quiet=arguments.quiet)


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):  # before the imports, which take seconds
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), end_before_the_start)
    parsed = parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(lambda: main(parsed))
