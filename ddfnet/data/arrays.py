"""Files of named arrays (.npz), written whole and read without running code."""

import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddfnet.utils.files import write_atomically


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name, none of them called `file`, which numpy keeps for itself."""

    def write(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; OSError where it cannot be opened, ValueError for anything that is not such a file,
    arrays of objects included."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (EOFError, zipfile.BadZipFile, zlib.error, KeyError, AttributeError, NotImplementedError) as error:
        # A lone array has no `files`; encrypted or exotic archives are not implemented.
        raise ValueError(f"not a file of arrays: {error}") from None
