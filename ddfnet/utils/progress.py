"""Progress of long work with the time that is left: a bar on a terminal, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

T = TypeVar("T")
_SECONDS_TO_A_LINE = 30.0
_SECONDS_TO_A_BAR = 1.0  # quick work shows none


class ProgressBar:
    """Called with (done, total) as often as one likes; shows both, the rate and the time left on stderr.

    Args:
        title: what is done.
        unit: of the counts, in the plural.
        quiet: show nothing.
    """

    def __init__(self, title: str = "", *, unit: str = "images", quiet: bool = False) -> None:
        self.title, self.unit, self.quiet = title, unit, quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._started = self._shown = time.monotonic()
        self._first: int | None = None
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        self._first = done if self._first is None else self._first  # of earlier work that is kept
        if self._console.is_terminal:
            self._show_bar(done, total, now)
        elif now - self._shown >= _SECONDS_TO_A_LINE or (done == total and now - self._started >= _SECONDS_TO_A_LINE):
            self._shown = now
            print(f"{self.title or self.unit}: {self._text(done, total, now)}", file=sys.stderr, flush=True)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away; the next call begins anew."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._first = None, None
        self._started = self._shown = time.monotonic()

    def _text(self, done: int, total: int, now: float) -> str:
        rate = (done - (self._first or 0)) / max(now - self._started, 1e-9)
        minutes, seconds = divmod(round((total - done) / rate) if rate else 0, 60)
        left = f", {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left" if rate and done < total else ""
        return f"{done:,} of {total:,} {self.unit}, {rate:,.{0 if rate >= 10 else 1}f}/s{left}"

    def _show_bar(self, done: int, total: int, now: float) -> None:
        if self._bar is None:
            if now - self._started < _SECONDS_TO_A_BAR or done >= total:
                return
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=12))
            text = TextColumn("{task.fields[text]}", markup=False)
            self._bar = Progress(*columns, text, console=self._console, transient=True)
            self._bar.add_task(self.title, total=total, text="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, text=self._text(done, total, now))


def tracked(items: Iterable[T], total: int, bar: ProgressBar) -> Iterator[T]:
    """The items, with a bar that counts them."""
    done = 0
    bar(done, total)
    try:
        for item in items:
            yield item
            done += 1
            bar(done, total)
    finally:
        bar.close()
