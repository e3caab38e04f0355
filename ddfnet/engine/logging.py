"""The log of a run: console, metrics.jsonl, and its trackers."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ddfnet.engine.trackers import Trackers
from ddfnet.utils.files import note_once, read_jsonl, set_aside, to_json, write_atomically
from ddfnet.utils.progress import ProgressBar
from ddfnet.utils.text import rate_text, wrap

logger = logging.getLogger("ddfnet")


class _Console(Console):
    """Leaves it to the log what to do when the reader of the output has left; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise


class _TerminalHandler(RichHandler):
    """Information of the package's other parts looks as the lines of the log do; warnings name their level."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, show_path=False, show_time=False)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:
            super().emit(record)
            return
        try:
            self.console.print(_fitted(self.format(record), self.console), markup=False)
        except Exception:  # as every handler does
            self.handleError(record)


def _fitted(text: str, console: Console) -> str:
    """On a terminal that a line does not fit, several."""
    if not console.is_terminal:
        return text
    lines = text.splitlines()
    return "\n".join(wrap(line, indent="  ") if len(line) > console.width else line for line in lines)


class RunLog:
    """Log of one run, on the main process only; on others every method does nothing.

    Args:
        folder: run folder; None keeps only the console (dry runs).
        active: whether this is the main process.
        total_steps: for the progress bar.
        epochs: of the whole run; how wide their column is.
        trackers: get all records, too.
        quiet: show neither the progress bar nor the lines of training records; those of evaluations stay.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        active: bool,
        total_steps: int,
        epochs: float = 1,
        trackers: Trackers | None = None,
        quiet: bool = False,
    ) -> None:
        self.quiet = quiet
        self.active, self.folder = active, folder if active else None
        self.console = _Console(highlight=False, soft_wrap=True)
        self._total_steps, self.trackers = total_steps, trackers or Trackers()
        self._epoch_width = len(f"{epochs:.2f}")
        self._progress: Progress | None = None
        self._latest: tuple[str, str] | None = None  # epoch and figures of the last training record
        self._task = TaskID(0)
        self._unwritten = ""  # records that are not in metrics.jsonl yet
        if active:
            terminal = self.console.is_terminal
            self._handler: logging.Handler = _TerminalHandler(self.console) if terminal else logging.StreamHandler()
            logger.addHandler(self._handler)
            logger.setLevel(logging.INFO)

    def start(self, step: int, *, evaluation_due: bool = False) -> None:
        """Opens the files and the progress bar; records of what the run is going to repeat are dropped.

        step: where the run resumes; evaluation_due: it begins with the evaluation at this step.
        """
        if not self.active:
            return
        if self.folder is not None:
            logged = _keep_until(self.folder / "metrics.jsonl", step, evaluation_due)
            self.trackers.start(step, logged)
        if self.console.is_terminal and not self.quiet:
            bar = BarColumn(bar_width=min(12, max(4, self.console.width - 75)))  # the rest takes up to 75 columns
            columns = (TextColumn("{task.description}"), bar, TextColumn("{task.fields[text]}"))
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task = self._progress.add_task("starting", total=self._total_steps, completed=step, text="")
            self._progress.start()

    def message(self, text: str) -> None:
        """A plain line on the console; on a terminal that it does not fit, several."""
        if self.active:
            try:
                self.console.print(_fitted(text, self.console), markup=False)
            except OSError as error:
                self._console_lost(error)

    def warning(self, text: str) -> None:
        """A warning of the main process."""
        if self.active:
            logger.warning("%s", text)

    def tick(self, step: int) -> None:
        """Moves the progress bar; touches nothing else, so it may be called at every step."""
        if self._progress is not None:
            where, facts = self._latest or ("training", f"step {step:,} of {self._total_steps:,}")
            self._progress.update(self._task, completed=step, total=self._total_steps, description=where, text=facts)

    def train(self, step: int, total: int, record: dict[str, Any]) -> None:
        """One training record: averages since the last one."""
        if not self.active:
            return
        self._write("train", step, record)
        rate, loss = record["images_per_second"], record["loss"]
        mean = "-" if loss is None else f"{loss:.4f}"
        facts = (  # columns stay where they are from line to line
            f"loss {mean}  lr {record['lr']:.2e}  {rate_text(rate):>5} img/s  "
            f"wait {record['data_wait']:>3.0%}  eta {duration(record['eta_seconds'])}"
        )
        where = f"epoch {record['epoch']:{self._epoch_width}.2f}"
        self._latest = where, facts
        if self._progress is not None:
            self.tick(step)
        elif not self.quiet:
            self.message(f"{where}  step {step:>{len(str(total))}}/{total}  {facts}")

    def evaluation(
        self, step: int, epoch: float, name: str, metrics: dict[str, float],
        *, percentages: Collection[str] = (), best: bool = False,
    ) -> None:  # fmt: skip
        """One evaluation of one set of weights (`val`, `val_ema`); `percentages`: metrics in percent; `best`: of those
        so far, which a dry run has not."""
        if not self.active:
            return
        self._write(name, step, {"epoch": epoch, **metrics})
        digits = {
            key: ".2f" if key in percentages else ".4f" if isinstance(metrics[key], float) else "" for key in metrics
        }
        text = "  ".join(f"{key} {value:{digits[key]}}" for key, value in metrics.items())
        self.message(
            f"epoch {epoch:{self._epoch_width}.2f}  {name}  {text}" + ("  new best" if best and self.folder else "")
        )

    def progress(self, name: str) -> ProgressBar:
        """Shows how far an evaluation is: in the place of the last training record, or as plain lines."""

        def show(done: int, total: int, text: str) -> None:
            assert self._progress is not None
            self._progress.update(self._task, completed=done, total=total, description=name, text=text)

        quiet = self.quiet or not self.active
        return ProgressBar(name, quiet=quiet, show=None if self._progress is None else show)

    def rewind(self, step: int, *, evaluation_due: bool) -> None:
        """Drops the records of what the run is going to do again from `step` on, as `start` does."""
        if self.folder is not None:
            _keep_until(self.folder / "metrics.jsonl", step, evaluation_due)
            self.trackers.rewind(step)

    def close(self) -> None:
        if self._unwritten:
            self._append()
        if self._progress is not None:
            with contextlib.suppress(OSError):
                self._progress.stop()
        self.trackers.close()
        if self.active:
            logger.removeHandler(self._handler)

    def _write(self, kind: str, step: int, record: dict[str, Any]) -> None:
        if self.folder is not None:
            self._unwritten += json.dumps(to_json({"kind": kind, "step": step, **record})) + "\n"
            self._append()
        values = {key: value for key, value in record.items() if key not in ("epoch", "n", "eta_seconds")}
        self.trackers.scalars(kind, values, step, record["epoch"])

    def _append(self) -> None:
        """Writes the records that are not in the file yet; where the disk is full, the next call tries again."""
        assert self.folder is not None
        path, size = self.folder / "metrics.jsonl", None
        try:
            with path.open("a", encoding="utf-8") as file:
                size = file.tell()
                file.write(self._unwritten)
        except OSError as error:
            with contextlib.suppress(OSError):  # no half a line may stay
                if size is not None:
                    os.truncate(path, size)
            reason = error.strerror or error
            note_once(f"{path} cannot be written ({reason}): its records wait until it can", key="metrics")
            return
        self._unwritten = ""

    def _console_lost(self, error: OSError) -> None:
        """The reader has left, or the terminal: training continues without it, and nothing more is printed."""
        logger.warning("the console cannot be written (%s): training continues without it", error.strerror or error)
        self.console.quiet = True
        with contextlib.suppress(OSError, ValueError):  # no file at all, e.g. captured by a test
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """`1:02:03`, or `4d 05h` from a day on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}h" if days else f"{hour}:{minute:02d}:{second:02d}"


def _keep_until(path: Path, step: int, evaluation_due: bool) -> dict[str, int]:
    """Drops later records; returns the last step of each kind that was there."""
    logged: dict[str, int] = {}
    if path.exists():
        last_evaluation = step - 1 if evaluation_due else step
        records = [record for record in read_jsonl(path) if _is_whole(record)]
        for record in records:
            logged[record["kind"]] = max(record["step"], logged.get(record["kind"], 0))
        # A crash may have cut the last line.
        if not path.is_file() or len(records) < len(path.read_bytes().splitlines()) - 1:
            damaged = set_aside(path)
            logger.warning("%s is damaged: kept as %s; its first %d records stay", path, damaged.name, len(records))
        elif step == 0 and records:
            former = set_aside(path, "former")
            logger.warning("a run begins where another one has records: they are kept as %s", former)
        kept = [
            record for record in records if record["step"] <= (step if record["kind"] == "train" else last_evaluation)
        ]
        write_atomically(path, lambda file: file.write("".join(json.dumps(r) + "\n" for r in kept).encode()))
    return logged


def _is_whole(record: dict[str, Any]) -> bool:
    return isinstance(record.get("step"), int) and isinstance(record.get("kind"), str)
