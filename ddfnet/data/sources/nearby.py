"""The folder that is likely meant where one above or below it was given."""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ddfnet.data.sources.locate import FILE_SUFFIXES, split_path
from ddfnet.utils.errors import DataError, did_you_mean

_UP, _DOWN = 2, 3  # levels, as from ROOT/train/cat to ROOT, and from ROOT to ROOT/ILSVRC/Data/CLS-LOC of Kaggle
_MOST_FOLDERS = 20  # in a folder that is looked into: more are those of classes
_MOST_NAMES = 1000  # to look for a similar one
_MOST_LOOKS = 200  # the disk may be a slow one
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")


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
        if inside in (part, *SPLIT_NAMES) and has_split(parent, part):
            return parent
        inside = parent.name
    others = [name for name in SPLIT_NAMES if name[:3] != part[:3]]  # a class may hold a folder train, not a dataset

    def is_dataset(folder: Path) -> bool:
        return has_split(folder, part) and any(has_split(folder, other) for other in others)

    return folder_below(root, is_dataset)


def similar_name(name: str, folder: str) -> str:
    """`did you mean NAME?` with the nearest name of a folder, or of a file that could be data, in a folder; or ""."""
    try:
        with os.scandir(folder) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            fit = (entry.name for entry in visible if entry.name.endswith(FILE_SUFFIXES) or entry.is_dir())
            names = list(islice(fit, _MOST_NAMES + 1))
    except OSError:  # an error is being reported already
        return ""
    return did_you_mean(name, names, most=1) if len(names) <= _MOST_NAMES else ""


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
