"""Random access to images in parquet files, which store them by row groups."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddfnet.data.sources.base import NamedImages, Names, canonical_order, hash_files
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

_MOST_GROUPS = 2  # row groups kept per process, about 10 MB each for ImageNet
_MOST_FILES = 64
_groups: OrderedDict[tuple[int, str, int, str], Any] = OrderedDict()  # by process: what a parent read, it alone uses
_files: OrderedDict[tuple[int, str], Any] = OrderedDict()


@dataclass(frozen=True, eq=False)
class ParquetSource(NamedImages):
    """Images in the row groups of parquet files (see `ImageSource`)."""

    files: list[str]
    file: np.ndarray  # int32 (N,), position in `files`
    group: np.ndarray  # int32 (N,), row group
    row: np.ndarray  # int32 (N,), within its group
    column: str  # of the bytes

    def name(self, i: int) -> str:
        return os.path.join(self.files[self.file[i]], self.keys[i])

    def read(self, i: int) -> bytes:
        path, group, row = self.files[self.file[i]], int(self.group[i]), int(self.row[i])
        value = _row_group(path, group, self.column)[row].as_py()
        if value is None:
            raise OSError(f"row {row} of row group {group} holds no image but at most its path")
        return value

    def disk_order(self) -> np.ndarray:
        return np.lexsort((self.row, self.group, self.file))

    def fingerprint(self) -> str:
        return hash_files(self.files, self.keys.blob, self.file, self.group, self.row)


def parquet_source(
    root: str,
    classes: list[str],
    labels: np.ndarray,
    keys: Sequence[str],
    files: list[str],
    file: np.ndarray,
    group: np.ndarray,
    row: np.ndarray,
    columns: Any,
    *,
    named: bool,
) -> ParquetSource:
    """A `ParquetSource` with its images put in order; `named`: whether the keys are names to order by."""
    order = canonical_order(labels, keys if named else None)
    return ParquetSource(
        root=root,
        classes=classes,
        labels=labels[order].astype(np.int32),
        keys=Names([keys[i] for i in order.tolist()]),
        files=files,
        file=file[order].astype(np.int32),
        group=group[order].astype(np.int32),
        row=row[order].astype(np.int32),
        column=f"{columns.image}.bytes" if columns.nested else columns.image,
    )


def without_images(path: str, rows: int) -> str:
    """The message for rows that only refer to their images."""
    return (
        f"{path}: {plural(rows, 'row')} without an image, at most with its path; write the dataset with its "
        "files embedded: dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
    )


def read_parquet(path: str) -> tuple[Any, Any]:
    """(schema, function of the columns -> labels, names, int64 (N, 2) row group and row of each image)."""
    import pyarrow as pa

    file = _open(path)
    schema = file.schema_arrow

    def table(columns: Any) -> tuple[Any, list[str | None], np.ndarray]:
        wanted = [columns.label]
        image = schema.field(columns.image).type
        named = columns.nested and any(image.field(i).name == "path" for i in range(image.num_fields))
        if named:
            wanted.append(f"{columns.image}.path")
        content = file.read(columns=wanted, use_threads=False)
        labels = content.column(columns.label).combine_chunks()
        if isinstance(labels, pa.ChunkedArray):  # of a file without rows, or in older versions
            labels = pa.concat_arrays(labels.chunks) if labels.num_chunks else pa.array([], labels.type)
        names: list[str | None] = [None] * len(labels)
        if named:
            names = [value and value["path"] for value in content.column(columns.image).to_pylist()]
        missing = _missing_images(file.metadata, columns)
        if missing:
            raise DataError(without_images(path, missing))
        rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        group = np.repeat(np.arange(len(rows), dtype=np.int64), rows)
        row = np.concatenate([np.empty(0, np.int64), *(np.arange(n) for n in rows)])
        return labels, names, np.stack([group, row], axis=1)

    return schema, table


def _missing_images(metadata: Any, columns: Any) -> int:
    """Rows without the bytes of an image, as far as the file's statistics tell."""
    wanted = f"{columns.image}.bytes" if columns.nested else columns.image
    missing = 0
    for group in (metadata.row_group(g) for g in range(metadata.num_row_groups)):
        for column in (group.column(c) for c in range(group.num_columns)):
            if column.path_in_schema == wanted and column.statistics is not None and column.statistics.has_null_count:
                missing += column.statistics.null_count
    return missing


def close_parquet() -> None:
    """Forgets what is kept open, so that files which were replaced are opened anew."""
    _groups.clear()
    _files.clear()


def _open(path: str) -> Any:
    from pyarrow.parquet import ParquetFile

    key = (os.getpid(), path)
    file = _files.pop(key, None)
    if file is None:
        while len(_files) >= _MOST_FILES:
            _files.popitem(last=False)
        # Without threads of its own: those would not survive a fork.
        file = ParquetFile(path, memory_map=False, pre_buffer=False)
    _files[key] = file
    return file


def _row_group(path: str, group: int, column: str) -> Any:
    """The images of one row group, a chunked array; OSError where it cannot be read."""
    import pyarrow as pa

    key = (os.getpid(), path, group, column)
    values = _groups.pop(key, None)
    if values is None:
        while len(_groups) >= _MOST_GROUPS:
            _groups.popitem(last=False)
        try:
            table = _open(path).read_row_group(group, columns=[column], use_threads=False)
        except pa.ArrowException as error:
            raise OSError(f"row group {group} is damaged: {error}") from None
        values = table.column(0).combine_chunks()
        if "." in column and pa.types.is_struct(values.type):
            values = values.field("bytes") if isinstance(values, pa.StructArray) else values.flatten()[0]
    _groups[key] = values
    return values
