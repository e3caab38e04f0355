"""Labels from a file of file names and class names: one label for each image, or several."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ddfnet.data.sources.base import ImageSource, NamedImages, Names, SourceConfig, canonical_order
from ddfnet.data.sources.classes import compare_classes, names_of_file, some_names
from ddfnet.data.sources.folder import list_images
from ddfnet.data.sources.store import LABEL_SETS, META, Store, open_store, read_meta
from ddfnet.data.sources.table import DELIMITERS, IMAGE_COLUMNS, LABEL_COLUMNS, Table, column_of
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

SEPARATORS = "|;,"  # looked for in this order, where none is given
NO_CLASS = "(none)"


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelSets(NamedImages):
    """Images with any number of classes each. In place of a class, an image has the label of its set of classes:
    `classes` are the sets, by their names, as "cat|dog"."""

    names: list[str]  # of the classes, in the order of outputs
    members: np.ndarray  # bool (sets, classes): which classes a set holds

    def counts(self) -> np.ndarray:
        """Images of each class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)) @ self.members


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelTable(LabelSets, Table):
    """Image files with any number of classes each."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelStore(LabelSets, Store):
    """A prepared store of images with any number of classes each."""


def class_names(source: ImageSource) -> list[str]:
    """Names of the classes that a network tells apart: those of the source, or, of `LabelSets`, of their members."""
    return source.names if isinstance(source, LabelSets) else list(source.classes)


def open_labels(
    root: str, path: str, key: str, *, classes: list[str] | None, config: SourceConfig
) -> Table | LabelStore:
    """Source of one split whose labels stand in `config.labels`, or, with `config.multi_label`, in a list of images.

    Args:
        root: `data.root`, from where the label file is looked for.
        path: the split: a folder of images (in it and its sub-folders), a list (.csv, .tsv), or a store made of these.
        key: its key, `train` or `val`, for messages.
        classes: names of the classes in the order of outputs. None: all that occur, sorted, or `config.class_names`.

    Returns:
        The source, a `LabelSets` with `config.multi_label`.

    Raises:
        DataError: the file cannot be read, an image has no line in it, or (without multi_label) not exactly one label.
    """
    if os.path.exists(os.path.join(path, META)):
        return _open_label_store(path, classes, config)
    others: Counter[str] = Counter()
    if config.labels is None:
        if Path(path).suffix.lower() not in DELIMITERS:
            raise DataError(
                f"data.multi_label=true: {path} is no list: give data.{key}=FILE.csv with the columns image and "
                "labels, or data.labels=FILE.csv beside folders of images"
            )
        file, folder = path, os.path.dirname(path)
        labels = read_labels(file, config)
        images, found = list(labels), dict(zip(labels, labels, strict=True))
    else:
        file, folder = os.path.join(root, config.labels), path
        labels = read_labels(file, config)
        if not os.path.isdir(folder):
            raise DataError(f"data.labels={config.labels}: data.{key} must be a folder of images, {folder} is none")
        images = list_images(folder, others)
        found = _lines_of(images, labels, root, folder, file)
    if not images:
        raise DataError(f"{path} holds no images; give the data of another place")
    lost = next((i for i in images if config.labels is None and not os.path.exists(os.path.join(folder, i))), None)
    if lost is not None:
        raise DataError(f"{file} names {lost}: there is no file {os.path.join(folder, lost)}")
    sets = [labels[found[image]] for image in images]
    names = _settled_names(file, sets, classes, config)
    if not names:
        raise DataError(f"{file} gives no image of {path} a class: correct its column of labels")
    table = _label_sets if config.multi_label else _single_labels
    return table(path, folder, images, sets, names, others)


def read_labels(path: str, config: SourceConfig) -> dict[str, tuple[str, ...]]:
    """The sorted class names of each file name of a CSV or TSV file; several lines of one file name are put together.

    An empty label is no class. Cells hold several names with `config.multi_label` alone, separated by
    `config.label_separator`, else by the first of | ; , that occurs in any of them.
    """
    delimiter = DELIMITERS.get(Path(path).suffix.lower())
    if delimiter is None:
        raise DataError(f"{path} must be a .csv or .tsv file with the columns image and labels")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, delimiter=delimiter)) or [[]]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}; convert it") from None
    image = column_of(path, header, config.image_column, IMAGE_COLUMNS, "image")
    label = column_of(path, header, config.label_column, LABEL_COLUMNS, "label")
    cells: list[tuple[str, str]] = []
    for number, row in enumerate(rows, 2):
        if not any(row):
            continue
        if max(image, label) >= len(row) or not row[image].strip():
            raise DataError(f"{path}, row {number}: no value for {header[image]} or {header[label]}: {','.join(row)!r}")
        cells.append((row[image].strip(), row[label].strip()))
    separator = separator_of([cell for _, cell in cells], config)
    labels: dict[str, set[str]] = {}
    for name, cell in cells:
        parts = [part.strip() for part in cell.split(separator)] if separator else [cell]
        labels.setdefault(name.removeprefix("./"), set()).update(part for part in parts if part)
    return {name: tuple(sorted(own)) for name, own in labels.items()}


def separator_of(cells: Sequence[str], config: SourceConfig) -> str | None:
    """What stands between the class names of a cell; None where each is one name."""
    if not config.multi_label or config.label_separator is not None:
        return config.label_separator if config.multi_label else None
    return next((mark for mark in SEPARATORS if any(mark in cell for cell in cells)), None)


def _lines_of(
    images: list[str], labels: dict[str, tuple[str, ...]], root: str, folder: str, file: str
) -> dict[str, str]:
    """For each image its name in the label file: its path below `data.root` or the folder, or the file's own name."""
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for image in images:
        line = next((name for name in _names_for(image, root, folder) if name in labels), None)
        if line is None:
            absent = [name for name in images if not labels.keys() & set(_names_for(name, root, folder))]
            raise DataError(
                f"{plural(len(absent), 'image')} of {folder} without a line in {file}: {some_names(absent)}; "
                "add them (an empty label is no class), or take them away"
            )
        other = taken.setdefault(line, image)
        if other != image:
            raise DataError(f"{file} names {line}, which {folder} has as {other} and {image}: give their paths")
        found[image] = line
    return found


def _names_for(image: str, root: str, folder: str) -> tuple[str, str, str]:
    """What a label file may call an image of a folder, the first that it has being meant."""
    below = os.path.relpath(folder, root).replace(os.sep, "/")
    return f"{below}/{image}", image, image.rpartition("/")[2]


def unused_lines(root: str, sources: Sequence[ImageSource], config: SourceConfig) -> str:
    """A sentence on the names in `config.labels` that no image of the splits has, and on labels that they alone have;
    "" where there are none."""
    used = {
        name for source in sources for i in range(len(source)) for name in _names_for(source.key(i), root, source.root)
    }
    labels = read_labels(os.path.join(root, config.labels or ""), config)
    unused = [name for name in labels if name not in used]
    if not unused:
        return ""
    known = {name for source in sources for name in class_names(source)}
    lost = sorted({label for name in unused for label in labels[name]} - known)
    text = f"{plural(len(unused), 'name')} in {config.labels} of no image: {some_names(unused)}"
    return text + (f"; labels that no image has are no classes: {some_names(lost)}" if lost else "")


def _settled_names(
    file: str, sets: list[tuple[str, ...]], classes: list[str] | None, config: SourceConfig
) -> list[str]:
    present = {name for own in sets for name in own}
    expected = classes if classes is not None else names_of_file(config.class_names)
    if expected is None:
        return sorted(present)
    compare_classes(file, present, set(expected), missing_is_wrong=not config.allow_missing_val_classes)
    return list(expected)


def _single_labels(
    path: str, folder: str, images: list[str], sets: list[tuple[str, ...]], names: list[str], others: Counter[str]
) -> Table:
    wrong = next((i for i, own in enumerate(sets) if len(own) != 1), None)
    if wrong is not None:
        raise DataError(
            f"{images[wrong]} of {path} has {plural(len(sets[wrong]), 'label')} "
            f"({', '.join(sets[wrong]) or 'none'}): set "
            "data.multi_label=true and loss.name=bce, or give one label for each image"
        )
    position = {name: i for i, name in enumerate(names)}
    labels = np.array([position[own[0]] for own in sets], np.int32)
    order = canonical_order(labels, images)
    keys = Names([images[i] for i in order.tolist()])
    return Table(path, names, labels[order], keys, folder, np.argsort(order), others=others)


def _label_sets(
    path: str, folder: str, images: list[str], sets: list[tuple[str, ...]], names: list[str], others: Counter[str]
) -> LabelTable:
    kinds = sorted(set(sets))
    position, column = {own: i for i, own in enumerate(kinds)}, {name: i for i, name in enumerate(names)}
    members = np.zeros((len(kinds), len(names)), bool)
    for i, own in enumerate(kinds):
        members[i, [column[name] for name in own]] = True
    labels = np.array([position[own] for own in sets], np.int32)
    order = canonical_order(labels, images)
    keys, titles = Names([images[i] for i in order.tolist()]), ["|".join(own) or NO_CLASS for own in kinds]
    return LabelTable(
        root=path,
        classes=titles,
        labels=labels[order],
        keys=keys,
        folder=folder,
        order=np.argsort(order),
        others=others,
        names=names,
        members=members,
    )


def _open_label_store(path: str, classes: list[str] | None, config: SourceConfig) -> LabelStore:
    """A store that was prepared with `multi_label`, its classes in the order of `classes`."""
    for key in ("labels", "class_names"):
        if (value := getattr(config, key)) is not None:
            raise DataError(f"data.{key}={value}: the store {path} brings its labels with it: leave the key out")
    store, about = open_store(path, label_sets=True), read_meta(path)[LABEL_SETS]
    try:
        own = [str(name) for name in about["names"]]
        members = np.zeros((len(store.classes), len(own)), bool)
        for row, columns in zip(members, about["sets"], strict=True):
            row[columns] = True
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: {META} is damaged ({error!r}); prepare the store again") from None
    if classes is not None:
        present = {own[column] for column in np.flatnonzero(members.any(0)).tolist()}
        compare_classes(path, present, set(classes), missing_is_wrong=not config.allow_missing_val_classes)
        ordered = np.zeros((len(members), len(classes)), bool)
        for column, name in enumerate(own):
            if name in present:
                ordered[:, classes.index(name)] = members[:, column]
        own, members = list(classes), ordered
    parts = {field.name: getattr(store, field.name) for field in fields(store)}
    return LabelStore(**parts, names=own, members=members)
