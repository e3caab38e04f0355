"""JPEG files that can be cut: a region is taken out of the bytes, without decoding.

A sequential JPEG with restart markers consists of intervals that decode by themselves. Where the markers cut each row
of blocks (MCUs, minimum coded units) into equal parts, any rectangle of intervals under a header with its own size is
a JPEG again, which any decoder reads and whose pixels are those of the whole image (ITU-T T.81, B.1 and E.1.4).
"""

import re
import struct
from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

_SEQUENTIAL = (0xC0, 0xC1)
_PLAIN = (*_SEQUENTIAL, 0xC2)  # progressive ones, too
_PLAIN_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x12, 0x11, 0x11), (0x22, 0x11, 0x11))
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_INTERVAL_WIDTH = 60  # pixels; narrower ones cost bytes, wider ones are decoded for less


class Header(NamedTuple):
    """What the header of a JPEG says."""

    width: int
    height: int
    components: int
    mcu: tuple[int, int]  # width and height of a block in pixels
    interval: int  # blocks between restart markers; 0: no markers
    frame: int  # position of the two bytes of the height
    data: int  # position of the first interval
    sequential: bool  # Huffman-coded in one scan, 8 bits: what `cut` needs
    plain: (
        bool  # gray or three components of 8 bits, color at full or half resolution: all decoders make the same of it
    )

    @property
    def row(self) -> int:
        """Blocks in a row."""
        return -(-self.width // self.mcu[0])


def read_header(data: bytes | bytearray) -> Header:
    """The header of a JPEG; ValueError for anything else, damaged headers included."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    at, interval, frame = 2, 0, None
    try:
        while True:
            if data[at] != 0xFF:
                raise ValueError(f"no marker at byte {at}")
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
            marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
            if marker == 0xDD:
                interval = struct.unpack_from(">H", data, at + 4)[0]
            elif marker in _FRAMES:
                frame = (at, marker)
            elif marker == 0xDA:
                break
            at += 2 + length
        if frame is None:
            raise ValueError("no frame before the first scan")
        start, kind = frame
        bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
        factors = [data[start + 11 + 3 * c] for c in range(components)]
        scanned = data[at + 4]
        if at + 2 + length > len(data):
            raise ValueError("the header is cut")
    except (IndexError, struct.error):
        raise ValueError("the header is cut") from None
    mcu = (8, 8) if components == 1 else (8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors))
    if not width or not height or 0 in mcu:
        raise ValueError("the header is damaged")
    sequential = kind in _SEQUENTIAL and bits == 8 and scanned == components
    plain = kind in _PLAIN and bits == 8 and (components == 1 or tuple(factors) in _PLAIN_SAMPLINGS)
    return Header(width, height, components, mcu, interval, start + 5, at + 2 + length, sequential, plain)


def is_turned(data: bytes | bytearray, header: Header) -> bool:
    """Whether EXIF asks viewers to turn or mirror the image, or says so unclearly."""
    at = data.find(_EXIF, 0, header.data)
    if at < 0:
        return False
    tiff = at + len(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[tiff : tiff + 2]))
    try:
        (first,) = struct.unpack_from(f"{order}I", data, tiff + 4)
        (entries,) = struct.unpack_from(f"{order}H", data, tiff + first)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, tiff + first + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return kind != 3 or value != 1
    except struct.error:
        return True
    return False


def ends_at_once(data: bytes, header: Header) -> bool:
    """Whether all of a JPEG is one scan from top to bottom, with no marker in it before that of the end.

    Where damage looks like a marker, decoders stop, and some of them fail.
    """
    end = _END_OF_SCAN.search(data, header.data) if header.sequential else None
    return end is not None and data[end.end() - 1] == 0xD9 and end.end() == len(data)


def restart_interval(width: int, mcu_width: int) -> int:
    """Blocks between restart markers that make an image of this width easy to cut: the divisor of a row nearest to
    about 60 pixels, of at least 3 blocks; a whole row where it has none."""
    row = -(-width // mcu_width)
    divisors = [d for d in range(3, row + 1) if row % d == 0]
    return min(divisors, key=lambda d: abs(d * mcu_width - _INTERVAL_WIDTH)) if divisors else row


def interval_starts(data: bytes, header: Header) -> np.ndarray | None:
    """int64 (S + 1,): where each restart interval begins, and behind the end marker; None where it cannot be cut."""
    if not header.sequential or not header.interval or header.row % header.interval:
        return None
    end = _END_OF_SCAN.search(data, header.data)
    if end is None or data[end.end() - 1] != 0xD9:  # cut off, or a further scan
        return None
    starts = [header.data, *(match.end() for match in _RESTART.finditer(data, header.data, end.start())), end.end()]
    rows = -(-header.height // header.mcu[1])
    if len(starts) - 1 != rows * (header.row // header.interval):
        return None
    numbers = np.frombuffer(data, np.uint8)[np.array(starts[1:-1], np.int64) - 1]
    regular = np.array_equal(numbers, 0xD0 + np.arange(len(numbers)) % 8)
    return np.array(starts, np.int64) if regular else None


def cut(
    data: bytes, header: Header, starts: np.ndarray, box: Box, *, margin: int = 1
) -> tuple[bytes | bytearray, int, int]:
    """The smallest rectangle of restart intervals that holds a box, as a JPEG of its own.

    Args:
        data: a JPEG with its `header` and `interval_starts`.
        box: within the image and not empty.
        margin: pixels decoded around the box where the image continues. One is enough for the box to come out as from
            the whole image: decoders smooth subsampled color over neighboring pixels.

    Returns:
        The bytes, and the position (left, top) of their first pixel in the image.
    """
    width, height = header.mcu[0] * header.interval, header.mcu[1]  # of an interval, in pixels
    across, rows = header.row // header.interval, -(-header.height // height)
    left, top = max(0, box[0] - margin) // width, max(0, box[1] - margin) // height
    right = min(across, -(-(box[2] + margin) // width))
    bottom = min(rows, -(-(box[3] + margin) // height))
    first = starts[:-1].reshape(rows, across)[top:bottom, left:right]
    after = starts[1:].reshape(rows, across)[top:bottom, left:right]
    head = bytearray(data[: header.data])
    size = (min(header.height, bottom * height) - top * height, min(header.width, right * width) - left * width)
    struct.pack_into(">HH", head, header.frame, *size)
    view = memoryview(data)
    pieces = [view[a:b] for a, b in zip(first[:, 0].tolist(), after[:, -1].tolist(), strict=True)]
    result = bytearray(b"".join([head, *pieces]))
    # Each interval ends with the number of its marker, which now count from 0; the last marker is that of the end.
    ends = header.data + np.cumsum((after - first).ravel())
    pixels = np.frombuffer(result, np.uint8)
    pixels[ends - 1] = 0xD0 + np.arange(len(ends)) % 8
    pixels[-1] = 0xD9
    return result, left * width, top * height
