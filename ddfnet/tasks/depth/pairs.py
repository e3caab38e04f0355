"""Readers of images with measured depth: the labeled NYU Depth V2 file, and folders of PNG files."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddfnet.data.decode import decode_error, open_rgb, verdict
from ddfnet.data.image_file import MAX_PIXELS, load_image
from ddfnet.data.sources.folder import is_image_name
from ddfnet.tasks.depth.config import DepthData
from ddfnet.utils.errors import DataError

NYU_TRAIN = 1000  # pairs; the rest validate


class DepthPairs(Protocol):
    """Indexed pairs; reading is safe in forked worker processes."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """rgb uint8 (H, W, 3); depth float32 (H, W), meters, 0 where nothing was measured. DataError if it fails."""


def open_pairs(data: DepthData, split: str) -> DepthPairs:
    """The pairs of `train` or `val`; DataError where they are missing, incomplete, or not of `data.format`."""
    if data.format == "nyu":
        return NYUPairs(data.root, split)
    return FolderPairs(Path(data.root) / split, depth_scale=data.depth_scale, max_pixels=data.max_pixels)


class NYUPairs:
    """A part of the labeled NYU Depth V2 file, `nyu_depth_v2_labeled.mat`: Silberman et al., ECCV 2012.

    A MATLAB 7.3 file is HDF5 with the axes reversed: `images` (N, 3, W, H) uint8 and `depths` (N, W, H) float32,
    meters, holes filled in by its authors; N = 1449, W = 640, H = 480.

    `train` are its first 1000 pairs, `val` all others. DataError where h5py is missing or the file is of another kind.
    """

    def __init__(self, path: str | os.PathLike, split: str) -> None:
        self.path = Path(path)
        self._file, self._process = None, 0  # the open file, and the process that opened it
        if not self.path.is_file():
            raise DataError(
                f"data.root={self.path} is no file: give the path of nyu_depth_v2_labeled.mat, "
                "or data.format=folder for folders of images"
            )
        file = self._open()
        try:
            images, depths = (file[key].shape if key in file else None for key in ("images", "depths"))
        finally:
            self.close()  # workers open it for themselves: HDF5 handles do not survive a fork
        if images is None or depths is None or len(images) != 4 or images[1] != 3 or depths != (images[0], *images[2:]):
            raise DataError(
                f"{self.path} holds images {images} and depths {depths}: the labeled NYU Depth V2 file has "
                "(N, 3, W, H) and (N, W, H)"
            )
        if images[0] <= NYU_TRAIN:
            raise DataError(f"{self.path} holds {images[0]} pairs: {NYU_TRAIN} train, the labeled file has 1449")
        self.numbers = range(NYU_TRAIN) if split == "train" else range(NYU_TRAIN, images[0])

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, i: int) -> str:
        return f"{self.path}[{self.numbers[i]}]"

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        file = self._open()
        try:
            rgb, depth = file["images"][self.numbers[i]], file["depths"][self.numbers[i]]
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(f"{self.name(i)} cannot be read ({error}): fetch the file again") from None
        return np.ascontiguousarray(rgb.transpose(2, 1, 0)), _clean(depth.T)

    def close(self) -> None:
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def _open(self) -> Any:
        if self._file is None or self._process != os.getpid():
            try:
                import h5py
            except ImportError:
                raise DataError("data.format=nyu reads HDF5, and h5py is not installed: pip install h5py") from None
            try:
                self._file, self._process = h5py.File(self.path, "r"), os.getpid()
            except OSError as error:
                raise DataError(f"{self.path} is not an HDF5 (MATLAB 7.3) file: {error}") from None
        return self._file


class FolderPairs:
    """`root/rgb/<name>.*` and `root/depth/<name>.png`, one depth file for each image; DataError where one is missing.

    Depth files are gray PNG of 8 or 16 bits, `depth_scale` meters per unit, 0 where nothing was measured.
    """

    def __init__(self, root: str | os.PathLike, *, depth_scale: float, max_pixels: float = MAX_PIXELS) -> None:
        self.root, self.depth_scale, self.max_pixels = Path(root), depth_scale, max_pixels
        rgb, depth = (self._list(kind) for kind in ("rgb", "depth"))
        alone = sorted(rgb.keys() ^ depth.keys())
        if alone:
            has, lacks = ("rgb", "depth") if alone[0] in rgb else ("depth", "rgb")
            raise DataError(
                f"{self.root / has} has {alone[0]} and {self.root / lacks} has not ({len(alone)} without a partner): "
                "both need files of equal names"
            )
        if not rgb:
            raise DataError(f"{self.root}/rgb and {self.root}/depth hold no images")
        self.files = [(rgb[stem], depth[stem]) for stem in sorted(rgb)]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.root / "rgb" / self.files[i][0])

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        path = self.root / "rgb" / self.files[i][0]
        measured = self.root / "depth" / self.files[i][1]
        try:
            rgb = np.asarray(open_rgb(path.read_bytes(), self.max_pixels))
            path = measured
            image = load_image(path.read_bytes(), self.max_pixels)
            values, mode = np.asarray(image), image.mode
        except Exception as error:
            reason = decode_error(error)
            what = verdict(reason)
            fix = "restore the file or remove the pair" if what == "corrupt" else "or remove the pair"
            raise DataError(f"{path} is {what} ({reason}): {fix}") from None
        if not (mode in ("L", "I") or mode.startswith("I;16")):
            raise DataError(f"{measured} is of the kind {mode}: depth files are gray PNG of 8 or 16 bits")
        if values.shape != rgb.shape[:2]:
            raise DataError(
                f"{measured} has {values.shape[1]} x {values.shape[0]} pixels and its image "
                f"{rgb.shape[1]} x {rgb.shape[0]}: both must have the same size"
            )
        return rgb, _clean(values.astype(np.float32) * np.float32(self.depth_scale))

    def _list(self, kind: str) -> dict[str, str]:
        folder = self.root / kind
        if not folder.is_dir():
            raise DataError(f"{folder} is missing: data.format=folder needs train/ and val/, each with rgb/ and depth/")
        names: dict[str, str] = {}
        for name in sorted(filter(is_image_name, os.listdir(folder))):
            stem = os.path.splitext(name)[0]
            if stem in names:
                raise DataError(f"{folder} has both {names[stem]} and {name}: remove one")
            names[stem] = name
        return names


def _clean(depth: np.ndarray) -> np.ndarray:
    """float32, contiguous; 0 instead of NaN, infinities and negative values."""
    depth = np.ascontiguousarray(depth, dtype=np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
