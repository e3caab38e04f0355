"""Where the time of some training steps goes, `profile.steps`: a Chrome trace and a table by cause."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ddfnet.engine.logging import RunLog
from ddfnet.utils.files import write_text

DATA = "ddfnet: data"  # the range that the trainer opens while it waits for a batch
_COMMUNICATION = ("nccl", "gloo", "c10d")
_WAITING = ("Synchronize", "cudaEventQuery", DATA)
_MOST_OPERATORS = 10


class StepProfiler:
    """Profiles steps of the main process, and nothing on others.

    Args:
        steps: (first, end) as in Python, counted from 0; None: none.
        device: the table of CUDA counts kernels on the device, that of a CPU the operators' own time.
        folder: gets the trace and the table; None: the console alone has the table (dry run).
        log: of the main process, or an inactive one.
    """

    def __init__(self, steps: tuple[int, int] | None, device: torch.device, folder: Path | None, log: RunLog) -> None:
        if steps is not None and folder is None:
            steps = (1, 2)  # of a dry run the second one, which has warmed up
        self.steps, self.device, self.folder, self.log = steps if log.active else None, device, folder, log
        self._profile: profile | None = None
        self._first, self._started = 0, 0.0

    @contextmanager
    def at(self, step: int, *, last: bool) -> Iterator[None]:
        """Around each step, with its number; `last`: the run has no more. A run that resumes amid the steps profiles
        those that are left."""
        self._before(step)
        yield
        self._after(step, last=last)

    def data(self) -> AbstractContextManager[Any]:
        """Around the wait for a batch."""
        return record_function(DATA)

    def _before(self, step: int) -> None:
        if self.steps is None or self._profile is not None or not self.steps[0] <= step < self.steps[1]:
            return
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(self.device)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._first, self._started = step, time.perf_counter()

    def _after(self, step: int, *, last: bool) -> None:
        if self._profile is None or self.steps is None or not (last or step + 1 >= self.steps[1]):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._started
        finished, self._profile, self.steps = self._profile, None, None
        finished.stop()
        name = f"steps {self._first} to {step}"
        table = format_table(finished.key_averages(), seconds, step + 1 - self._first, self.device.type)
        self.log.message(f"profile of {name}:\n{table}")
        if self.folder is not None:
            stem = f"profile_{self._first}_{step + 1}"
            trace, temporary = self.folder / f"{stem}.trace.json", self.folder / f".{stem}.tmp"
            try:
                finished.export_chrome_trace(str(temporary))
                os.replace(temporary, trace)
                write_text(self.folder / f"{stem}.txt", f"{name}\n{table}\n")
            except (OSError, RuntimeError) as error:  # torch's own error, where the disk is full
                self.log.warning(f"the profile cannot be written into {self.folder} ({error}): training continues")
                return
            self.log.message(f"trace for chrome://tracing or ui.perfetto.dev: {trace}")


def format_table(events: Sequence[Any], seconds: float, steps: int, device: str) -> str:
    """Milliseconds a step by cause, and the operators or kernels that take most.

    On a GPU host and device work side by side: their times do not add up to that of the step.
    """
    cuda = device == "cuda"

    def own(event: Any) -> float:
        return (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6

    communicates = [any(word in event.key.lower() for word in _COMMUNICATION) for event in events]
    data = sum(event.cpu_time_total for event in events if event.key == DATA) / 1e6
    communication = sum(own(event) for event, is_one in zip(events, communicates, strict=True) if is_one)
    working = [event for event, is_one in zip(events, communicates, strict=True) if not is_one and _works(event, cuda)]
    kernels = sum(map(own, working))
    if cuda:
        waits = [any(word in event.key for word in _WAITING) for event in events]
        host = sum(e.self_cpu_time_total for e, waiting in zip(events, waits, strict=True) if not waiting) / 1e6
    else:
        host = max(0.0, seconds - data - communication - kernels)
    rows = [("data", data), ("host", host), ("kernels", kernels), ("communication", communication)]
    lines = [f"{'cause':<44}{'ms a step':>12}{'of the step':>13}"]
    lines += [_row(name, value, seconds, steps) for name, value in rows]
    lines += [_row("the step (with the profiler)", seconds, seconds, steps)]
    if cuda:
        lines += ["host and kernels work side by side: they do not add up"]
    lines += ["", f"{'kernel' if cuda else 'operator':<44}{'ms a step':>12}{'of the step':>13}"]
    most = sorted(working, key=own, reverse=True)[:_MOST_OPERATORS]
    return "\n".join(lines + [_row(event.key, own(event), seconds, steps) for event in most])


def _works(event: Any, cuda: bool) -> bool:
    if event.key == DATA:
        return False
    # On a CPU the operators are the kernels; ranges of Python around them are the host.
    return event.self_device_time_total > 0 if cuda else "::" in event.key and not event.key.startswith("autograd::")


def _row(name: str, value: float, seconds: float, steps: int) -> str:
    name = name if len(name) <= 42 else name[:41] + "…"
    return f"{name:<44}{1000 * value / steps:>12.2f}{value / seconds:>13.1%}"
