"""Text for consoles of 80 columns and for Markdown pages."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 79


def wrap(text: str, *, first: str = "", indent: str = "") -> str:
    """Lines of at most 79 columns, the first behind `first`, the others behind `indent`.

    Words stay whole, however long: paths, links and hashes are there to be copied.
    """
    options = {"initial_indent": first, "subsequent_indent": indent}
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False, **options)


def printable(text: str) -> str:
    """Text of file names with what cannot be encoded, the surrogates of bytes that are no UTF-8, spelled out."""
    return text.encode(errors="backslashreplace").decode()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a line feed at its end; bars in the cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
