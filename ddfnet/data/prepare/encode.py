"""One image of a store: the file it was, with restart markers, so that regions can be cut out of it."""

import io
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, JpegImagePlugin

from ddfnet.data.decode import decode_error, open_rgb
from ddfnet.data.image_file import MAX_PIXELS, open_header
from ddfnet.data.jpeg import interval_starts, read_header, restart_interval
from ddfnet.utils.errors import UserError

Quality = Literal["keep", "lossless"] | int

_SAMPLINGS = {0: 8, 1: 16, 2: 16}  # Pillow's numbers of 4:4:4, 4:2:2, 4:2:0 -> width of a block
_QUALITY_OF_RESIZED = 95


@dataclass(frozen=True)
class Encoding:
    """How a store holds its images."""

    quality: Quality = "keep"
    """keep: JPEGs are written again with their own tables and color sampling, other files stay as they are.
    lossless: the same by jpegtran, which leaves every coefficient as it is. A number: all become JPEGs of this quality,
    4:2:0."""
    short_side: int | None = None
    """Images whose short side is longer are reduced to it (Lanczos), pixels."""
    max_pixels: int = MAX_PIXELS
    """Larger images, width times height, stay as they are, and are listed."""

    def state(self) -> dict[str, Any]:
        """What the bytes of a store depend on, as plain values."""
        values = asdict(self)
        if self.max_pixels == MAX_PIXELS:
            del values["max_pixels"]  # so it is in stores of before there was a choice
        return values

    def __post_init__(self) -> None:
        if isinstance(self.quality, int) and not 1 <= self.quality <= 100:
            raise UserError(f"--quality must be keep, lossless or 1 to 100, got {self.quality}")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"--short-side must be at least 1, got {self.short_side}")
        if self.quality == "lossless" and self.short_side is not None:
            raise UserError("--quality lossless and --short-side contradict: a reduced image is another one; use keep")
        if self.quality == "lossless" and shutil.which("jpegtran") is None:
            raise UserError(
                "--quality lossless needs the program jpegtran, which is missing: apt install libjpeg-turbo-progs, or "
                "use --quality keep"
            )


@dataclass(frozen=True)
class Encoded:
    """An image of a store."""

    data: bytes
    starts: np.ndarray | None = None  # of its restart intervals; None: it cannot be cut
    size: tuple[int, int] = (0, 0)  # width and height in pixels
    problem: str = ""  # why it does not decode
    difference: float = 0.0  # mean absolute difference of the pixels from the original's, 0 to 255
    resized: bool = False


def encode(data: bytes, encoding: Encoding) -> Encoded:
    """The image of a store for an image file, verified: what was written is decoded, and compared with the original.

    A file that does not decode stays as it is, with the reason. So does one that an encoder cannot write in this way
    (CMYK, several images, unusual color sampling) unless it has to be reduced or all are to be JPEGs.
    """
    try:
        original = open_rgb(data, encoding.max_pixels)
    except Exception as error:  # whatever Pillow raises for damaged bytes
        return Encoded(data, problem=decode_error(error))
    reduced = _reduced_size(original.size, encoding.short_side)
    written: bytes | None
    if reduced is not None or isinstance(encoding.quality, int):
        written = _as_jpeg(data, original, reduced, encoding.quality)
    else:
        written = _with_markers(data, lossless=encoding.quality == "lossless")
    if written is None:
        return Encoded(data, _starts(data), original.size)
    try:
        again = open_rgb(written, encoding.max_pixels)
    except Exception:  # never make an image worse
        return Encoded(data, _starts(data), original.size)
    if reduced is not None:
        return Encoded(written, _starts(written), again.size, resized=True)
    if again.size != original.size:
        return Encoded(data, _starts(data), original.size)
    change = np.abs(np.asarray(again, np.int16) - np.asarray(original, np.int16))
    return Encoded(written, _starts(written), again.size, difference=float(change.mean()))


def _reduced_size(size: tuple[int, int], short_side: int | None) -> tuple[int, int] | None:
    if short_side is None or min(size) <= short_side:
        return None
    scale = short_side / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _starts(data: bytes) -> np.ndarray | None:
    try:
        return interval_starts(data, read_header(data))
    except ValueError:
        return None


def _as_jpeg(data: bytes, image: Image.Image, size: tuple[int, int] | None, quality: Quality) -> bytes:
    if open_header(data).mode == "L":
        image = image.convert("L")
    if size is not None:
        image = image.resize(size, Image.Resampling.LANCZOS)
    number = quality if isinstance(quality, int) else _QUALITY_OF_RESIZED
    block, sampling = 8, -1
    if image.mode == "RGB":
        block, sampling = (16, 2) if isinstance(quality, int) else (8, 0)
    return _save(image, block, quality=number, subsampling=sampling)


def _with_markers(data: bytes, *, lossless: bool) -> bytes | None:
    """The same JPEG with restart markers; None where it has them already, or nothing can write it."""
    try:
        header = read_header(data)
    except ValueError:  # not a JPEG
        return None
    if interval_starts(data, header) is not None:
        return None
    image = open_header(data)
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if lossless:
        return _jpegtran(data, restart_interval(header.width, header.mcu[0]))
    sampling = JpegImagePlugin.get_sampling(image) if image.mode == "RGB" else None
    if image.mode == "L":
        image.load()
        return _save(image, 8, qtables=image.quantization)  # type: ignore[attr-defined]
    if sampling not in _SAMPLINGS:
        return None
    try:
        # Without the way over RGB there is one rounding less.
        image.draft("YCbCr", None)
        return _save(image, _SAMPLINGS[sampling], quality="keep")
    except OSError:  # stored as RGB, or what the encoder refuses
        return None


def _save(image: Image.Image, block: int, **options: object) -> bytes:
    out = io.BytesIO()
    interval = restart_interval(image.width, block)
    try:
        image.save(out, "JPEG", optimize=True, restart_marker_blocks=interval, **options)
    except OSError:  # Pillow's buffer is too small for an image of noise whose tables are optimized
        out = io.BytesIO()
        image.save(out, "JPEG", restart_marker_blocks=interval, **options)
    return out.getvalue()


def _jpegtran(data: bytes, interval: int) -> bytes | None:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        source.seek(0)
        command = ["jpegtran", "-copy", "none", "-optimize", "-restart", f"{interval}B"]
        done = subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=False)
        target.seek(0)
        written = target.read()
    return written if done.returncode == 0 and written else None
