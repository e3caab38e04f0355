"""Real handwritten digits as a small class-folder data set: scikit-learn's copy, no download."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ddfnet.data.sources.folder import list_images
from ddfnet.utils.errors import DataError

MANIFEST = "digits.json"


def render_digits(
    out: str | os.PathLike, *, size: int = 32, val_fraction: float = 0.2, seed: int = 0
) -> dict[str, int]:
    """Write scikit-learn's 1,797 handwritten digits (8 x 8 pixels) as `out/{train,val}/<digit>/*.png`.

    The tree appears at once when it is complete. A complete earlier one with the same parameters is kept, so calling
    this at the start of every run costs next to nothing.

    Args:
        out: folder to make.
        size: side of the gray PNGs, pixels; bicubic from 8.
        val_fraction: share of every digit's images that goes to `val`.
        seed: keys the split.

    Returns:
        Number of images per split, {"train": ..., "val": ...}.

    Raises:
        ValueError: an argument is out of range.
        DataError: scikit-learn is missing, or `out` holds something else.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    out = Path(out)
    parameters = {"size": size, "val_fraction": val_fraction, "seed": seed}
    counts = _earlier_result(out, parameters)
    if counts is not None:
        return counts

    images, labels = _load_digits()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        tree = scratch / "tree"  # made with the user's umask, which the temporary folder itself is not
        counts = _write_tree(tree, images, labels, **parameters)
        (tree / MANIFEST).write_text(json.dumps({"parameters": parameters, "counts": counts}, indent=2) + "\n")
        try:
            os.rename(tree, out)
        except OSError:
            # Another process may have finished first; its tree is the same.
            counts = _earlier_result(out, parameters)
            if counts is None:
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return counts


def _earlier_result(out: Path, parameters: dict) -> dict[str, int] | None:
    """Counts of a complete tree with these parameters; None if `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        written, counts = manifest["parameters"], manifest["counts"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{out} exists and was not made by make_digits; name another folder or remove it") from None
    if written != parameters:
        raise DataError(f"{out} was made with {written}, not {parameters}; name another folder or remove it")
    if any(len(list_images(out / split)) != count for split, count in counts.items()):
        raise DataError(f"{out} is incomplete: it should hold {counts}; remove it and run again")
    return counts


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn") from None
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _write_tree(
    tree: Path, images: np.ndarray, labels: np.ndarray, *, size: int, val_fraction: float, seed: int
) -> dict[str, int]:
    counts = {"train": 0, "val": 0}
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        members = np.random.default_rng((seed, digit)).permutation(members)
        cut = round(len(members) * val_fraction)
        for split, chosen in (("val", members[:cut]), ("train", members[cut:])):
            folder = tree / split / str(digit)
            folder.mkdir(parents=True)
            for i in chosen.tolist():
                image = Image.fromarray(images[i]).resize((size, size), Image.Resampling.BICUBIC)
                image.save(folder / f"{i:04d}.png")
            counts[split] += len(chosen)
    return counts
