"""A folder around a dataset, given in its place to a command that would take the folders in it for classes."""

import os
from pathlib import Path

from ddfnet.data.sources.base import SourceConfig
from ddfnet.data.sources.folder import is_image_name
from ddfnet.data.sources.locate import locate
from ddfnet.data.sources.nearby import folder_below, has_split
from ddfnet.utils.errors import DataError


def refuse_dataset_below(root: str | os.PathLike, config: SourceConfig) -> None:
    """DataError where `root`, which has no splits, holds nothing but one folder that leads to train and val.

    Labels and a kind that is given say what the folders are, and class folders may hold any other: all these pass.
    """
    if config.source != "auto" or config.labels is not None or config.multi_label or not _is_around(Path(root)):
        return
    meant = folder_below(root, lambda folder: has_split(folder, "train") and has_split(folder, "val"))
    if meant is not None:
        raise DataError(f"{root} has no splits train and val, but {meant} has: give that folder")


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
