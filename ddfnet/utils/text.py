"""Text for consoles of 80 columns."""

import textwrap


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
