"""No wait without an end: what each process does is watched, and one that hangs or fails ends the run by name."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ddfnet.engine.distributed import Distributed
from ddfnet.utils.cli import EXIT_FAILED, EXIT_HUNG, EXIT_INTERRUPTED
from ddfnet.utils.errors import UserError

_JOIN_SECONDS = 10.0  # for a call of the store to return
_TICK_SECONDS = 1.0
_LONGEST_TICK = 2.0  # counted: a process that was stopped and continued has not waited all the time in between
_READ_SECONDS = 1.5  # for others to read of the end of this process: more than a tick
_GRACE_SECONDS = 2.0  # for a process to show an error of its own, and for others to read of it
_MOST_NAMES = 3  # of samples in a message
_END = "end"  # key of what ended the run
# Of processes that hang at the same step the one in the earliest of these has not come to where the others wait.
# The last one waits for the others.
_TRAINING = ("start", "data", "forward", "backward", "optimizer", "save")
_ORDER = (*_TRAINING, "evaluation data", "evaluation", "evaluation result")


@dataclass
class _Heard:
    """What is known of a process."""

    phase: str = "start"
    step: int = 0
    beats: int = -1  # of its watch: a process that is stopped has none
    moves: int = -1  # of its training
    silent: float = 0.0  # seconds since the last beat came
    still: float = 0.0  # seconds since the last move


class Watch:
    """Watches this process, and over a store of the process group the others.

    Without `start` it only notes the phase.

    Attributes:
        step: optimizer steps done.
        samples: names of the samples of the step after so many, for messages; set by the trainer.
    """

    def __init__(self, distributed: Distributed | None = None, timeout: float = 1800.0) -> None:
        self.distributed, self.timeout, self.step = distributed, timeout, 0
        self.samples: Callable[[int], list[str]] = lambda step: []
        self._phase, self._moves = "start", 0
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._heard = [_Heard() for _ in range(distributed.world_size if distributed else 1)]
        self._store: Any = None
        self._told: dict[str, Any] | None = None  # by another process, why it has ended

    def phase(self, name: str, step: int | None = None) -> None:
        """Notes that this process has come to a phase, one of `_ORDER`."""
        self._phase = name
        self._moves += 1
        if step is not None:
            self.step = step

    def start(self) -> None:
        """Begins to watch, in threads that end with the process."""
        assert self.distributed is not None
        if self.distributed.world_size > 1:
            self._store = self.distributed.store("watch")
            self._threads.append(threading.Thread(target=self._talk, name="watch store", daemon=True))
        self._threads.append(threading.Thread(target=self._look, name="watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Watches no longer, and lets go of the trainer."""
        self._ended.set()
        self.samples = lambda step: []
        # A thread that is still within the store when Python ends would abort the process, after all its work.
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(_JOIN_SECONDS)

    def failed(self, error: BaseException) -> None:
        """Tells the other processes why this one ends: they end as well, within some seconds."""
        self.end()
        # Of an error that may meet all processes, only the first of the machine speaks at once (`ddfnet.utils.cli`).
        speaks = not isinstance(error, UserError) or error.one_process or os.environ.get("LOCAL_RANK", "0") == "0"
        self._tell(f"{type(error).__name__}: {error}", EXIT_FAILED, shown=speaks)

    def interrupted(self, name: str) -> None:
        """Tells the other processes that a signal has ended this one in the middle of a step."""
        self._tell(f"stopped by {name} while its data did not come: start again to resume", EXIT_INTERRUPTED)
        self.end()
        if self._rank == 0 and self._store is not None:  # the store may end with this process: for the others to read
            time.sleep(_READ_SECONDS)

    def another_failed(self, seconds: float = 2.0) -> dict[str, Any] | None:
        """Why another process has ended, waiting a while for it to say so: an error of this one, a lost connection,
        may only follow from it."""
        deadline = time.monotonic() + seconds
        while self._store is not None:
            if self._told is not None:
                return self._told
            with suppress(Exception):
                if self._store.check([_END]):
                    told = dict(json.loads(self._store.get(_END)))
                    return told if told["rank"] != self._rank else None
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)
        return None

    @property
    def _rank(self) -> int:
        return self.distributed.rank if self.distributed is not None else 0

    def _tell(self, text: str, code: int, *, shown: bool = True) -> None:
        if self._store is not None:
            told = {"rank": self._rank, "host": socket.gethostname(), "text": text, "code": code, "shown": shown}
            with suppress(Exception):  # the store may have gone with its process
                self._store.compare_set(_END, "", json.dumps(told))

    def _talk(self) -> None:
        """Beats, and listens to the others."""
        beats = 0
        while not self._ended.wait(_TICK_SECONDS):
            beats += 1
            try:
                state = {"phase": self._phase, "step": self.step, "moves": self._moves, "beats": beats}
                self._store.set(f"rank{self._rank}", json.dumps(state))
                for rank, heard in enumerate(self._heard):
                    if rank == self._rank or not self._store.check([f"rank{rank}"]):
                        continue
                    other = json.loads(self._store.get(f"rank{rank}"))
                    if other["beats"] != heard.beats:
                        heard.silent = 0.0
                    if other["moves"] != heard.moves:
                        heard.still = 0.0
                    heard.phase, heard.step = other["phase"], other["step"]
                    heard.beats, heard.moves = other["beats"], other["moves"]
                if self._store.check([_END]):
                    self._follow(json.loads(self._store.get(_END)))
            except Exception:  # the store has gone with its process: what is silent is noticed by `_look`
                if self._ended.wait(_TICK_SECONDS):
                    return

    def _follow(self, told: dict[str, Any]) -> None:
        """Ends this process as another one has ended, unless it has an error of its own to show."""
        if told["rank"] == self._rank:
            return
        self._told = told
        if self._ended.wait(_GRACE_SECONDS):
            return
        if self._rank == 0 and not (told["shown"] and told["host"] == socket.gethostname()):  # on this very console
            _print(f"[process {told['rank']} on {told['host']}] {told['text']}")
        _exit(told["code"])

    def _look(self) -> None:
        """Counts the time that nothing moves."""
        own, before = self._heard[self._rank], time.monotonic()
        while not self._ended.wait(_TICK_SECONDS):
            now = time.monotonic()
            passed, before = min(now - before, _LONGEST_TICK), now
            for heard in self._heard:
                heard.silent += passed
                heard.still += passed
            if self._moves != own.moves:
                own.moves, own.still = self._moves, 0.0
            own.phase, own.step, own.silent = self._phase, self.step, 0.0
            if own.still < self.timeout:
                continue
            hung = self._hung()
            if hung is not None:
                text = self._sentence(hung)
                _print(text)
                # In a thread: where the machine of the store has gone, it does not answer for long.
                threading.Thread(target=self._tell, args=(text, EXIT_HUNG), name="watch tells", daemon=True).start()
                time.sleep(_GRACE_SECONDS)  # for the others to read of it
                if not self._ended.is_set():
                    _exit(EXIT_HUNG)

    def _hung(self) -> int | None:
        """The process that all others wait for; None while any of them moves."""
        silent = [rank for rank, heard in enumerate(self._heard) if self._is_silent(heard)]
        if silent:
            return silent[0]
        if any(heard.still < self.timeout for heard in self._heard):
            return None
        return min(range(len(self._heard)), key=lambda rank: (self._heard[rank].step, _order(self._heard[rank].phase)))

    def _is_silent(self, heard: _Heard) -> bool:
        return heard.silent >= min(self.timeout / 2, 30.0)

    def _sentence(self, rank: int) -> str:
        heard = self._heard[rank]
        if heard.beats < 0 and rank != self._rank:
            what = "has not been heard of"
        elif rank != self._rank and self._is_silent(heard):
            what = "does not answer: it is stopped, or its machine is gone; it was"
        else:
            what = "has not moved"
        names = self.samples(heard.step) if heard.phase == "data" else []
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        which = f" (waiting for {', '.join(names[:_MOST_NAMES])}{more})" if names else ""
        return (
            f"process {rank} {what} for {self.timeout:g} s in the phase {heard.phase}, after step {heard.step}{which}: "
            "look at its machine, disk and network; start again to resume, with a larger run.timeout if it is only slow"
        )


def _order(phase: str) -> int:
    return _ORDER.index(phase) if phase in _ORDER else len(_ORDER)


def _print(text: str) -> None:
    with suppress(OSError, ValueError):
        print(f"{Path(sys.argv[0]).name}: stopped: {text}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Ends the process although its main thread does not return; data workers end with it."""
    os._exit(code)
