"""The folder that is likely meant where one above or below it was given."""

import os
from collections.abc import Callable
from pathlib import Path

from ddfnet.data.sources.locate import split_path
from ddfnet.utils.errors import DataError

_UP, _DOWN = 2, 3  # levels, as from ROOT/train/cat to ROOT, and from ROOT to ROOT/ILSVRC/Data/CLS-LOC of Kaggle
_MOST_FOLDERS = 20  # in a folder that is looked into: more are those of classes
_MOST_LOOKS = 200  # the disk may be a slow one
_SPLITS = ("train", "training", "val", "valid", "validation", "test")


def folder_below(root: str | os.PathLike, fits: Callable[[Path], bool]) -> Path | None:
    """The one folder that fits on the first level below `root` that has any; None where there is none, or several."""
    level, looks = [Path(root)], 0
    for _ in range(_DOWN):
        level = [folder for above in level for folder in _folders(above)]
        looks += len(level)
        if looks > _MOST_LOOKS:
            return None
        if hits := [folder for folder in level if fits(folder)]:
            return hits[0] if len(hits) == 1 else None
    return None


def dataset_with(root: str | os.PathLike, part: str) -> Path | None:
    """The folder around or below `root` that holds a split of a dataset."""
    if os.path.isabs(part):
        return None
    root = Path(root)
    inside = root.name
    for parent in root.parents[:_UP]:
        if inside in (part, *_SPLITS) and has_split(parent, part):
            return parent
        inside = parent.name
    return folder_below(root, lambda folder: has_split(folder, part))


def refuse_dataset_below(root: str | os.PathLike) -> None:
    """DataError where `root`, which has no splits, holds a folder with train and val: its classes would be wrong."""
    meant = folder_below(root, lambda folder: has_split(folder, "train") and has_split(folder, "val"))
    if meant is not None:
        raise DataError(f"{root} has no splits train and val, but {meant} has: give that folder")


def has_split(folder: Path, part: str) -> bool:
    """Whether `split_path` finds a split there."""
    try:
        return split_path(folder, part) is not None
    except (DataError, OSError):
        return False


def holds_classes(folder: Path, classes: set[str]) -> bool:
    """Whether it has folders of most of these classes, or a validation split."""
    return 2 * sum((folder / name).is_dir() for name in classes) > len(classes) or has_split(folder, "val")


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # who opens it says so
        return []
    return [root / name for name in names] if len(names) <= _MOST_FOLDERS else []
