"""Text for consoles of 80 columns."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path


def wrap(text: str, *, first: str = "", indent: str = "") -> str:
    """Lines of at most 79 columns, the first behind `first`, the others behind `indent`.

    Words stay whole, however long: paths, links and hashes are there to be copied.
    """
    return textwrap.fill(
        text, 79, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def printable(text: str) -> str:
    """Text of file names with what cannot be encoded, the surrogates of bytes that are no UTF-8, spelled out."""
    return text.encode(errors="backslashreplace").decode()


def plural(count: int, word: str, words: str = "") -> str:
    """`1 image`, `2 images`, `1,000 images`; `words` where the plural is not that with an s."""
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def rate_text(rate: float) -> str:
    """Something per second: `1,234`, `56`, `7.8`, and of slow work two digits, as `0.034`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def with_weights(model: str, checkpoint: str) -> str:
    """A model with what tells its weights from others: `MODEL.TAG` of a file of that name, else `MODEL (RUN/FILE)`."""
    path = Path(checkpoint.removeprefix("zoo:"))
    name = re.sub(r"(\.safetensors|\.pt|\.pth|\.tar|\.bin)+$", "", path.name)
    return name if name.startswith(f"{model}.") else f"{model} ({'/'.join(path.parts[-2:])})"
