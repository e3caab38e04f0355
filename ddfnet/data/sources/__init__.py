"""Sources of labeled images: what each offers, and which one opens a path.

A further kind of dataset is one file beside this one, a line in `locate.py` that recognizes it, and a line in
`open_source`.
"""

import os

from ddfnet.data.sources.base import TIMM, ImageSource, SourceConfig
from ddfnet.data.sources.classes import MissingClassesError
from ddfnet.data.sources.folder import index_folder
from ddfnet.data.sources.huggingface import open_huggingface
from ddfnet.data.sources.label_sets import open_labels
from ddfnet.data.sources.locate import locate, split_path, uses
from ddfnet.data.sources.misplaced import class_around_splits
from ddfnet.data.sources.nearby import dataset_with, similar_name
from ddfnet.data.sources.parquet import close_parquet
from ddfnet.data.sources.ranges import close_files
from ddfnet.data.sources.store import open_store
from ddfnet.data.sources.table import open_table
from ddfnet.data.sources.tar import open_tars
from ddfnet.data.sources.timm_reader import open_timm
from ddfnet.utils.errors import DataError

__all__ = ["ImageSource", "SourceConfig", "open_part", "open_source", "open_split", "split_path"]


def open_source(
    path: str | os.PathLike,
    *,
    classes: list[str] | None = None,
    allow_empty: bool = False,
    config: SourceConfig | None = None,
) -> ImageSource:
    """Opens a folder, a file or a pattern of files as a source of images; DataError for what cannot be used.

    Args:
        path: a folder with one sub-folder per class; a prepared store; a list (.csv, .tsv, .txt); parquet or Arrow
            files, or a tar or several: a file, a folder of them, or a pattern such as `shards/train-*.tar`.
        classes: expected class names in label order, from the training set or a checkpoint. None: those of the data.
        allow_empty: accept classes without images; with `config.allow_missing_val_classes` also absent ones.
        config: kind and details, where they are not to be recognized.
    """
    path, config = os.fspath(path), config or SourceConfig()
    allow_empty = allow_empty or config.allow_missing_val_classes
    close_files()
    close_parquet()
    kind, files = locate(path, config)
    for key in sorted({"image_column", "label_column", "class_names", "val_labels"} - uses(kind)):
        if getattr(config, key) is not None:
            raise DataError(
                f"data.{key}={getattr(config, key)} is not used: {path} is of kind {kind}; leave the key out"
            )
    if kind == "folder":
        absent = config.allow_missing_val_classes
        return index_folder(path, classes=classes, allow_empty=allow_empty, allow_absent=absent)
    if kind == "store":
        absent = config.allow_missing_val_classes
        return open_store(path, classes=classes, allow_empty=allow_empty, allow_absent=absent)
    if kind == "table":
        return open_table(path, classes=classes, allow_empty=allow_empty, config=config)
    open_files = open_huggingface if kind == "huggingface" else open_tars
    return open_files(path, files, classes=classes, allow_empty=allow_empty, config=config)


def open_split(
    root: str | os.PathLike,
    part: str,
    *,
    key: str,
    classes: list[str] | None = None,
    allow_empty: bool = False,
    config: SourceConfig,
) -> ImageSource:
    """Opens one split of a dataset (see `split_path`); DataError where it is missing.

    Args:
        part: name of the split, `data.train` or `data.val`.
        key: which of the two.
    """
    if key == "train":
        config = config.model_copy(update={"val_labels": None, "allow_missing_val_classes": False})
    try:
        return _open_split(os.fspath(root), part, key, classes, allow_empty, config)
    except MissingClassesError as error:
        if key == "train":
            raise
        raise MissingClassesError(
            f"{error}; or accept validation without them: data.allow_missing_val_classes=true"
        ) from None


def open_part(
    root: str | os.PathLike,
    path: str | os.PathLike,
    key: str,
    *,
    classes: list[str] | None = None,
    allow_empty: bool = False,
    config: SourceConfig,
) -> ImageSource:
    """Opens what one split was resolved to: with the labels that its files have, or those of `config.labels`, a path
    below `root`. `key`: train or val."""
    if config.labels is not None or config.multi_label:
        return open_labels(os.fspath(root), os.fspath(path), key, classes=classes, config=config)
    return open_source(path, classes=classes, allow_empty=allow_empty, config=config)


def _open_split(
    root: str, part: str, key: str, classes: list[str] | None, allow_empty: bool, config: SourceConfig
) -> ImageSource:
    if config.source.startswith(TIMM):
        own = os.path.join(root, part)
        local = os.path.exists(own)  # a tree or tar of each split; else the reader knows its splits
        allow_empty = allow_empty or config.allow_missing_val_classes
        return open_timm(own if local else root, part, classes=classes, allow_empty=allow_empty, config=config)
    path = split_path(root, part)
    if path is None:
        raise DataError(_no_split(root, part, key, config))
    return open_part(root, path, key, classes=classes, allow_empty=allow_empty, config=config)


def _no_split(root: str, part: str, key: str, config: SourceConfig) -> str:
    """That a split is not there, and where it is likely to be."""
    state = f"has no folder {part}" if os.path.exists(root) else "does not exist"
    if (meant := dataset_with(root, part)) is not None:
        fix = class_around_splits(meant, part, config) or f"set data.root={meant}"
        return f"data.root={root} {state}, but {meant} has: {fix}"
    needs = (
        f"it holds {part}/ with one folder per class, or {part} as another source of docs/guides/data.md "
        f"(set data.{key} where the name differs)"
    )
    looked, name = (root, part) if os.path.isdir(root) else os.path.split(os.path.normpath(root))
    near = similar_name(name, looked or ".")
    return f"data.root={root} {state}{near and f' ({near})'}: {needs}"
