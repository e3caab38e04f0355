"""A folder around a dataset, given in its place to a command that would take the folders in it for classes."""

import os
from itertools import islice
from pathlib import Path

from ddfnet.data.sources.base import SourceConfig
from ddfnet.data.sources.folder import is_image_name
from ddfnet.data.sources.locate import locate
from ddfnet.data.sources.nearby import folder_below, has_split
from ddfnet.utils.errors import DataError

_MOST_LOOKED_AT = 100  # entries of a folder, to know what it holds


def refuse_dataset_below(root: str | os.PathLike, config: SourceConfig) -> None:
    """DataError where `root`, which has no splits, holds nothing but one folder that leads to train and val.

    Labels and a kind that is given say what the folders are, and class folders may hold any other: all these pass.
    """
    if config.source != "auto" or config.labels is not None or config.multi_label or not _is_around(Path(root)):
        return
    meant = folder_below(root, lambda folder: has_split(folder, "train") and has_split(folder, "val"))
    if meant is not None:
        fix = class_around_splits(meant, "train", config) or "give that folder"
        raise DataError(f"{root} has no splits train and val, but {meant} has: {fix}")


def class_around_splits(folder: Path, part: str, config: SourceConfig) -> str:
    """What to do where the splits in a folder hold images without class folders, as in ROOT/dog/train/1.png: the
    folder is likely a class; "" where it is none."""
    if config.source not in ("auto", "folder") or config.labels is not None or config.multi_label:
        return ""
    split = folder / part
    try:
        with os.scandir(split) as entries:
            first = list(islice((entry for entry in entries if not entry.name.startswith(".")), _MOST_LOOKED_AT))
            if any(entry.is_dir() for entry in first) or not any(is_image_name(entry.name) for entry in first):
                return ""
    except OSError:  # no folder, or who opens it says so
        return ""
    target = folder.parent / part / folder.name
    return (
        f"classes lie in the splits, not around them; move the images of {split} to {target}, and those of the other "
        "split likewise"
    )


def _is_around(root: Path) -> bool:
    """Whether it is a folder of no recognized kind with one visible folder and no images."""
    try:
        if not root.is_dir() or locate(str(root), SourceConfig()).kind != "folder":
            return False
        folders = 0
        with os.scandir(root) as entries:
            for entry in entries:
                folders += not entry.name.startswith(".") and entry.is_dir()
                if folders > 1 or is_image_name(entry.name):
                    return False
    except (OSError, DataError):  # who opens it says so
        return False
    return folders == 1
