"""Images in tar files: WebDataset shards, packed class folders, tars of classes and ImageNet's own downloads."""

import os
import posixpath
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ddfnet.data.sources.base import SourceConfig
from ddfnet.data.sources.classes import refuse_empty_classes, settle_names, some_names
from ddfnet.data.sources.folder import IMAGE_EXTENSIONS, NOT_DATA, OTHER_IMAGES, is_image_name
from ddfnet.data.sources.imagenet import validation_labels
from ddfnet.data.sources.ranges import ByteRanges, byte_ranges, read_range
from ddfnet.data.sources.tar_index import TarIndex, index_tars
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

_LABEL_EXTENSION = "cls"
_LONGEST_LABEL = 1000  # bytes


@dataclass(slots=True)
class _Sample:
    image: int = -1  # member
    label: int = -1  # member


def open_tars(
    root: str, files: list[str], *, classes: list[str] | None = None, allow_empty: bool = False, config: SourceConfig
) -> ByteRanges:
    """Source of tar files, which are indexed once and then read at random. See `open_source`.

    Names follow WebDataset: up to the first dot of the file's name is the key, the rest the extension; files of one tar
    with the same key are one sample. Where any sample has a `.cls`, all must: a class number or name. Otherwise the
    class is the folder within the tar, or, for images that lie in none, the name of their tar. One tar with images in
    no folder is a validation set as ImageNet publishes it: its labels come from `config.val_labels`.
    """
    index = index_tars(files)
    others: Counter[str] = Counter()
    samples = _samples(index, files, config, others)
    members = np.array([sample.image for sample in samples], np.int64)
    if not len(members):
        raise DataError(f"{root} holds no images; known extensions are {', '.join(sorted(IMAGE_EXTENSIONS))}")
    names = [posixpath.normpath(index.names[m]) for m in members.tolist()]  # `tar -C folder .` writes ./a.jpg
    by_list = False
    if any(sample.label >= 0 for sample in samples):
        texts = [_label_text(index, files, sample) for sample in samples]
        keys = [posixpath.basename(name) for name in names]
        if len(set(zip(texts, keys, strict=True))) < len(keys):  # shards that count from 0 again
            keys = names
    elif config.label_column is not None:
        raise DataError(f"data.label_column={config.label_column}: no member of {root} has this extension")
    else:
        texts, keys = _labels_by_place(root, index, members, names)
        by_list = not texts
        texts = texts or validation_labels(root, names, config.val_labels)
    if config.val_labels is not None and not by_list:
        raise DataError(f"data.val_labels={config.val_labels} is not used: the images of {root} bring their labels")

    def member_of(i: int) -> str:
        return os.path.join(files[index.file[members[i]]], names[i])

    labels, known = settle_names(root, texts, classes=classes, config=config, where=member_of)
    refuse_empty_classes(root, labels, known, allow_empty)
    columns = (index.file[members], index.start[members], index.size[members])
    return byte_ranges(root, known, labels, keys, files, *columns, others=others)


def _samples(index: TarIndex, files: list[str], config: SourceConfig, others: Counter[str]) -> list[_Sample]:
    """The samples that have an image, in order. `others` counts the members of `OTHER_IMAGES`, by extension."""
    samples: dict[tuple[int, int, str], _Sample] = {}
    image_extension = config.image_column and config.image_column.lower()
    label_extension = (config.label_column or _LABEL_EXTENSION).lower()
    for m in range(len(index)):
        name = index.names[m]
        folder, base = posixpath.split(name)
        key, _, extension = base.partition(".")
        if base.startswith(".") or not NOT_DATA.isdisjoint(folder.split("/")):  # what file managers leave behind
            continue
        extension = extension.lower()
        if extension == label_extension:
            part = "label"
        elif extension == image_extension if image_extension is not None else is_image_name(base):
            part = "image"
            # A name with several dots that is no pair of image and label: all of it is the key.
            key = base if image_extension is None and "." in extension else key
        else:
            kind = posixpath.splitext(base)[1].lower()
            if kind in OTHER_IMAGES and image_extension is None:
                others[kind] += 1
            continue
        sample = samples.setdefault((int(index.file[m]), int(index.tar_of[m]), posixpath.join(folder, key)), _Sample())
        if getattr(sample, part) >= 0:
            first = index.names[getattr(sample, part)]
            raise DataError(
                f"{files[index.file[m]]}: members {first} and {name} are both the {part} of one sample; remove one, or "
                f"name the extension to use with data.{part}_column"
            )
        setattr(sample, part, m)
    if config.image_column is not None and not any(sample.image >= 0 for sample in samples.values()):
        raise DataError(f"data.image_column={config.image_column}: no member has this extension")
    alone = [sample for sample in samples.values() if sample.image < 0]
    if alone:
        m = alone[0].label
        raise DataError(
            f"{files[index.file[m]]}: {plural(len(alone), 'sample')} with a label but no image, for example member "
            f"{index.names[m]}; name the image's extension with data.image_column, or pack the shard again"
        )
    return list(samples.values())


def _label_text(index: TarIndex, files: list[str], sample: _Sample) -> str:
    path = files[index.file[sample.image]]
    if sample.label < 0:
        raise DataError(
            f"{path}: member {index.names[sample.image]} has no label beside it as other samples have; pack the shard "
            "again with one"
        )
    name, size = index.names[sample.label], int(index.size[sample.label])
    try:
        if size > _LONGEST_LABEL:
            raise ValueError(f"{size} bytes")
        text = read_range(path, int(index.start[sample.label]), size).decode("utf-8").strip()
        if not text:
            raise ValueError("it is empty")
        return text
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: member {name} is no label ({error}): it must hold a class number or name") from None


def _labels_by_place(root: str, index: TarIndex, members: np.ndarray, names: list[str]) -> tuple[list[str], list[str]]:
    """(labels, keys) from the folders or tars that images lie in; no labels where all lie loose in one tar."""
    folders = [posixpath.dirname(name) for name in names]
    loose = [name for name, folder in zip(names, folders, strict=True) if not folder]
    if loose and len(loose) < len(names):
        raise DataError(
            f"{root}: {plural(len(loose), 'image')} in no folder, while others are in one: {some_names(loose)}; "
            "move them into the folder of their class"
        )
    if loose and len(index.tar) > 1:
        tars = [index.tar[t] for t in index.tar_of[members].tolist()]
        return tars, names
    if loose:
        return [], names
    # `train/cat/1.png` and `cat/1.png` are both of class cat: what all have in front is no class.
    parts = [folder.split("/") for folder in folders]
    first, last = min(parts), max(parts)
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    keys = ["/".join(name.split("/")[shared:]) for name in names]
    return [part[shared] for part in parts], keys
