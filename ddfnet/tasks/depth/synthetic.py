"""Drawn rooms with exact depth: a small joint-upsampling data set that needs no download."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ddfnet.utils.errors import DataError

MANIFEST = "scenes.json"
MILLIMETRE = 0.001
_FOCAL = 1.1  # focal length over the image's side: a view of about 49 degrees
_SAME_COLOUR = 0.15  # probability that an object has the color of the wall: a depth edge without a color edge


def make_scenes(
    out: str | os.PathLike, *, train: int = 200, val: int = 40, size: int = 128, seed: int = 0
) -> dict[str, int]:
    """Draw scenes as `out/{train,val}/{rgb,depth}/<number>.png`.

    The tree appears at once when it is complete. A complete earlier one with the same parameters is kept.

    Args:
        out: folder to make.
        train, val: number of scenes of each part.
        size: side of the square images, pixels. rgb: 8 bits; depth: 16 bits, millimeters, every pixel measured.
        seed: keys the scenes; scene i of a part depends on (seed, part, i) and the size alone.

    Returns:
        Number of scenes per part, {"train": ..., "val": ...}.

    Raises:
        ValueError: an argument is out of range.
        DataError: `out` holds something else.
    """
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, 16), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    out = Path(out)
    parameters = {"train": train, "val": val, "size": size, "seed": seed}
    counts = {"train": train, "val": val}
    if _is_there(out, parameters):
        return counts
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        tree = scratch / "tree"  # made with the user's umask, which the temporary folder itself is not
        for part, (split, count) in enumerate(counts.items()):
            for kind in ("rgb", "depth"):
                (tree / split / kind).mkdir(parents=True)
            for i in range(count):
                rgb, depth = draw_scene(np.random.default_rng((seed, part, i)), size)
                Image.fromarray(rgb).save(tree / split / "rgb" / f"{i:04d}.png")
                units = np.rint(depth / MILLIMETRE).astype(np.uint16)
                Image.fromarray(units).save(tree / split / "depth" / f"{i:04d}.png")
        (tree / MANIFEST).write_text(json.dumps({"parameters": parameters}, indent=2) + "\n")
        try:
            os.rename(tree, out)
        except OSError:
            # Another process may have finished first; its tree is the same.
            if not _is_there(out, parameters):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return counts


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One room: a wall, a floor, and five to eleven spheres and slanted rectangles, textured and lit.

    Edges of color mostly fall together with edges of depth. Not always: textures have edges of color alone, and some
    objects have the color of the wall and no texture.

    Returns:
        rgb uint8 (size, size, 3), and depth along the optical axis, meters, float64 (size, size).
    """
    y, x = np.mgrid[:size, :size] + 0.5
    ray = np.stack([(x / size - 0.5) / _FOCAL, (y / size - 0.5) / _FOCAL, np.ones((size, size))], -1)
    depth = np.full((size, size), np.inf)
    rgb = np.zeros((size, size, 3))
    light = _unit(np.array([rng.uniform(-0.6, 0.6), rng.uniform(-1.0, -0.4), -1.0]))
    wall_color = rng.uniform(0.25, 0.85, 3)

    def paint(z: np.ndarray, normal: np.ndarray, color: np.ndarray, textured: bool) -> None:
        """Draws a surface where it is the nearest one; z is inf where the ray misses it."""
        shown = z < depth
        depth[shown] = z[shown]
        lit = 0.65 + 0.35 * np.abs(normal @ light)
        pattern = _texture(rng, ray * np.where(np.isfinite(z), z, 0.0)[..., None], textured)
        rgb[shown] = (color * pattern[..., None] * lit[..., None])[shown]

    back, tilt = rng.uniform(3.0, 6.0), rng.uniform(-0.25, 0.25)
    wall, floor = _unit(np.array([tilt, 0.0, -1.0])), np.array([0.0, -1.0, 0.0])
    paint(_plane(ray, wall, np.array([0.0, 0.0, back])), np.broadcast_to(wall, ray.shape), wall_color, False)
    paint(
        _plane(ray, floor, np.array([0.0, rng.uniform(0.7, 1.3), 0.0])),
        np.broadcast_to(floor, ray.shape), rng.uniform(0.2, 0.9, 3), True,
    )  # fmt: skip
    for _ in range(rng.integers(5, 12)):
        same = rng.random() < _SAME_COLOUR
        color = wall_color if same else rng.uniform(0.05, 1.0, 3)
        z = rng.uniform(1.2, 0.9 * back)
        center = np.array([*(rng.uniform(-0.45, 0.45, 2) * z / _FOCAL), z])
        extent = rng.uniform(0.06, 0.17) * z / _FOCAL
        if rng.random() < 0.5:
            surface, normal = _sphere(ray, center, extent)
        else:
            surface, normal = _rectangle(rng, ray, center, extent * rng.uniform(0.6, 2.0, 2))
        paint(surface, normal, color, not same and rng.random() < 0.6)
    rgb += rng.normal(0, 0.01, rgb.shape)  # the camera's noise
    return (rgb.clip(0, 1) * 255).round().astype(np.uint8), depth


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def _plane(ray: np.ndarray, normal: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Depth at which each ray (z component 1) meets a plane, inf where it does not."""
    slope = ray @ normal
    z = np.divide(normal @ point, slope, out=np.full(slope.shape, np.inf), where=np.abs(slope) > 1e-9)
    return np.where(z > 0, z, np.inf)


def _sphere(ray: np.ndarray, center: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    a, b = (ray**2).sum(-1), ray @ center
    discriminant = b**2 - a * (center @ center - radius**2)
    z = np.where(discriminant >= 0, (b - np.sqrt(discriminant.clip(0))) / a, np.inf)
    normal = (ray * np.where(np.isfinite(z), z, 0.0)[..., None] - center) / radius
    return z, normal


def _rectangle(
    rng: np.random.Generator, ray: np.ndarray, center: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    normal = _unit(np.array([*rng.uniform(-0.7, 0.7, 2), -1.0]))
    across = _unit(np.cross(normal, _unit(rng.normal(size=3))))
    z = _plane(ray, normal, center)
    from_center = ray * np.where(np.isfinite(z), z, 0.0)[..., None] - center
    inside = (np.abs(from_center @ across) < half[0]) & (np.abs(from_center @ np.cross(normal, across)) < half[1])
    return np.where(inside, z, np.inf), np.broadcast_to(normal, ray.shape)


def _texture(rng: np.random.Generator, point: np.ndarray, textured: bool) -> np.ndarray:
    """Brightness of a surface at 3-D points: stripes, checks or waves; draws the same numbers whether textured or not,
    so that one object's texture does not move the others."""
    directions, kind = _unit(rng.normal(size=(2, 3))), rng.integers(3)
    frequency, contrast = rng.uniform(4, 14), rng.uniform(0.15, 0.45)
    if not textured:
        return np.ones(point.shape[:-1])
    waves = np.sin(2 * np.pi * frequency * (point @ directions.T))
    pattern = (np.sign(waves[..., 0]), np.sign(waves[..., 0] * waves[..., 1]), waves[..., 0])[kind]
    return 1 - contrast * (0.5 + 0.5 * pattern)


def _is_there(out: Path, parameters: dict[str, int]) -> bool:
    """Whether a complete tree with these parameters exists; DataError if `out` holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        written = json.loads((out / MANIFEST).read_text())["parameters"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{out} exists and was not made by make_depth_scenes; name another folder or remove it"
        ) from None
    if written != parameters:
        raise DataError(f"{out} was made with {written}, not {parameters}; name another folder or remove it")
    for split in ("train", "val"):
        for kind in ("rgb", "depth"):
            if len(list((out / split / kind).glob("*.png"))) != parameters[split]:
                raise DataError(f"{out}/{split}/{kind} is incomplete: remove {out} and run again")
    return True
