"""Small datasets that need no download: the digits, and how every generated tree is written once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.files import scratch_folder


def write_once(
    out: str | os.PathLike,
    kind: str,
    write: Callable[[Path], None],
    *,
    parameters: dict[str, Any],
    at_least: dict[str, int],
) -> dict[str, int]:
    """Writes a generated tree and returns the number of files in each of its folders.

    The tree appears at once when it is complete. A complete earlier one with the same parameters is kept, so calling
    this at the start of every run costs next to nothing.

    Args:
        out: folder to make; it may exist if it is empty.
        kind: of the data, a command of `scripts/make_data.py`; `out/<kind>.json` keeps parameters and counts.
        write: writes the tree into a folder that does not exist yet.
        parameters: all that the tree depends on.
        at_least: least values of parameters.

    UserError where a parameter is too small, DataError where `out` holds something else.
    """
    for name, least in at_least.items():
        if parameters[name] < least:
            raise UserError(f"{name} must be at least {least}, got {parameters[name]}")
    out = Path(out)
    counts = _earlier_result(out, kind, parameters)
    if counts is not None:
        return counts
    with scratch_folder(out) as scratch:
        tree = scratch / "tree"  # made with the user's umask, which the temporary folder itself is not
        write(tree)
        counts = {folder.name: _count_files(folder) for folder in sorted(tree.iterdir())}
        (tree / f"{kind}.json").write_text(json.dumps({"parameters": parameters, "counts": counts}, indent=2) + "\n")
        try:
            os.rename(tree, out)
        except OSError:
            # Another process may have finished first; its tree is the same.
            if _earlier_result(out, kind, parameters) is None:
                raise
    return counts


def _earlier_result(out: Path, kind: str, parameters: dict[str, Any]) -> dict[str, int] | None:
    """Counts of a complete tree with these parameters; None if `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / f"{kind}.json").read_text())
        written, counts = manifest["parameters"], manifest.get("counts", {})  # the first versions did not count
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{out} exists and was not made by make_data.py {kind}; name another or remove it") from None
    if written != parameters:
        raise DataError(f"{out} was made with {written}, not {parameters}; name another folder or remove it")
    if any(_count_files(out / folder) != count for folder, count in counts.items()):
        raise DataError(f"{out} is incomplete: it should hold {counts}; remove it and run again")
    return counts or {split: _count_files(out / split) for split in ("train", "val")}


def _count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("[!.]*"))  # file managers leave hidden files


def render_digits(
    out: str | os.PathLike, *, size: int = 32, val_fraction: float = 0.2, seed: int = 0
) -> dict[str, int]:
    """Writes scikit-learn's 1,797 handwritten digits (8 x 8 pixels) as `out/{train,val}/<digit>/*.png`; see
    `write_once`. DataError where scikit-learn is missing.

    Args:
        size: side of the gray PNGs, pixels; bicubic from 8.
        val_fraction: part of every digit's images that goes to `val`.
        seed: keys the split.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must be between 0 and 1, got {val_fraction}")

    def write(tree: Path) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DataError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from None
        source = load_digits()
        images = np.rint(source.images * (255 / 16)).astype(np.uint8)
        for digit in range(10):
            members = np.random.default_rng((seed, digit)).permutation(np.flatnonzero(source.target == digit))
            cut = round(len(members) * val_fraction)
            for split, chosen in (("val", members[:cut]), ("train", members[cut:])):
                folder = tree / split / str(digit)
                folder.mkdir(parents=True)
                for i in chosen.tolist():
                    image = Image.fromarray(images[i]).resize((size, size), Image.Resampling.BICUBIC)
                    image.save(folder / f"{i:04d}.png")

    parameters = {"size": size, "val_fraction": val_fraction, "seed": seed}
    return write_once(out, "digits", write, parameters=parameters, at_least={"size": 1, "seed": 0})
