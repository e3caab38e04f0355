#!/usr/bin/env python
"""Measure augmentation policies: image by image through Pillow, as timm applies them, and in batched operations.

    python scripts/benchmarks/policy.py
    python scripts/benchmarks/policy.py --device cuda --batch 256 --recipes rand-m7-mstd0.5-inc1

Both get the same images and the same draws, in turn. Pillow's column is CPU time per image in one process with one
thread; so is the batched one on a CPU. On CUDA it is the device's time per image, and beside it the time in which the
host has issued a batch. The last columns compare the pixels of both after all operations of the recipe.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import numpy as np
import torch
from PIL import Image

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.policy import Policy, apply_policy
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import POLICY, uniforms
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import package_version
from ddfnet.utils.errors import ConfigError, UserError
from ddfnet.utils.files import write_json
from ddfnet.utils.markdown import table
from scripts.benchmarks import common as bench

RECIPES = ("rand-m7-mstd0.5-inc1", "rand-m9-mstd0.5-inc1", "v0", "original", "3a", "trivial", "jitter")
COLUMNS = ("recipe", "Pillow, ms/image", "batched, ms/image", "ratio", "host, ms/batch", "1 level apart", "more")


def policy_of(recipe: str, size: int) -> Policy:
    """The policy of a recipe of timm's, "trivial" (TrivialAugment) or "jitter" (color jitter of 0.4)."""
    special: dict[str, dict[str, Any]] = {"trivial": {"trivial_augment": True}, "jitter": {}}
    try:
        policy = Policy.of(AugmentConfig(**special.get(recipe, {"rand_augment": recipe})), Preprocessing(size=size))
    except ValueError as error:
        raise ConfigError(f"--recipes {recipe}: {error}") from None
    if policy is None or policy.augmix is not None:
        raise ConfigError(f"--recipes {recipe}: it has no batched operations")
    return policy


def make_images(batch: int, size: int) -> np.ndarray:
    """Smooth color images with some noise, uint8 (batch, size, size, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (batch, 8, 8, 3)).astype(np.uint8)
    smooth = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in small]
    return np.clip(np.stack(smooth) + rng.normal(0, 6, (batch, size, size, 3)), 0, 255).astype(np.uint8)


def through_pillow(policy: Policy, pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    images = [policy.apply(Image.fromarray(one), draws, row) for row, one in enumerate(pixels)]
    return np.stack([np.asarray(image) for image in images])


def measure(recipe: str, pixels: np.ndarray, device: torch.device, passes: int) -> dict[str, Any]:
    """Both forms of a recipe on the same images: milliseconds per image, medians over the passes."""
    batch, size = pixels.shape[:2]
    policy = policy_of(recipe, size)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
    times: dict[str, list[float]] = {"pillow": [], "batched": [], "host": []}
    apart = np.zeros(3)
    for number in range(passes + 1):
        draws = policy.draw(uniforms(POLICY, 0, number, range(batch), [0] * batch, policy.count))
        seconds, reference = cpu_seconds(partial(through_pillow, policy, pixels, draws))
        times["pillow"].append(seconds)
        apply = partial(apply_policy, images, draws, policy.fill)
        if device.type == "cuda":
            seconds, host, made = device_seconds(apply)
            times["host"].append(host)
        else:
            seconds, made = cpu_seconds(apply)
        times["batched"].append(seconds)
        levels = abs(made.permute(0, 2, 3, 1).cpu().numpy().astype(np.int16) - reference)
        apart += [(levels == 1).mean(), (levels > 1).mean(), 1]
    figures = {name: 1000 * statistics.median(values[1:]) for name, values in times.items() if values}
    return {
        "name": recipe,
        "pillow_ms": figures["pillow"] / batch,
        "batched_ms": figures["batched"] / batch,
        "ratio": figures["pillow"] / figures["batched"],
        "host_ms_per_batch": figures.get("host"),
        "one_level_apart": apart[0] / apart[2],
        "further_apart": apart[1] / apart[2],
    }


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of this process, and what the call returns."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def device_seconds(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Time on the device, time until the host is free again, and what the call returns."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun = time.perf_counter()
    start.record()
    result = call()
    end.record()
    host = time.perf_counter() - begun
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, host, result


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the batched operations (default: cpu)")
    add("--recipes", nargs="+", default=RECIPES, metavar="RECIPE", help="of timm, trivial, jitter (default: several)")
    add("--batch", type=at_least(1), default=64, help="images (default: %(default)s)")
    add("--size", type=at_least(1), default=224, help="side of the images (default: %(default)s)")
    add("--passes", type=at_least(1), default=5, help="default: %(default)s, after one that does not count")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        environment = bench.environment(torch.device(arguments.device))
        environment |= {name: package_version(name) for name in ("timm", "torchvision", "pillow")}
        print(f"{bench.title(environment)}, timm {environment['timm']}, Pillow {environment['pillow']}", flush=True)
        pixels = make_images(arguments.batch, arguments.size)
        rows = [measure(name, pixels, torch.device(arguments.device), arguments.passes) for name in arguments.recipes]
    finally:
        torch.set_num_threads(threads)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("batch", "size", "passes")}
        write_json(arguments.json, {"environment": environment, "settings": settings, "rows": rows})
    print(table(COLUMNS, [line_of(row) for row in rows]), end="")
    return 0


def line_of(row: dict[str, Any]) -> tuple[str, ...]:
    times = (bench.number(row[key]) for key in ("pillow_ms", "batched_ms", "ratio", "host_ms_per_batch"))
    return (row["name"], *times, f"{row['one_level_apart']:.3%}", f"{row['further_apart']:.4%}")


if __name__ == "__main__":
    run(main)
