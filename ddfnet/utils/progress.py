"""Progress of long work with the time that is left: a bar on a terminal, elsewhere a plain line now and then.

Shown by the first process of several alone, and by none within `no_progress`.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ddfnet.utils.text import rate_text

T = TypeVar("T")
_SECONDS_TO_A_LINE = 30.0
_SECONDS_TO_A_BAR = 1.0  # quick work shows none
_SECONDS_TO_A_LOOK = 0.1  # at what there is to show: a call may come for each of a million files
_off = [False]


class ProgressBar:
    """Called with (done, total) as often as one likes; shows both, the rate and the time left on stderr.

    Args:
        title: what is done.
        unit: of the counts, in the plural.
        quiet: show nothing.
        show: gets both and the text on a terminal, in place of a bar: where there is one of other work already.
    """

    def __init__(
        self, title: str = "", *, unit: str = "images", quiet: bool = False,
        show: Callable[[int, int, str], None] | None = None,
    ) -> None:  # fmt: skip
        first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
        self.title, self.unit, self.quiet, self._show = title, unit, quiet or _off[0] or not first, show
        self._looked = -1.0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._started = self._shown = time.monotonic()
        self._first: int | None = None
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if done < total and now - self._looked < _SECONDS_TO_A_LOOK:
            return
        self._looked = now
        self._first = done if self._first is None else self._first  # of earlier work that is kept
        if self._show is not None:
            self._show(done, total, self._text(done, total, now))
        elif self._console.is_terminal:
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
        self._bar, self._first, self._looked = None, None, -1.0
        self._started = self._shown = time.monotonic()

    def _text(self, done: int, total: int, now: float) -> str:
        rate = (done - (self._first or 0)) / max(now - self._started, 1e-9)
        minutes, seconds = divmod(round((total - done) / rate) if rate else 0, 60)
        left = f", {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left" if rate and done < total else ""
        speed = f", {rate_text(rate)}/s{left}" if rate else ""
        return f"{done:,} of {total:,} {self.unit}{speed}"

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


@contextmanager
def no_progress(quiet: bool = True) -> Iterator[None]:
    """Within it nothing shows its progress, nor do downloads from the hub; `quiet` False leaves all as it is."""
    before, _off[0] = _off[0], _off[0] or quiet
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    try:
        yield
    finally:
        _off[0] = before


def note(text: str) -> None:
    """A line on stderr, of work that cannot be counted: what comes next."""
    if text and not _off[0]:
        print(text, file=sys.stderr, flush=True)


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
