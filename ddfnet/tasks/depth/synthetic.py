"""Synthetic rooms with exact depth: a small joint-upsampling dataset that needs no download."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ddfnet.data.generated import write_once

_MILLIMETER = 0.001
_FOCAL = 1.1  # focal length over the image's side: a view of about 49 degrees
_SAME_COLOR = 0.15  # probability that an object has the color of the wall: a depth edge without a color edge


def render_scenes(
    out: str | os.PathLike, *, train: int = 200, val: int = 40, size: int = 128, seed: int = 0
) -> dict[str, int]:
    """Writes scenes as `out/{train,val}/{rgb,depth}/<number>.png`, see `write_once`.

    Args:
        train, val: number of scenes of each part.
        size: side of the square images, pixels. rgb: 8 bits; depth: 16 bits, millimeters, every pixel measured.
        seed: keys the scenes; scene i of a part depends on (seed, part, i) and the size alone.
    """

    def write(tree: Path) -> None:
        for part, (split, count) in enumerate((("train", train), ("val", val))):
            for kind in ("rgb", "depth"):
                (tree / split / kind).mkdir(parents=True)
            for i in range(count):
                rgb, depth = draw_scene(np.random.default_rng((seed, part, i)), size)
                Image.fromarray(rgb).save(tree / split / "rgb" / f"{i:04d}.png")
                units = np.rint(depth / _MILLIMETER).astype(np.uint16)
                Image.fromarray(units).save(tree / split / "depth" / f"{i:04d}.png")

    parameters = {"train": train, "val": val, "size": size, "seed": seed}
    write_once(out, "scenes", write, parameters=parameters, at_least={"train": 1, "val": 1, "size": 16, "seed": 0})
    return {"train": train, "val": val}


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
    ground = _plane(ray, floor, np.array([0.0, rng.uniform(0.7, 1.3), 0.0]))
    paint(ground, np.broadcast_to(floor, ray.shape), rng.uniform(0.2, 0.9, 3), True)
    for _ in range(rng.integers(5, 12)):
        same = rng.random() < _SAME_COLOR
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
