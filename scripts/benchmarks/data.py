#!/usr/bin/env python
"""Measure the CPU time of loading images: ddfnet beside timm's create_loader and torchvision, in turn in one process.

    python scripts/benchmarks/data.py /data/imagenet/val                 # any tree of class folders
    python scripts/benchmarks/data.py FOLDER --json data.json --cifar /data/cifar10/train

Rows, all against timm on the plain files:
    plain        training from class folders
    store_keep   training from a store that prepare_images.py makes with --quality keep
    store_400    the same with --quality 90 --short-side 400: other pixels, see the distance
    eval         evaluation: short side to 256, center of 224
    eval_cached  the same from data.val_cache, once it is complete
    cifar        training at 32 pixels from images in memory, crops of the padded image (--cifar; default: the images
                 of ROOT at 32 x 32)
Training rows come three times: with the recipe, which timm's workers apply and ddfnet leaves to the device
(augment.where=device); with the recipe in the workers on both sides (cpu); and with crop and flip alone. torchvision
has another RandAugment, so it is a peer of crop and flip, and of the evaluation; so is NVIDIA DALI on the CPU, where
it is installed.

All loaders make the same crops of the same images and deliver uint8 batches; of the recipe's operations only the
distribution is the same. Normalization, erasing and mixing are the device's work and in nobody's time. Figures are CPU
milliseconds per image over all processes, one thread each, page cache warm: medians over the passes, ranges in
brackets. The ratio is the peer's time by ours, pass by pass. "pixels" is the distance to the same crops from timm,
which decodes and resizes with Pillow: largest and mean difference in levels of 255, and the median PSNR. Images that a
store has in another size get other crops from the same draws; their distance is given apart, after the evaluation's
transform.

Exit code 0: measured; 2: bad arguments, or images that cannot be used.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import numpy as np
import torch
from PIL import features

from ddfnet.data.dataset import EvalDataset
from ddfnet.data.decode import Decoder
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.write import write_store
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources.folder import index_folder
from ddfnet.data.val_cache import ValCache
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import package_version
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_json
from ddfnet.utils.markdown import table
from scripts.benchmarks import common as bench
from scripts.benchmarks.data_dali import dali_loader
from scripts.benchmarks.data_loaders import (
    Loader,
    Plan,
    Work,
    make_small,
    own_dataset,
    own_loader,
    plan,
    timm_loader,
    torchvision_loader,
)
from scripts.benchmarks.data_measure import distance, measure, profile, resized, resized_distance

RECIPE = "rand-m7-mstd0.5-inc1"
TARGETS = {"plain": 2.4, "store_keep": 3.5, "store_400": 5.0, "eval": 2.0, "eval_cached": 100.0, "cifar": 60.0}
STORES = {"store_keep": Encoding(), "store_400": Encoding(quality=90, short_side=400)}
COLUMNS = ("row", "augmentation", "timm ms", "ours ms", "timm / ours", "target", "pixels: max, mean, PSNR",
           "torchvision ms", "timm / torchvision", "its pixels")  # fmt: skip


def compare(
    loaders: list[Loader], figures: dict[str, dict[str, Any]], distances: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The figures of one comparison for the report: loaders are timm's, ours, torchvision's, DALI's."""
    reference = figures[loaders[0].name]["ms"]
    row: dict[str, Any] = {}
    for peer, loader in zip(("timm", "ours", "torchvision", "dali"), loaders, strict=False):
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
            if loader.name in distances:
                row[f"{prefix}distance"] = distances[loader.name]
    return row


def run_group(
    works: dict[str, Work], forms: dict[str, dict[str, Any]], planned: Plan, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of loaders that take turns with each other.

    Args:
        works: by kind, "recipe" and "bare", or "bare" alone.
        forms: name of each row, and what `own_loader` takes for it: nothing, `root` or `cache`.
    """
    bare, epoch = works["bare"], planned.epoch
    timm = {kind: timm_loader(f"timm {kind}", work) for kind, work in works.items()}
    kinds = {kind: (work, True) for kind, work in works.items()}
    if "recipe" in works:
        kinds["cpu"] = works["recipe"], False
    ours = {(name, kind): own_loader(f"{name} {kind}", work, **form, on_device=on_device)
            for name, form in forms.items() for kind, (work, on_device) in kinds.items()}  # fmt: skip
    torchvision = torchvision_loader("torchvision", bare)
    stores = {name: form["root"] for name, form in forms.items() if "root" in form}
    # All images once: from here on they are in the page cache, and a peer that cannot read them is known. Operations
    # are drawn by each side for itself, so distances are those of crop and flip.
    other_size = {name: resized(bare, store) for name, store in stores.items()}
    distances = {}
    for (name, kind), loader in ours.items():
        if kind == "bare":
            distances[loader.name] = distance(loader, timm[kind], epoch, other_size.get(name, ()))
    loaders = [*timm.values(), *ours.values()]
    outside = [torchvision, *filter(None, [dali_or_none(bare)])]
    for peer in outside:
        try:
            distances[peer.name] = distance(peer, timm["bare"], epoch)
            loaders.append(peer)
        except Exception as error:  # its decoder refuses some JPEGs
            distances[peer.name] = {"failed": bench.reason(error)}
    figures = measure(loaders, workers=arguments.workers, images=planned.images, passes=arguments.passes)
    rows = []
    for name, form in forms.items():
        peers = outside if not form else []
        parts = {"bare": compare([timm["bare"], ours[name, "bare"], *peers], figures, distances)}
        for kind in set(kinds) - {"bare"}:
            parts[kind] = compare([timm["recipe"], ours[name, kind]], figures, distances)
        row = {"name": name, **parts.get("recipe", parts["bare"]), "target": TARGETS[name]}
        row["met"] = row["ratio"] >= row["target"]
        if "recipe" in works:
            row |= {"cpu": parts["cpu"], "crop_only": parts["bare"]}
        if other_size.get(name):
            row["resized_distance"] = resized_distance(bare, stores[name], other_size[name])
        profiled = works.get("recipe", bare)
        row["profile"] = profile(own_dataset(profiled, **form), profiled, epoch)
        rows.append(row)
    return rows


def dali_or_none(work: Work) -> Loader | None:
    """NVIDIA DALI's loader, where it is installed and has such crops."""
    try:
        return None if work.pad else dali_loader("dali", work)
    except ImportError:
        return None


def lines_of(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line of the table, or three."""
    parts = {"-": row}
    if "crop_only" in row:
        parts = {f"{RECIPE}, device": row, f"{RECIPE}, cpu": row["cpu"], "crop, flip": row["crop_only"]}
    return [(row["name"], what, *_cells(part, row["target"] if part is row else None)) for what, part in parts.items()]


def _cells(part: dict[str, Any], target: float | None) -> list[str]:
    def spread(key: str) -> str:
        low, high = part[f"{key}_range"]
        return f"{bench.number(part[key])} [{bench.number(low)} {bench.number(high)}]"

    wanted = "-" if target is None else f"{target:g}: {'met' if part['met'] else 'missed'}"
    cells = [
        spread("timm_ms"),
        spread("ours_ms"),
        spread("ratio"),
        wanted,
        _pixels(part["distance"]) if "distance" in part else "-",
    ]
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
        text += f"\n{row['name']}, ms per image in ddfnet's reader: {steps}.\n"
        bare = row.get("crop_only", row)
        if "dali_ms" in bare:
            text += f"\n{row['name']}, NVIDIA DALI on the CPU, in the main process, the same crops: "
            text += f"{bench.number(bare['dali_ms'])} ms, timm / DALI {bench.number(bare['dali_ratio'])}, pixels "
            text += f"{_pixels(bare['dali_distance'])}.\n"
        if "resized_distance" in row:
            away = row["resized_distance"]
            text += f"\n{row['name']}: {away['images']} images are resized, after the evaluation's transform their "
            text += f"pixels differ by {_pixels(away)}.\n"
    return text


def measure_all(arguments: argparse.Namespace, scratch: Path, done: Callable[[list[dict[str, Any]]], None]) -> None:
    """Measures group by group and hands over the rows of each."""

    def rows(root: Path, size: int, kinds: dict[str, str | None], forms: dict[str, dict[str, Any]]) -> None:
        index, spare = index_folder(root), 2 * arguments.workers + 8
        # A turn is to take some 0.1 s. A batch costs ddfnet 0.2 ms, so that small images come in batches as large as
        # networks for them are trained with: the ratio at 128 is three quarters of that at 256.
        turn, images = (30, arguments.images) if size > 32 else (256, 3 * arguments.images)
        planned = plan(len(index), images, turn=turn, passes=arguments.passes, spare=spare)
        train = "recipe" in kinds
        works = {
            kind: Work(index, planned.batches, size, train, recipe, pad=train and size == 32)
            for kind, recipe in kinds.items()
        }
        done(run_group(works, forms, planned, arguments))

    training: dict[str, str | None] = {"recipe": RECIPE, "bare": None}
    stores: dict[str, dict[str, Any]] = {name: {"root": scratch / name} for name in STORES}
    index = index_folder(arguments.root)
    for name, encoding in STORES.items():
        write_store(index, scratch / name, encoding)
    cached = EvalDataset(index, Preprocessing(), cache=ValCache(scratch / "cache", index, Preprocessing()))
    for i in range(len(index)):
        cached.read([i])
    rows(arguments.root, 224, training, {"plain": {}, **stores})
    rows(arguments.root, 224, {"bare": None}, {"eval": {}, "eval_cached": {"cache": scratch / "cache"}})
    rows(arguments.cifar or make_small(arguments.root, scratch / "small"), 32, training, {"cifar": {}})


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
    environment |= {"decoder": Decoder().name, "simplejpeg": package_version("simplejpeg")}
    settings = {key: getattr(arguments, key) for key in ("workers", "passes", "images")} | {"recipe": RECIPE}
    report: dict[str, Any] = {"environment": environment, "settings": settings, "rows": []}
    versions = ", ".join(f"{name} {environment[name.lower()]}" for name in ("timm", "Pillow"))
    print(f"{bench.title(environment)}, {versions}; ddfnet decodes by {environment['decoder']}", flush=True)

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
