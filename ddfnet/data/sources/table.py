"""A CSV, TSV or text file that lists images and their labels, one a line."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddfnet.data.sources.base import NamedImages, Names, SourceConfig, canonical_order, hash_files
from ddfnet.data.sources.classes import refuse_empty_classes, settle_names
from ddfnet.utils.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
# In order of preference; compared without case, spaces and underscores.
IMAGE_COLUMNS = ("path", "filepath", "file", "filename", "image", "imagepath", "img", "imageid", "name")
_CHECKED = 100  # files whose presence is checked when a list is opened
LABEL_COLUMNS = ("label", "class", "target", "labels", "classname", "category", "predictionstring")


@dataclass(frozen=True, eq=False)
class Table(NamedImages):
    """Image files and labels of a list (see `ImageSource`). The keys are the paths as the list has them."""

    folder: str  # that relative paths start from
    order: np.ndarray  # int64 (N,), images in the order of the list

    def name(self, i: int) -> str:
        return os.path.join(self.folder, self.keys[i])

    def read(self, i: int) -> bytes:
        with open(self.name(i), "rb") as file:
            return file.read()

    def disk_order(self) -> np.ndarray:
        return self.order

    def fingerprint(self) -> str:
        return hash_files(map(self.name, range(len(self))), self.keys.blob, self.keys.offsets)


def open_table(
    path: str, *, classes: list[str] | None = None, allow_empty: bool = False, config: SourceConfig
) -> Table:
    """Source of a list: with `.csv` and `.tsv` the first line names the columns; a line of `.txt` is a path, white
    space and a label. Paths are absolute or relative to the list's folder. See `open_source`."""
    rows = list(read_rows(path, config.image_column, config.label_column))
    keys = [key for _, key, _ in rows]
    seen: dict[str, tuple[int, str]] = {}
    for line, key, label in rows:
        first, other = seen.setdefault(key, (line, label))
        if other != label:
            raise DataError(
                f"{path}: {key} has the label {other} in line {first} and {label} in line {line}; keep one of them"
            )

    def line_of(i: int) -> str:
        return f"{path}, line {rows[i][0]}"

    texts = [label for _, _, label in rows]
    labels, names = settle_names(path, texts, classes=classes, config=config, where=line_of)
    refuse_empty_classes(path, labels, names, allow_empty)
    folder = os.path.dirname(path)
    # Asking for each of a million files takes minutes on a network; a wrong folder, or a part that was not copied,
    # shows in a few.
    for i in np.unique(np.linspace(0, len(keys) - 1, _CHECKED).astype(int)).tolist():
        if not os.path.exists(os.path.join(folder, keys[i])):
            raise DataError(
                f"{line_of(i)}: there is no file {os.path.join(folder, keys[i])}; paths must be absolute, or relative "
                f"to {folder or 'the current folder'}"
            )
    order = canonical_order(labels, keys)
    return Table(path, names, labels[order], Names([keys[i] for i in order.tolist()]), folder, np.argsort(order))


def read_rows(path: str, image_column: str | None, label_column: str | None) -> Iterator[tuple[int, str, str]]:
    """(line number, image, label) of each row of a list; DataError where one has no image or label."""
    suffix = Path(path).suffix.lower()
    try:
        with open(path, encoding="utf-8-sig", errors="strict", newline="") as file:
            if suffix in DELIMITERS:
                yield from _table_rows(path, csv.reader(file, delimiter=DELIMITERS[suffix]), image_column, label_column)
                return
            for what, column in (("image", image_column), ("label", label_column)):
                if column is not None:
                    raise DataError(f"data.{what}_column={column}: {path} has no column names; leave the key out")
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                words = line.rsplit(maxsplit=1)
                if len(words) < 2:
                    raise DataError(f"{path}, line {number}: expected a path and a label, got {line.strip()!r}")
                yield number, words[0].strip(), words[1]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}; convert it") from None


def _table_rows(
    path: str, rows: Iterator[list[str]], image_column: str | None, label_column: str | None
) -> Iterator[tuple[int, str, str]]:
    header = next(rows, [])
    image = column_of(path, header, image_column, IMAGE_COLUMNS, "image")
    label = column_of(path, header, label_column, LABEL_COLUMNS, "label")
    # Kaggle's list of ImageNet: the synset id, then boxes.
    first_word = header[label].strip().lower() == "predictionstring"
    for number, row in enumerate(rows, 2):
        if not any(row):
            continue
        if max(image, label) >= len(row) or not row[image].strip() or not row[label].strip():
            raise DataError(
                f"{path}, row {number}: no value for {header[image]} or {header[label]}: {','.join(row)[:80]!r}; "
                "correct or remove the row"
            )
        yield number, row[image].strip(), row[label].split()[0] if first_word else row[label].strip()


def column_of(path: str, header: list[str], wanted: str | None, known: tuple[str, ...], what: str) -> int:
    """Number of the column that a list's first line calls `wanted`, or by one of the known names; DataError where it
    has none. `what`: image or label."""
    names = [name.strip() for name in header]
    if wanted is not None:
        if wanted in names:
            return names.index(wanted)
        raise DataError(f"{path} has no column {wanted}, only {', '.join(names)}; correct data.{what}_column")
    plain = [name.lower().replace("_", "").replace(" ", "") for name in names]
    for name in known:
        if name in plain:
            return plain.index(name)
    raise DataError(
        f"{path}: no {what} column among {', '.join(names) or 'no columns at all'} (first line); name it with "
        f"data.{what}_column, or call it {known[0]}"
    )
