#!/usr/bin/env python
"""The paper's table 3 at small scale: train every variant with the same recipe and several seeds, and compare.

    python scripts/paper/small_study.py --data data/cifar10
    python scripts/paper/small_study.py --data data/cifar10 --config configs/study/gpu.yaml --jobs 1 --seeds 5
    python scripts/paper/small_study.py --data data/cifar10 --variants dense ddf --set optim.lr=1e-3

--data is a folder with train/ and val/, each with one folder per class (small images: the networks are made for 32
pixels). Without it the study trains on handwritten digits, an easier task. Each run is
`train.py` with the study's YAML and a seed; accuracy is that of the last epoch, so no epoch is chosen on the held-out
images. Finished runs are kept: the same command resumes where it stopped, and more seeds or variants can be added.
Writes OUTPUT.md, OUTPUT.json and OUTPUT.png. Exit code 2 for a mistake in the input.
"""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

from ddfnet.data.generated import render_digits
from ddfnet.data.sources.folder import is_image_name
from ddfnet.tasks import load_config
from ddfnet.utils.cli import HelpFormatter, at_least
from scripts.paper.small_study_report import VARIANTS, write_report

DEFAULT_CONFIG = ROOT / "configs" / "study" / "cpu.yaml"


def study_folder(runs: Path, data: Path, images_per_class: int) -> Path:
    """Where the runs on these images go: other images must never continue or stand for them."""
    name = f"{data.name}_{images_per_class or 'all'}_per_class"
    return runs / f"{name}_{hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:8]}"


def subset(data: Path, images_per_class: int, folder: Path) -> Path:
    """A folder of links to the first training images of each class by name, and to all held-out ones.

    ValueError if a class has fewer images.
    """
    if images_per_class == 0:
        return data
    out = folder / "data"
    targets = {out / "val": data / "val"}
    for source in sorted(path for path in (data / "train").iterdir() if path.is_dir()):
        images = sorted(path for path in source.iterdir() if is_image_name(path.name))
        if len(images) < images_per_class:
            raise ValueError(f"{source} has {len(images)} images: lower --images-per-class to that, or give 0 for all")
        targets |= {out / "train" / source.name / image.name: image for image in images[:images_per_class]}
    for link, target in targets.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target.resolve())
    return out


def train_one(arguments: argparse.Namespace, data: Path, folder: Path, variant: str, seed: int) -> str:
    """Trains one variant with one seed by train.py; the last line of its output. RuntimeError if the run failed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(arguments.config), *VARIANTS[variant].overrides]
    command += arguments.set or []
    command += [f"data.root={data}", f"run.seed={seed}", f"run.dir={folder}"]
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        raise RuntimeError(f"{variant}, seed {seed}: train.py ended with {run.returncode}\n{run.stdout}{run.stderr}")
    return f"{variant}, seed {seed}: {run.stdout.strip().splitlines()[-1]}"


def study(arguments: argparse.Namespace) -> None:
    """Trains what has not finished, and writes the report; ValueError or RuntimeError as the functions it calls."""
    load_config(arguments.config, [*(arguments.set or []), "data.root=unused"])
    data, per_class = arguments.data, arguments.images_per_class
    if data is None:
        data, per_class = arguments.runs / "digits", 0
        render_digits(data)
    if not (data / "train").is_dir() or not (data / "val").is_dir():
        raise ValueError(f"--data {data} must hold train/ and val/, each with one folder per class")
    folder = study_folder(arguments.runs, data, per_class)
    runs = {
        # Seeds outside: a study that is cut short has compared all variants.
        (variant, seed): folder / "_".join([arguments.config.stem, *(arguments.set or []), variant, f"seed{seed}"])
        for seed in range(arguments.seeds)
        for variant in arguments.variants
    }
    if not arguments.report_only:
        images = subset(data, per_class, folder)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            starts = [pool.submit(train_one, arguments, images, folder, *key) for key, folder in runs.items()]
            try:
                for done, future in enumerate(as_completed(starts), 1):
                    print(f"{done}/{len(runs)}  {future.result()}", flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    write_report(arguments.output, runs, data, _command(arguments))


def _command(arguments: argparse.Namespace) -> str:
    """The command that repeats the study, whatever the number of jobs and starts it took."""
    words = ["python", "scripts/paper/small_study.py"]
    if arguments.data is not None:
        words += ["--data", str(arguments.data), "--images-per-class", str(arguments.images_per_class)]
    if arguments.config != DEFAULT_CONFIG:
        words += ["--config", str(arguments.config)]
    if arguments.set:
        words += ["--set", *arguments.set]
    return shlex.join([*words, "--seeds", str(arguments.seeds), "--variants", *arguments.variants])


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; exits with 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add, default = parser.add_argument, [variant for variant in VARIANTS if not variant.startswith("sigma")]
    add("--data", type=Path, metavar="FOLDER", help="train/ and val/ with one folder per class (default: digits)")
    images = "training images, 0: all (default %(default)s)"
    add("--images-per-class", type=at_least(0), default=1000, metavar="N", help=images)
    add("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: configs/study/cpu.yaml")
    variants = f"{', '.join(VARIANTS)} (default: those without sigma)"
    add("--variants", nargs="+", default=default, choices=VARIANTS, metavar="NAME", help=variants)
    add("--set", nargs="+", metavar="KEY=VALUE", help="changes of the study's YAML, the same for every variant")
    add("--seeds", type=at_least(1), default=3, metavar="N", help="runs per variant (default %(default)s)")
    add("--jobs", type=at_least(1), default=2, metavar="N", help="runs at a time (default %(default)s)")
    add("--runs", type=Path, default=Path("runs/study"), metavar="FOLDER", help="run folders (default %(default)s)")
    add("--output", type=Path, default=Path("small_study"), metavar="PATH", help="without ending (default %(default)s)")
    add("--report-only", action="store_true", help="train nothing, report the finished runs")
    try:
        study(parser.parse_args(argv))
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"small_study: {error}\n")


if __name__ == "__main__":
    main()
