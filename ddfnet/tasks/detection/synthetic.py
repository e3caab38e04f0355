"""Synthetic shapes with boxes in COCO's format: a detection dataset that needs no download."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddfnet.data.generated import write_once

CLASSES = ("disc", "square", "triangle")


def render_shapes(
    out: str | os.PathLike, *, train: int = 20, val: int = 20, size: int = 128, seed: int = 0
) -> dict[str, int]:
    """Writes images of 1 to 4 colored shapes on textured ground as `out/{train,val}/*.png` and
    `out/annotations/{train,val}.json`, see `write_once`.

    Args:
        train, val: number of images.
        size: side of the images, pixels; the shapes are 0.15 to 0.4 of it.
        seed: keys the images.
    """

    def write(tree: Path) -> None:
        (tree / "annotations").mkdir(parents=True)
        for part, (split, count) in enumerate((("train", train), ("val", val))):
            (tree / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for i in range(count):
                pixels, objects = draw_shapes(np.random.default_rng((seed, part, i)), size)
                name = f"{i:06d}.png"
                Image.fromarray(pixels).save(tree / split / name)
                images.append({"id": i + 1, "file_name": name, "width": size, "height": size})
                for entry in objects:
                    annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0, **entry})
            categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (tree / "annotations" / f"{split}.json").write_text(json.dumps(content) + "\n")

    parameters = {"train": train, "val": val, "size": size, "seed": seed}
    write_once(out, "shapes", write, parameters=parameters, at_least={"train": 1, "val": 1, "size": 32, "seed": 0})
    return {"train": train, "val": val}


def draw_shapes(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One image, uint8 (size, size, 3), and its objects {"category_id", "bbox", "area"}: shapes do not overlap."""
    image = _ground(rng, size)
    taken = np.zeros((size, size), dtype=bool)
    objects = []
    for _ in range(rng.integers(1, 5)):
        label = int(rng.integers(len(CLASSES)))
        mask = _mask(CLASSES[label], rng, size)
        y, x = np.nonzero(mask)
        box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
        if taken[box].any():  # no second try: a full image keeps fewer shapes
            continue
        taken[box] = True
        # A strong color, which the gray ground never has.
        color = rng.permutation([rng.uniform(200, 255), rng.uniform(0, 60), rng.uniform(0, 255)])
        image[mask] = color + rng.normal(0, 8, (len(y), 3))
        width, height = int(np.ptp(x)) + 1, int(np.ptp(y)) + 1
        bbox = [int(x.min()), int(y.min()), width, height]
        objects.append({"category_id": label + 1, "bbox": bbox, "area": int(mask.sum())})
    return image.clip(0, 255).astype(np.uint8), objects


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Gray waves and noise, float (size, size, 3)."""
    y, x = np.mgrid[:size, :size] / size
    angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(2, 12), rng.uniform(0, 2 * np.pi)
    gray = rng.uniform(90, 170) + 30 * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return gray[..., None] + rng.normal(0, 12, (size, size, 3))


def _mask(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    half = rng.uniform(0.15, 0.4) * size / 2
    y, x = np.mgrid[:size, :size] - rng.uniform(half, size - 1 - half, (2, 1, 1))
    if kind == "disc":
        return np.hypot(x, y) <= half
    if kind == "square":
        return np.maximum(abs(x), abs(y)) <= half
    return (y <= half) & (abs(x) <= (y + half) / 2)  # a triangle that stands on its base
