#!/usr/bin/env python
"""Measure the CPU time of loading images: ddfnet beside timm's create_loader and torchvision, in turn in one process.

    python scripts/benchmarks/data.py /data/imagenet/val                 # any tree of class folders
    python scripts/benchmarks/data.py FOLDER --json data.json --cifar /data/cifar10/train

Rows, all against timm on the plain files:
    plain        training from class folders
    store_keep   training from a store that prepare_images.py makes with --quality keep
    store_400    the same with --quality 90 --short-side 400: other pixels, see the distance
    eval         evaluation: short side to 256, center of 224
    cifar        training at 32 pixels from class folders (--cifar; default: the images of ROOT reduced to 32 x 32)
Training rows come twice: with the recipe, whose operations run in the workers on both sides, and with crop and flip
alone. torchvision has another RandAugment, so it is a peer of crop and flip, and of the evaluation.

All loaders make the same crops of the same images and deliver uint8 batches; normalization, erasing and mixing are the
device's work and in nobody's time. Figures are CPU milliseconds per image over all processes, one thread each, page
cache warm: medians over the passes, ranges in brackets. The ratio is the peer's time by ours, pass by pass. "pixels"
is the distance to the same images from timm, which decodes and resizes with Pillow: largest and mean difference in
levels of 255, and the median PSNR. Images that a store has in another size get other crops from the same draws; their
distance is given apart, after the evaluation's transform.

Exit code 0: measured; 2: bad arguments, or images that cannot be used.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import numpy as np
import torch
from PIL import Image, features

from ddfnet.data.decode import open_rgb
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.write import write_store
from ddfnet.data.sampler import Request, permutation
from ddfnet.data.sources.folder import index_folder
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import package_version
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_json
from ddfnet.utils.markdown import table
from scripts.benchmarks import common as bench
from scripts.benchmarks.data_loaders import Loader, Work, own_loader, timm_loader, torchvision_loader
from scripts.benchmarks.data_measure import distance, measure, profile, resized, resized_distance

RECIPE = "rand-m7-mstd0.5-inc1"
TARGETS = {"plain": 2.4, "store_keep": 3.5, "store_400": 5.0, "eval": 2.0, "cifar": 60.0}
STORES = {"store_keep": Encoding(), "store_400": Encoding(quality=90, short_side=400)}
COLUMNS = ("row", "augmentation", "timm ms", "ours ms", "timm / ours", "target", "pixels: max, mean, PSNR",
           "torchvision ms", "timm / torchvision", "its pixels")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is read in a measurement."""

    batches: list[list[Request]]  # all of it
    images: int  # of a pass
    epoch: int  # batches that show each image once


def plan(count: int, images: int, *, turn: int = 10, passes: int, spare: int) -> Plan:
    """Passes over up to `images` of `count` images, about `images` in all, each as often as every other.

    Batches are of about `turn` images, whatever leaves out the fewest. One more pass warms up, and `spare` batches
    follow that workers read ahead.
    """
    chosen = permutation(count, 0, 0)[:images]
    batch = min(len(chosen), max(range(turn * 4 // 5, turn * 6 // 5 + 1), key=lambda size: len(chosen) // size * size))
    chosen = chosen[: len(chosen) // batch * batch]
    repeats = max(1, round(images / len(chosen)))
    needed = (passes + 1) * repeats * len(chosen) + spare * batch
    epochs = -(-needed // len(chosen))
    requests = [(e, int(chosen[j]), 0) for e in range(epochs) for j in permutation(len(chosen), 0, e)][:needed]
    batches = [requests[at : at + batch] for at in range(0, needed, batch)]
    return Plan(batches, repeats * len(chosen), len(chosen) // batch)


def make_small(root: Path, target: Path) -> Path:
    """The images of a tree as JPEGs of 32 x 32 pixels, in the same class folders."""
    index = index_folder(root)
    for i in range(len(index)):
        path = target / f"{index.key(i)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_rgb(index.read(i)).resize((32, 32), Image.Resampling.LANCZOS).save(path, quality=95)
    return target


def compare(
    loaders: list[Loader], figures: dict[str, dict[str, Any]], distances: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The figures of one comparison for the report: loaders are timm's, ours, and torchvision's where there is one."""
    reference = figures[loaders[0].name]["ms"]
    row: dict[str, Any] = {}
    for peer, loader in zip(("timm", "ours", "torchvision"), loaders, strict=False):
        if loader.name not in figures:
            row[f"{peer}_failed"] = distances[loader.name]["failed"]
            continue
        times = figures[loader.name]["ms"]
        row |= {f"{peer}_ms": statistics.median(times), f"{peer}_ms_range": [min(times), max(times)]}
        row |= {f"{peer}_{key}": figures[loader.name][key] for key in ("first_batch_ms", "worker_mib")}
        if peer != "timm":
            ratios = [a / b for a, b in zip(reference, times, strict=True)]
            prefix = "" if peer == "ours" else f"{peer}_"
            row |= {f"{prefix}ratio": statistics.median(ratios), f"{prefix}ratio_range": [min(ratios), max(ratios)]}
            row[f"{prefix}distance"] = distances[loader.name]
    return row


def run_group(
    works: dict[str, Work], forms: dict[str, Path | None], planned: Plan, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of loaders that take turns with each other.

    Args:
        works: by kind, "recipe" and "bare", or "bare" alone.
        forms: name of each row, and the store that ddfnet reads in it; None: the plain files.
    """
    bare, epoch = works["bare"], planned.epoch
    timm = {kind: timm_loader(f"timm {kind}", work) for kind, work in works.items()}
    ours = {(name, kind): own_loader(f"{name} {kind}", work, store)
            for name, store in forms.items() for kind, work in works.items()}  # fmt: skip
    torchvision = torchvision_loader("torchvision", bare)
    # All images once: from here on they are in the page cache, and a peer that cannot read them is known.
    other_size = {name: resized(bare, store) if store else [] for name, store in forms.items()}
    distances = {loader.name: distance(loader, timm[kind], epoch, other_size[name])
                 for (name, kind), loader in ours.items()}  # fmt: skip
    loaders = [*timm.values(), *ours.values()]
    try:
        distances[torchvision.name] = distance(torchvision, timm["bare"], epoch)
        loaders.append(torchvision)
    except Exception as error:  # its decoder refuses some JPEGs
        distances[torchvision.name] = {"failed": bench.reason(error)}
    figures = measure(loaders, workers=arguments.workers, images=planned.images, passes=arguments.passes)
    rows = []
    for name, store in forms.items():
        peers = {"bare": [] if store else [torchvision], "recipe": []}
        parts = {kind: compare([timm[kind], ours[name, kind], *peers[kind]], figures, distances) for kind in works}
        row = {"name": name, **parts.get("recipe", parts["bare"]), "target": TARGETS[name]}
        row["met"] = row["ratio"] >= row["target"]
        if "recipe" in works:
            row["crop_only"] = parts["bare"]
        if store and other_size[name]:
            row["resized_distance"] = resized_distance(bare, store, other_size[name])
        row["profile"] = profile(works.get("recipe", bare), store, epoch)
        rows.append(row)
    return rows


def lines_of(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """One or two lines of the table."""
    parts = {RECIPE: row, "crop, flip": row["crop_only"]} if "crop_only" in row else {"-": row}
    return [(row["name"], what, *_cells(part, row["target"] if part is row else None)) for what, part in parts.items()]


def _cells(part: dict[str, Any], target: float | None) -> list[str]:
    def spread(key: str) -> str:
        low, high = part[f"{key}_range"]
        return f"{bench.number(part[key])} [{bench.number(low)} {bench.number(high)}]"

    wanted = "-" if target is None else f"{target:g}: {'met' if part['met'] else 'missed'}"
    cells = [spread("timm_ms"), spread("ours_ms"), spread("ratio"), wanted, _pixels(part["distance"])]
    if "torchvision_ms" in part:
        return [*cells, spread("torchvision_ms"), spread("torchvision_ratio"), _pixels(part["torchvision_distance"])]
    return [*cells, part.get("torchvision_failed", "-"), "-", "-"]


def _pixels(values: dict[str, Any]) -> str:
    if values["mean"] == 0:
        return "equal"
    return f"{values['max']}, {bench.number(values['mean'])}, {bench.number(values['psnr'], 1)}"


def details(rows: list[dict[str, Any]]) -> str:
    """First batches, memory and profiles, as Markdown."""
    starts = [
        (row["name"], *(bench.number(row[f"{peer}_{key}"]) for key in ("first_batch_ms", "worker_mib")
                        for peer in ("timm", "ours"))) for row in rows
    ]  # fmt: skip
    head = ("row", "first batch, ms: timm", "ours", "own memory of a worker, MiB: timm", "ours")
    text = table(head, starts)
    for row in rows:
        steps = ", ".join(f"{step['step']} {bench.number(step['ms'], 3)}" for step in row["profile"])
        text += f"\n{row['name']}, ms per image in a worker of ddfnet: {steps}.\n"
        if "resized_distance" in row:
            away = row["resized_distance"]
            text += f"\n{row['name']}: {away['images']} images are resized, after the evaluation's transform their "
            text += f"pixels differ by {_pixels(away)}.\n"
    return text


def measure_all(arguments: argparse.Namespace, scratch: Path, done: Callable[[list[dict[str, Any]]], None]) -> None:
    """Measures group by group and hands over the rows of each."""

    def rows(root: Path, size: int, kinds: dict[str, str | None], forms: dict[str, Path | None]) -> None:
        index, spare = index_folder(root), 2 * arguments.workers + 4
        # A turn is to take about 0.1 s. Batches of 10 small images would mostly measure what a batch costs.
        turn, images = (10, arguments.images) if size > 32 else (100, 3 * arguments.images)
        planned = plan(len(index), images, turn=turn, passes=arguments.passes, spare=spare)
        train = "recipe" in kinds
        works = {kind: Work(index, planned.batches, size, train, recipe) for kind, recipe in kinds.items()}
        done(run_group(works, forms, planned, arguments))

    training: dict[str, str | None] = {"recipe": RECIPE, "bare": None}
    stores: dict[str, Path | None] = {name: scratch / name for name in STORES}
    for name, encoding in STORES.items():
        write_store(index_folder(arguments.root), scratch / name, encoding)
    rows(arguments.root, 224, training, {"plain": None, **stores})
    rows(arguments.root, 224, {"bare": None}, {"eval": None})
    rows(arguments.cifar or make_small(arguments.root, scratch / "small"), 32, training, {"cifar": None})


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="class folders of images; up to --images of them are used")
    add("--cifar", type=Path, metavar="FOLDER", help="class folders of small images for the row cifar")
    add("--json", type=Path, metavar="FILE", help="write the report here, after each group of rows")
    add("--workers", type=at_least(0), default=1, help="of each loader (default: 1); 0: all in one process")
    add("--passes", type=at_least(1), default=7, help="default: %(default)s")
    add(
        "--images",
        type=at_least(1),
        default=300,
        help="of a pass, small ones three times as many (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.workers and sys.platform != "linux":
        raise UserError("--workers: the CPU time of other processes is read on Linux only; give --workers 0")
    if arguments.json is not None and arguments.json.is_dir():
        raise UserError(f"--json {arguments.json} is a folder: name a file")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    environment = bench.environment(torch.device("cpu"))
    environment |= {name: package_version(name) for name in ("timm", "torchvision", "pillow")}
    environment |= {"libjpeg_turbo": features.version("libjpeg_turbo"), "numpy": np.__version__}
    settings = {key: getattr(arguments, key) for key in ("workers", "passes", "images")} | {"recipe": RECIPE}
    report: dict[str, Any] = {"environment": environment, "settings": settings, "rows": []}
    print(f"{bench.title(environment)}, timm {environment['timm']}, Pillow {environment['pillow']}", flush=True)

    def done(rows: list[dict[str, Any]]) -> None:
        report["rows"] += rows
        print(*(row["name"] for row in rows), "measured", flush=True)
        if arguments.json:
            write_json(arguments.json, report)

    try:
        with tempfile.TemporaryDirectory(prefix="ddfnet-benchmark-") as scratch:
            measure_all(arguments, Path(scratch), done)
    finally:
        torch.set_num_threads(threads)
    print()
    print(table(COLUMNS, [line for row in report["rows"] for line in lines_of(row)]))
    print(details(report["rows"]), end="")
    return 0


if __name__ == "__main__":
    run(main)
