"""Sources of labeled images: what each offers, and which one opens a path.

A further kind of dataset is one file beside this one and one line in `READERS`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ddfnet.data.sources.folder import index_folder


class ImageSource(Protocol):
    """Labeled images with random access, held in arrays: forked workers share them, and would copy Python objects."""

    @property
    def root(self) -> str: ...  # where the images come from, as given

    @property
    def classes(self) -> list[str]: ...  # names; the position is the label

    def __len__(self) -> int: ...

    def label(self, i: int) -> int: ...

    def name(self, i: int) -> str:
        """Name of image `i` for messages; its path where it is a file."""

    def read(self, i: int) -> bytes:
        """The encoded image `i`; OSError where it cannot be read."""


READERS: dict[str, Callable[..., ImageSource]] = {}
"""By the suffix of the path. Each takes the path, `classes` and `allow_empty`; all other paths are class folders."""


def open_source(path: str | os.PathLike, *, classes: list[str] | None = None, allow_empty: bool = False) -> ImageSource:
    """Opens a folder with one sub-folder per class, or what another of `READERS` knows; DataError for unusable images.

    Args:
        classes: expected class names in label order, from the training set or a checkpoint. None: those of the data.
        allow_empty: accept classes without images.
    """
    return READERS.get(Path(path).suffix, index_folder)(path, classes=classes, allow_empty=allow_empty)
