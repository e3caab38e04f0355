"""Which files a path, or a split of a dataset, means, and what kind of source they are."""

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from ddfnet.data.sources import huggingface, store, table
from ddfnet.data.sources.base import TIMM, SourceConfig
from ddfnet.data.sources.classes import some_names
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

_MOST_FOLDERS = 20  # more are those of classes, which hold no shards and take long to list
_ARROW = (*huggingface.SUFFIXES, huggingface.STATE)
_SHARDS = (*huggingface.SUFFIXES, ".tar")
FILE_SUFFIXES = (*table.SUFFIXES, *_SHARDS)  # of files that are data
_ALSO = {"val": "val|valid|validation", "validation": "val|valid|validation"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


class Location(NamedTuple):
    """What a path was resolved to."""

    kind: str  # folder, table, huggingface, tar or store
    files: list[str]  # of huggingface and tar


def split_path(root: str | os.PathLike, part: str) -> Path | None:
    """What `open_source` takes for one split of a dataset; None where there is nothing of that name.

    `root/part` itself where it exists: a folder, a file, or a pattern (`shards/train-*.tar`). Else `part` is looked for
    in the names of files in `root`, its sub-folders and the Hugging Face hub's cache of a dataset: `part.csv` (.tsv,
    .txt, .parquet, .arrow, .tar), ImageNet's `ILSVRC2012_img_part.tar`, shards `NAME-part-00000-of-00012.parquet`
    (.arrow, .tar). `val` also is `valid` and `validation`. DataError where files of several datasets fit.
    """
    root = Path(root)
    path = root / part
    if path.exists():
        return path
    if glob.has_magic(part):
        pattern = Path(glob.escape(str(root))) / part
        return pattern if glob.glob(str(pattern)) else None
    for suffix in FILE_SUFFIXES:
        for name in _ALSO.get(part, part).split("|"):
            if (root / (name + suffix)).is_file():
                return root / (name + suffix)
    official = root / f"ILSVRC2012_img_{part}.tar"
    if official.is_file():
        return official
    names, suffixes = _ALSO.get(part, re.escape(part)), "|".join(map(re.escape, _SHARDS))
    shard = re.compile(rf"(?P<name>.*?)(?<![A-Za-z0-9])(?P<part>{names})[-_.]\d.*(?P<suffix>{suffixes})")
    patterns = set()
    for folder in _folders(root):
        for name in _names(folder):
            match = shard.fullmatch(name)
            if match is not None:
                stem = glob.escape(str(folder / (match["name"] + match["part"])))
                patterns.add(f"{stem}[-_.][0-9]*{match['suffix']}")
    if len(patterns) > 1:
        raise DataError(
            f"{root} holds several datasets with a split {part}: {some_names(sorted(patterns))}; give the folder of "
            f"one as data.root, or a pattern as data.{part}"
        )
    return Path(patterns.pop()) if patterns else None


def locate(path: str, config: SourceConfig) -> Location:
    """Kind and files of what `open_source` was given, by `config.source` or by what is there; DataError where that is
    nothing that can be read."""
    if glob.has_magic(path) and not os.path.exists(path):
        files = sorted(glob.glob(path))
        if not files:
            raise DataError(f"no file matches {path}; correct the pattern")
    elif os.path.isdir(path):
        location = _folder(path, config.source)
        if location.kind in ("folder", "store"):
            return location
        files = location.files
    else:
        files = [path]
    lost = next((file for file in files if not os.path.isfile(file)), None)
    if lost is not None:
        if config.source in ("auto", "folder"):
            return Location("folder", [])  # which explains what should be there
        raise DataError(f"{lost} does not exist, or is no file; correct the path")
    kinds = {_kind_of_file(file) if config.source == "auto" else config.source for file in files}
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files of several kinds ({', '.join(sorted(kinds))}); name those to use by a pattern"
        )
    kind = kinds.pop()
    if kind in ("table", "store", "folder") and len(files) > 1:
        raise DataError(f"{path} matches {plural(len(files), 'file')}, a {kind} is one: {some_names(files)}")
    return Location(kind, files)


def _folders(root: Path) -> list[Path]:
    """Folders whose files may be shards: `root`, those in it, and those of the newest snapshot in the hub's cache."""
    if not root.is_dir():
        return []
    snapshots = root / "snapshots"
    if snapshots.is_dir():
        revision = root / "refs" / "main"
        names = [revision.read_text().strip()] if revision.is_file() else sorted(os.listdir(snapshots))
        if len(names) != 1 or not (snapshots / names[0]).is_dir():
            raise DataError(f"{snapshots} holds {len(names)} revisions: give the folder of one of them as data.root")
        root = snapshots / names[0]
    inside = [root / name for name in _names(root) if not name.startswith(".") and (root / name).is_dir()]
    return [root, *(inside if len(inside) <= _MOST_FOLDERS else [])]


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it cannot be read, which is for who opens it to say."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _folder(path: str, source: str) -> Location:
    """What a folder is."""
    if source in ("folder", "store"):
        return Location(source, [])
    try:
        with os.scandir(path) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"data folder {path} cannot be read: {error.strerror}") from None
    names = {name for name, _ in visible}
    if source == "auto" and (store.META in names or store.STATE in names):
        return Location("store", [])
    if source == "auto" and any(is_dir for _, is_dir in visible):
        return Location("folder", [])  # archives beside class folders are what those were unpacked from
    if source in ("auto", "huggingface") and any(name.endswith(_ARROW) for name in names):
        return Location("huggingface", huggingface.arrow_files(path))
    tars = sorted(os.path.join(path, name) for name in names if name.endswith(".tar"))
    if source in ("auto", "tar") and tars:
        return Location("tar", tars)
    if source == "auto":
        return Location("folder", [])
    raise DataError(f"{path} holds no files of data.source={source}; correct the path or the source")


def _kind_of_file(path: str) -> str:
    name = path.lower()
    if name.endswith(_COMPRESSED):
        raise DataError(f"{path} is compressed, so that its images cannot be read at random; decompress it once")
    for kind, suffixes in (("table", table.SUFFIXES), ("huggingface", huggingface.SUFFIXES), ("tar", (".tar",))):
        if name.endswith(suffixes):
            return kind
    known = ", ".join((*table.SUFFIXES, *huggingface.SUFFIXES, ".tar"))
    raise DataError(f"{path} is a file of no known kind ({known}); give another, or name its kind with data.source")


def uses(kind: str) -> set[str]:
    """The keys of `SourceConfig` that a kind of source reads."""
    columns = {"image_column", "label_column"}
    keys = {"table": columns, "huggingface": columns, "tar": {*columns, "val_labels"}, "folder": set(), "store": set()}
    every = keys.get(kind, columns if kind.startswith(TIMM) else set())
    return every | ({"class_names"} if kind not in ("folder", "store") else set())
