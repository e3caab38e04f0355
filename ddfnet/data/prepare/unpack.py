"""Makes a tree of class folders of a source again."""

import os
from collections.abc import Callable
from pathlib import Path

from ddfnet.data.image_file import open_header
from ddfnet.data.sources import ImageSource
from ddfnet.data.sources.label_sets import LabelSets
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.files import scratch_folder


def unpack(source: ImageSource, out: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> int:
    """Writes every image of a source as `out/<class>/<name>`; the tree appears at once when it is complete.

    Args:
        out: folder to make; it may exist if it is empty.
        progress: called now and then with (images done, images in all).

    Returns:
        The number of images.

    Raises:
        DataError: an image cannot be read, two have the same name, or a name would lie outside its class folder.
        UserError: `out` holds something, or cannot be written; or images have any number of classes.
    """
    out = Path(out)
    if isinstance(source, LabelSets):
        raise UserError(f"{source.root} holds images with any number of classes, which class folders cannot say")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name another")
    with scratch_folder(out) as scratch:
        tree = scratch / "tree"
        try:
            for name in source.classes:
                _checked(source, name, name)
                (tree / name).mkdir(parents=True)
            for done, i in enumerate(source.disk_order().tolist(), 1):
                path = tree / source.classes[source.label(i)] / _file_name(source, i)
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    data = source.read(i)
                except OSError as error:
                    raise DataError(f"{source.name(i)} cannot be read: {error.strerror or error}") from None
                path = path if path.suffix else path.with_suffix(_suffix(data))
                with open(path, "xb") as file:
                    file.write(data)
                if progress is not None and (done % 1000 == 0 or done == len(source)):
                    progress(done, len(source))
            os.rename(tree, out)
        except FileExistsError as error:
            raise DataError(
                f"{source.root} holds several images named {error.filename}; they cannot be unpacked"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; name another folder") from None
    return len(source)


def _file_name(source: ImageSource, i: int) -> Path:
    """Name of an image below the folder of its class."""
    key = source.key(i)
    name = source.classes[source.label(i)]
    parts = _checked(source, key, source.name(i)).parts
    return Path(*(parts[1:] if len(parts) > 1 and parts[0] == name else parts))


def _checked(source: ImageSource, path: str, name: str) -> Path:
    """A relative path that stays where it starts; names come from archives that anybody may have written."""
    parts = path.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") for part in parts) or ":" in parts[0] or "\0" in path:
        raise DataError(f"{source.root}: {name!r} would be written outside its class folder; it is not unpacked")
    return Path(*parts)


def _suffix(data: bytes) -> str:
    """The extension for an image that has none, by its content."""
    try:
        image = open_header(data)
    except Exception:  # a corrupt image is unpacked as it is
        return ".bin"
    return {"JPEG": ".jpg", "MPO": ".jpg"}.get(str(image.format), f".{str(image.format).lower()}")
