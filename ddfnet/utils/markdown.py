"""Markdown: tables, and pages in which a command writes some parts and people the rest."""

import re
from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The lines of a table; bars in its cells are escaped."""
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def plain(text: str) -> str:
    """Text of users, such as the name of a class, in one line and without markup of its own."""
    return re.sub(r"[\\`*<\[\]]", lambda match: "\\" + match[0], " ".join(text.split()))


def fill(page: str, parts: Mapping[str, str]) -> str:
    """A page with new text between `<!-- begin NAME -->` and `<!-- end NAME -->`, for each name.

    Raises:
        ValueError: the page has no such part.
    """
    for name, text in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page must have one part between {begin} and {end}")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"
    return page
