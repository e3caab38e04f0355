"""Shared by commands: exit codes, errors a person can read, and types of options."""

import argparse
import atexit
import contextlib
import errno
import gc
import itertools
import os
import re
import select
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ddfnet.utils.errors import FollowingError, NonFiniteLossError, StorageError, UserError
from ddfnet.utils.text import wrap

# The exit codes of all commands; docs/guides/resume.md explains those of training.
EXIT_FAILED = 1  # and tracebacks
EXIT_USER_ERROR = 2
EXIT_STORAGE = 74  # EX_IOERR of sysexits.h: the disk is full or fails
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: not finished, start it again
EXIT_HUNG = 76  # of a process among several, or its data, that did not move: start it again
EXIT_TWICE = 130  # interrupted twice, as a shell reports a process that SIGINT ended
EXIT_READER_LEFT = 141  # as a shell reports a process that SIGPIPE ended
_TURN_SECONDS = 3.0


def run(main: Callable[[], int]) -> None:
    """Runs a command and exits with its code: that of `main`, or of what it raised.

    A `UserError` is printed without a traceback: once per machine, or by the one process that met it.
    """
    # Else Python ends with looking for garbage among all imported modules: a second. Nothing here relies on `__del__`.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        code = main()
    except UserError as error:
        _say("error", str(error), everywhere=error.one_process)
        code = EXIT_USER_ERROR
    except NonFiniteLossError as error:
        _say("stopped", str(error), everywhere=False)
        code = EXIT_FAILED
    except StorageError as error:
        _say("stopped", str(error), everywhere=True)
        code = EXIT_STORAGE
    except FollowingError as error:
        _say("stopped", str(error), everywhere=False)
        code = error.code
    except KeyboardInterrupt:
        code = EXIT_TWICE
    except BrokenPipeError:
        if not _reader_left():
            raise  # some other pipe, e.g. to a loader process
        code = EXIT_READER_LEFT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say("stopped", str(error), everywhere=True)
        code = EXIT_STORAGE
    try:
        if _reader_left() and code == 0:
            code = EXIT_READER_LEFT
    except OSError as error:
        _drop(sys.stdout)
        _say("stopped", f"the output cannot be written ({error.strerror or error})", everywhere=True)
        code = code or EXIT_STORAGE
    try:
        sys.stderr.flush()
    except OSError:  # what it holds would be tried again at the very end, and make the code 120
        _drop(sys.stderr)
    sys.exit(code)


def at_least(least: int, kind: type = int) -> Callable[[str], Any]:
    """The type of an option for `argparse`: a number, not below `least`."""

    def number(text: str) -> Any:
        if not kind(text) >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return kind(text)

    return number


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the text of a description to the terminal. Indented lines, which are lists and commands, stay as they are
    where they fit: a longer command continues behind a backslash, below its comment; text in the second of two columns
    stays in that column."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_text, group in itertools.groupby(text.strip("\n").splitlines(), lambda line: line[:1].strip() != ""):
            block = list(group)
            lines += textwrap.wrap(" ".join(block), width) if is_text else _fitted(block, width)
        return textwrap.indent("\n".join(lines), indent)


def _fitted(lines: list[str], width: int) -> list[str]:
    """Indented lines at most `width` wide."""
    if max(map(len, lines)) <= width:
        return lines
    fitted: list[str] = []
    column = 0  # where the text of the last item begins
    for line in lines:
        margin = _margin(line)
        if line.lstrip().startswith(("python ", "torchrun ", "bash ")):
            command, _, comment = line.partition(" # ")
            fitted += [f"{margin}# {comment}"] if comment and len(line) > width else []
            command = command.rstrip() if len(line) > width else line
            parts = textwrap.wrap(command, width - 2, subsequent_indent=margin + "    ", break_on_hyphens=False)
            fitted += [f"{part} \\" for part in parts[:-1]] + parts[-1:]
            continue
        if column and len(margin) == column and fitted:  # more text of the item above
            line = f"{fitted.pop()} {line.strip()}"
        else:
            head = re.match(r" *\S+ {2,}", line)
            column = head.end() if head else len(margin)
        hanging = " " * column
        fitted += textwrap.wrap(line, width, subsequent_indent=hanging, break_on_hyphens=False) or [""]
    return fitted


def _reader_left() -> bool:
    """Flushes stdout. Whether `| head` has seen enough: then nothing more is printed, not even at the very end. OSError
    where it cannot be written otherwise."""
    try:
        sys.stdout.flush()  # may succeed although an earlier print failed, whose text is gone
        left = _has_no_reader(sys.stdout)
    except BrokenPipeError:
        left = True
    if left:
        _drop(sys.stdout)
    return left


def _drop(stream: TextIO) -> None:
    """Nothing more reaches a stream, not even what waits in its buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _has_no_reader(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all, e.g. captured by a test
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say(what: str, message: str, *, everywhere: bool) -> None:
    env = os.environ
    local_rank = env.get("LOCAL_RANK", env.get("SLURM_LOCALID", "0"))
    rank, alone = env.get("RANK", env.get("SLURM_PROCID", "0")), local_rank == "0" or everywhere
    if not alone:
        # Most errors meet all processes, and the first of the machine shows them: then the launcher ends this one
        # before it speaks. If it does not, the error is this one's alone.
        time.sleep(_TURN_SECONDS)
    who = f" [process {rank}]" if rank != "0" and (everywhere or not alone) else ""
    text = f"{Path(sys.argv[0]).name}: {what}:{who} {message}"
    with contextlib.suppress(OSError):  # the terminal has gone
        if sys.stderr.isatty():  # logs keep a message in one line
            lines = text.splitlines()
            text = "\n".join(wrap(line.strip(), first=_margin(line), indent=_margin(line) + "  ") for line in lines)
        print(text, file=sys.stderr, flush=True)


def _margin(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))
