"""Labels of ImageNet's validation images, which are published unsorted: from the devkit, or from a list."""

import io
import os
import posixpath
import re
import tarfile
from pathlib import Path

import numpy as np

from ddfnet.data.sources.classes import some_names
from ddfnet.data.sources.table import read_rows
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_NUMBER = re.compile(r"_(\d{8})\.\w+$")
_LARGEST_MEMBER = 64 << 20  # bytes; the devkit's files are below 1 MB


def validation_labels(root: str, names: list[str], given: str | None) -> list[str]:
    """Class names (synset ids) of the images of a tar without folders.

    Args:
        root: the tar.
        names: of its images.
        given: `data.val_labels`: the devkit; a table as `open_table` reads, of image names (with or without extension)
            and labels; or a text file with one label a line, in the order of the names. None: the devkit beside
            the tar.

    DataError where there is none, it is damaged, or an image has no label in it.
    """
    beside = os.path.join(os.path.dirname(root), DEVKIT)
    if given is None and not os.path.exists(beside):
        raise DataError(
            f"{root} holds {plural(len(names), 'image')} in no class folder and without labels. For ImageNet's "
            f"validation images put the devkit, {DEVKIT}, beside it, or name it, or a list of labels, "
            "with data.val_labels"
        )
    path = beside if given is None else given
    if path.lower().endswith((".tar.gz", ".tgz")):
        return _devkit_labels(path, names)
    if Path(path).suffix.lower() == ".txt" and _has_one_word_a_line(path):
        labels = Path(path).read_text(encoding="utf-8").split()
        if len(labels) != len(names):
            raise DataError(
                f"{path} has {plural(len(labels), 'label')}, {root} has {plural(len(names), 'image')}; give the list "
                "that belongs"
            )
        by_name = dict(zip(sorted(names), labels, strict=True))
        return [by_name[name] for name in names]
    listed = {posixpath.splitext(posixpath.basename(name))[0]: label for _, name, label in read_rows(path, None, None)}
    stems = [posixpath.splitext(posixpath.basename(name))[0] for name in names]
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in listed]
    if missing:
        raise DataError(
            f"{path} has no label of {plural(len(missing), 'image')} of {root}: {some_names(missing)}; add them"
        )
    return [listed[stem] for stem in stems]


def _has_one_word_a_line(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return len(file.readline().split()) == 1
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise DataError(f"data.val_labels={path} cannot be read: {reason}") from None


def _devkit_labels(path: str, names: list[str]) -> list[str]:
    truth, meta = _devkit_members(path)
    synsets = _synsets_by_id(path, meta)
    try:
        ids = [int(line) for line in truth.decode("ascii").split()]
        labels = [synsets[number] for number in ids]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}, member {_TRUTH}: {error!r} is no id of a synset; download the devkit again") from None
    numbers = [_NUMBER.search(name) for name in names]
    wrong = [
        n for n, number in zip(names, numbers, strict=True) if number is None or not 0 < int(number[1]) <= len(ids)
    ]
    if wrong:
        raise DataError(
            f"{path} has labels of the images ILSVRC2012_val_00000001.JPEG to {len(ids):08d}; {len(wrong)} images have "
            f"other names: {some_names(wrong)}; give their labels with data.val_labels"
        )
    return [labels[int(number[1]) - 1] for number in numbers if number is not None]


def _devkit_members(path: str) -> tuple[bytes, bytes]:
    """The two files of the devkit that tell the labels, read into memory."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for info in archive:
                base = posixpath.basename(info.name)
                if base in (_TRUTH, _META) and info.isreg() and info.size <= _LARGEST_MEMBER:
                    member = archive.extractfile(info)
                    members[base] = member.read() if member is not None else b""
    except OSError as error:
        raise DataError(f"data.val_labels: {path} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); download it again") from None
    for name in (_TRUTH, _META):
        if name not in members:
            raise DataError(f"{path} has no member {name}: it is not ImageNet's devkit, {DEVKIT}")
    return members[_TRUTH], members[_META]


def _synsets_by_id(path: str, meta: bytes) -> dict[int, str]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(
            f"reading {_META} of {path} needs scipy, which is missing: pip install scipy (or give a list of labels "
            "with data.val_labels)"
        ) from None
    try:
        rows = loadmat(io.BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
        ids, synsets = np.atleast_1d(rows["ILSVRC2012_ID"]), np.atleast_1d(rows["WNID"])
        return {int(number): str(synset) for number, synset in zip(ids, synsets, strict=True)}
    except Exception as error:  # the reader raises what its parsing runs into
        raise DataError(
            f"{path}, member {_META} is damaged ({type(error).__name__}); download the devkit again"
        ) from None
