"""Datasets in Hugging Face's layout: parquet or Arrow files with a column of images and one of labels."""

import contextlib
import json
import os
import posixpath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddfnet.data.sources.base import ImageSource, SourceConfig
from ddfnet.data.sources.classes import refuse_empty_classes, settle_classes, settle_names
from ddfnet.data.sources.parquet import parquet_source, read_parquet, without_images
from ddfnet.data.sources.ranges import byte_ranges
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

SUFFIXES = (".parquet", ".arrow")
STATE = "state.json"  # names the files of a `Dataset.save_to_disk`
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "target")


class Columns(NamedTuple):
    """What a schema says about the images and labels."""

    image: str
    nested: bool  # the image is a struct whose field `bytes` has them, and `path` their name
    label: str
    names: list[str] | None  # of the labels, where they are numbers


def open_huggingface(
    root: str, files: list[str], *, classes: list[str] | None = None, allow_empty: bool = False, config: SourceConfig
) -> ImageSource:
    """Source of parquet or Arrow files of one split. See `open_source`.

    Images are encoded files, as `datasets` stores them. Those of Arrow files are read where they lie. Parquet packs
    about 100 images into a row group, all of which is read for one of them: prepare it for training.

    DataError where pyarrow is missing, a file is damaged or compressed (Arrow), or a column is missing or of another
    type; it names file and fix.
    """
    pyarrow = import_pyarrow(files[0])
    columns = None
    labels: list[np.ndarray] = []
    names: list[str | None] = []
    places: list[np.ndarray] = []  # of parquet: row group and row; of Arrow: first byte and size
    for path in files:
        try:
            read = read_parquet if path.endswith(".parquet") else _read_arrow
            schema, table = read(path)
            here = _columns(path, schema, config)
            if columns is not None and here != columns:
                raise DataError(f"{path} has other columns or class names than {files[0]}: are they of one dataset?")
            columns = here
            own_labels, own_names, own_places = table(columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged, or no {Path(path).suffix[1:]} file ({error}); copy it again") from None
        if own_labels.null_count:
            raise DataError(f"{path}: {plural(own_labels.null_count, 'row')} without {columns.label}; leave them out")
        labels.append(own_labels.to_numpy(zero_copy_only=False))
        names += own_names
        places.append(own_places)
    assert columns is not None
    values = np.concatenate(labels)
    if not len(values):
        raise DataError(f"{root} has no rows")
    file = np.repeat(np.arange(len(files)), [len(part) for part in labels])

    def row_of(i: int) -> str:
        return f"{files[file[i]]}, row {i - int(np.argmax(file == file[i]))}"

    if values.dtype.kind in "iu":
        numbers, known = settle_classes(root, values, columns.names, classes=classes, config=config, where=row_of)
    else:
        numbers, known = settle_names(root, values.tolist(), classes=classes, config=config, where=row_of)
    refuse_empty_classes(root, numbers, known, allow_empty)
    keys = _keys(names, numbers, known)
    named = keys is not None
    keys = keys or [f"{row:08d}" for row in range(len(values))]
    first, second = np.concatenate(places).T
    if files[0].endswith(".parquet"):
        return parquet_source(root, known, numbers, keys, files, file, first, second, columns, named=named)
    return byte_ranges(root, known, numbers, keys, files, file, first, second, named=named)


def import_pyarrow(path: str) -> Any:
    """The package pyarrow; DataError where it is missing."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"reading {path} needs pyarrow, which is missing: pip install pyarrow (or pip install 'ddfnet[sources]')"
        ) from None
    return pyarrow


def arrow_files(folder: str) -> list[str]:
    """The parquet or Arrow files of a folder that holds one split, in order; DataError where it has both kinds."""
    state = os.path.join(folder, STATE)
    if os.path.exists(state):
        try:
            listed = [entry["filename"] for entry in json.loads(Path(state).read_text())["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state} is damaged ({error!r}); save the dataset again") from None
        files = [os.path.join(folder, os.path.basename(name)) for name in listed]
        missing = [file for file in files if not os.path.exists(file)]
        if missing:
            raise DataError(f"{state} names {missing[0]}, which is missing; copy the whole folder")
        return files
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIXES))
    if len({Path(file).suffix for file in files}) > 1:
        raise DataError(
            f"{folder} holds parquet and Arrow files: name those to use, e.g. data.train='{folder}/*.arrow'"
        )
    return files


def _columns(path: str, schema: Any, config: SourceConfig) -> Columns:
    features: dict[str, Any] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):  # other software wrote the file
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    classes = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    image = _column(path, schema.names, "image", config.image_column, images, _IMAGE_COLUMNS)
    label = _column(path, schema.names, "label", config.label_column, classes, _LABEL_COLUMNS)
    type_ = schema.field(image).type
    nested = any(type_.field(i).name == "bytes" for i in range(type_.num_fields))
    content = str(type_.field("bytes").type if nested else type_)
    if content not in ("binary", "large_binary"):
        raise DataError(f"{path}: column {image} is {type_}, expected the bytes of image files; name another one")
    if not str(schema.field(label).type).startswith(("int", "uint", "string", "large_string")):
        raise DataError(
            f"{path}: column {label} is {schema.field(label).type}, expected whole numbers or text; name another one "
            "with data.label_column"
        )
    names = features[label].get("names") if kinds.get(label) == "ClassLabel" else None
    return Columns(image, nested, label, list(names) if names else None)


def _column(
    path: str, present: list[str], what: str, wanted: str | None, typed: list[str], known: tuple[str, ...]
) -> str:
    if wanted is not None:
        if wanted not in present:
            raise DataError(f"{path} has no column {wanted}, only {', '.join(present)}; correct data.{what}_column")
        return wanted
    fitting = typed or [name for name in present if name in known]
    if len(fitting) != 1:
        state = f"several {what} columns, {', '.join(fitting)}" if fitting else f"no {what} column"
        raise DataError(f"{path} has {state} among {', '.join(present)}; name the one to use with data.{what}_column")
    return fitting[0]


def _keys(names: list[str | None], labels: np.ndarray, classes: list[str]) -> list[str] | None:
    """The names of the files that the images come from; None where some are missing or the same.

    ImageNet's edition appends the synset id, `n01440764_10026_n01440764.JPEG`, which the original name does not have.
    """
    if any(not name for name in names):
        return None
    keys = []
    for name, label in zip(names, labels.tolist(), strict=True):
        stem, extension = posixpath.splitext(posixpath.basename(str(name).replace("\\", "/")))
        keys.append(stem.removesuffix(f"_{classes[label]}") + extension)
    return keys if len(set(zip(labels.tolist(), keys, strict=True))) == len(keys) else None


def _read_arrow(path: str) -> tuple[Any, Any]:
    """(schema, function of the columns -> labels, names, int64 (N, 2) first byte and size of each image)."""
    import pyarrow as pa

    with pa.memory_map(path) as source:
        content = source.read_buffer()
    try:
        reader = pa.ipc.open_stream(content)
        batches = list(reader)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(content)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def table(columns: Columns) -> tuple[Any, list[str | None], np.ndarray]:
        labels: list[Any] = []
        names: list[str | None] = []
        places = [np.empty((0, 2), np.int64)]
        for batch in batches:
            image = batch.column(columns.image)
            values = image.field("bytes") if columns.nested else image
            if image.null_count or values.null_count:
                raise DataError(without_images(path, max(image.null_count, values.null_count)))
            fields = [image.type.field(i).name for i in range(image.type.num_fields)]
            names += image.field("path").to_pylist() if "path" in fields else [None] * len(image)
            places.append(_places(path, values, content))
            labels += batch.column(columns.label).to_pylist()
        return pa.array(labels, reader.schema.field(columns.label).type), names, np.concatenate(places)

    return reader.schema, table


def _places(path: str, values: Any, content: Any) -> np.ndarray:
    """Where the values of a binary array lie within the file."""
    if not len(values):
        return np.empty((0, 2), np.int64)
    _, offsets, data = values.buffers()
    kind = np.int64 if str(values.type) == "large_binary" else np.int32
    limits = np.frombuffer(offsets, kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    begin = data.address - content.address
    if not 0 <= begin <= begin + int(limits[-1]) <= content.size:
        raise DataError(
            f"{path} is compressed, so that its images cannot be read at random; write it without compression"
        )
    return np.stack([begin + limits[:-1], np.diff(limits)], axis=1)
