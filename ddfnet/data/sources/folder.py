"""Index of a class-folder tree (`root/<class>/**/<image>`), held in a few arrays."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddfnet.data.sources.base import hash_files
from ddfnet.data.sources.classes import MissingClassesError, some_names
from ddfnet.data.sources.nearby import SPLIT_NAMES, folder_below, holds_classes
from ddfnet.utils.errors import DataError
from ddfnet.utils.progress import ProgressBar, tracked
from ddfnet.utils.text import plural

IMAGE_EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".jfi", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pjp", ".pjpeg", ".png",
     ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)  # fmt: skip
# Of files that hold images as well, but are not taken for data: where there are any, they are told, not passed over.
OTHER_IMAGES = frozenset(
    (".apng", ".arw", ".cr2", ".cr3", ".dcm", ".dds", ".dib", ".dng", ".exr", ".fit", ".fits", ".hdr", ".heic", ".heif",
     ".hif", ".icns", ".ico", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".jxl", ".mpo", ".nef", ".npy", ".npz",
     ".orf", ".pcx", ".pfm", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".svg", ".tga", ".xbm", ".xpm")
)  # fmt: skip
# What file servers and archivers put beside the data: thumbnails, and halves of files.
NOT_DATA = frozenset(("@eaDir", "__MACOSX", "@Recycle", "#recycle", "$RECYCLE.BIN", "lost+found"))


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """Files and labels of a class-folder tree.

    Paths lie in one byte blob instead of a list of strings: forked workers touch no reference counts, so 1.28 million
    entries are shared pages (about 60 MB in all) instead of a private copy in every worker.
    """

    root: str  # the indexed folder, as given
    classes: list[str]  # the position is the label
    blob: np.ndarray  # uint8, the file-system-encoded paths below `root`, one after another
    offsets: np.ndarray  # int64 (N + 1,), path i is `blob[offsets[i]:offsets[i + 1]]`
    labels: np.ndarray  # int32 (N,), class of each image
    others: Counter[str] = field(default_factory=Counter)  # files of `OTHER_IMAGES` by extension: they are left out

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, i: int) -> str:
        return os.fsdecode(self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def name(self, i: int) -> str:
        return os.path.join(self.root, self.key(i))

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def read(self, i: int) -> bytes:
        with open(self.name(i), "rb") as file:
            return file.read()

    def disk_order(self) -> np.ndarray:
        return np.arange(len(self))

    def fingerprint(self) -> str:
        return hash_files(map(self.name, range(len(self))), self.blob, self.offsets)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: by its extension, in any case; hidden files never do."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def class_folders(root: str | os.PathLike) -> list[str]:
    """Names of the class folders of `root`, in plain string order (torchvision's); DataError where there are none."""
    root = os.fspath(root)
    if not os.path.exists(root):
        raise DataError(f"data {root} does not exist; give class folders, or another form of docs/guides/data.md")
    if not os.path.isdir(root):
        raise DataError(f"{root} is a file, not a folder; unpack it and give the folder with one sub-folder per class")
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not (entry.name.startswith(".") or entry.name in NOT_DATA)]
    except OSError as error:
        raise DataError(f"data folder {root} cannot be read: {error.strerror}") from error
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if names:
        return names
    images = sum(is_image_name(entry.name) for entry in visible)
    if images:
        around, name = os.path.split(os.path.abspath(root))
        one = f"if these are one class, give the folder around them, {around}"
        if name in SPLIT_NAMES:
            one = f"images of one class lie in {os.path.join(root, 'NAME_OF_THE_CLASS')}"
        raise DataError(
            f"{root} holds {plural(images, 'image')} directly but no class folders. Every class needs a sub-folder; "
            f"{one}; ImageNet's validation images come unsorted and must be moved into their 1000 synset folders "
            "(n01440764, ...) first"
        )
    raise DataError(f"{root} holds no class folders; give the folder with one sub-folder of images per class")


def list_images(folder: str | os.PathLike, others: Counter[str] | None = None) -> list[str]:
    """Paths, relative to `folder` and sorted, of all images in it and its sub-folders (links are followed); DataError
    where a folder cannot be read. `others` counts the files of `OTHER_IMAGES`, by extension."""
    return sorted(_walk(os.fspath(folder), "", (), Counter() if others is None else others))


def files_not_counted(others: Mapping[str, int]) -> str:
    """Which files were left out, as "3 files not counted: .heic 1, .tga 2"."""
    total, parts = (
        sum(others.values()),
        ", ".join(f"{extension} {count}" for extension, count in sorted(others.items())),
    )
    return f"{total:,} file{'s' * (total > 1)} not counted: {parts}; save them as PNG or JPEG, say"


def not_counted_text(source: Any) -> str:
    """The same of a source of images, with its place; empty where there are none."""
    others = getattr(source, "others", None)
    return f"note: {source.root}: {files_not_counted(others)}" if others else ""


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...], others: Counter[str]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link back to a folder we are in: following it would never end
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in NOT_DATA:
                    continue
                # Whether a name is a file is not asked (a stat per link): a dangling link is a corrupt image, reported
                # with its path when it is read.
                if entry.is_dir():
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), others)
                elif is_image_name(entry.name):
                    yield prefix + entry.name
                elif (extension := os.path.splitext(entry.name)[1].lower()) in OTHER_IMAGES:
                    others[extension] += 1
    except OSError as error:
        raise DataError(f"data folder {folder} cannot be read: {error.strerror}") from error


def index_folder(
    root: str | os.PathLike, *, classes: list[str] | None = None, allow_empty: bool = False, allow_absent: bool = False
) -> FolderIndex:
    """Index of the tree `root/<class>/**/<image>`.

    Hidden files and folders are ignored, symbolic links followed, extensions compared without case. Without `classes`
    (see `open_source`), they are the sorted names of the sub-folders; with `allow_absent` some of `classes` may have no
    folder. DataError where there is no such folder, no class folder, one without images, or classes other than the
    expected ones; it names the folders and the fix.
    """
    root = os.fspath(root)
    folders = class_folders(root)
    if classes is None:
        classes = folders
    else:
        _compare_classes(root, set(folders), set(classes), allow_absent)
    present = set(folders)
    blobs: list[bytes] = []
    lengths: list[np.ndarray] = []
    others: Counter[str] = Counter()
    for name in tracked(classes, len(classes), ProgressBar(f"files of {os.path.basename(root)}", unit="folders")):
        images = list_images(os.path.join(root, name), others) if name in present else []
        paths = [os.fsencode(f"{name}/{image}") for image in images]
        blobs.append(b"".join(paths))
        lengths.append(np.fromiter(map(len, paths), np.int64, len(paths)))
    empty = [name for name, blob in zip(classes, blobs, strict=True) if not blob]
    if empty and not allow_empty:
        raise MissingClassesError(
            f"no images in {len(empty)} of {plural(len(classes), 'class folder')} in {root}: {some_names(empty)}; "
            f"fill or remove them (images end in {', '.join(sorted(IMAGE_EXTENSIONS))})"
        )
    if allow_absent and len(empty) == len(classes):
        raise DataError(f"{root} holds no images of any class; give the data of another place")
    return FolderIndex(
        root=root,
        classes=list(classes),
        blob=np.frombuffer(b"".join(blobs), np.uint8),
        offsets=np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum(),
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), [len(part) for part in lengths]),
        others=others,
    )


def _compare_classes(root: str, folders: set[str], expected: set[str], allow_absent: bool) -> None:
    missing, extra = sorted(expected - folders), sorted(folders - expected)
    parts = [f"{len(missing)} missing ({some_names(missing)})"] * bool(missing and not allow_absent)
    parts += [f"{len(extra)} not expected ({some_names(extra)})"] * bool(extra)
    if parts:
        fix = "use the tree that belongs to them, with the same folder names"
        if not folders & expected and (meant := folder_below(root, lambda folder: holds_classes(folder, expected))):
            fix = f"is {meant} meant? Give that folder"
        raise (DataError if extra else MissingClassesError)(
            f"the class folders of {root} differ from the {plural(len(expected), 'class', 'classes')} of the "
            "training set or checkpoint: "
            f"{' and '.join(parts)}; {fix}"
        )
