"""Shared by the benchmarks: options, a record of the machine, tables, files and charts."""

import argparse
import contextlib
import datetime
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ddfnet.utils import environment as facts
from ddfnet.utils.cli import at_least
from ddfnet.utils.files import write_json, write_text

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def writable_folder(text: str) -> Path:
    """The type of an option: a folder, made if it is not there."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=text):
            return Path(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_options(parser: argparse.ArgumentParser, files: str) -> None:
    """The options of what runs on a CPU and on CUDA; `prepare` reads them. `files`: name of those written."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help="default: CUDA")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on CUDA, fp32 on a CPU")
    parser.add_argument("--memory-format", choices=FORMATS, default="channels_last", help="default: %(default)s")
    parser.add_argument("--threads", type=at_least(1), help="of a CPU (default: PyTorch's)")
    caches = "use the compiler's caches as they are: the time of first calls is then not that of compilation"
    parser.add_argument("--keep-caches", action="store_true", help=caches)
    output = f"write {files}.json, .md and .png here"
    parser.add_argument("--output", type=writable_folder, metavar="FOLDER", help=output)


def prepare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> torch.device:
    """Sets the threads, the dtype of the device and cuDNN's search; a usage error if there is no such device."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    arguments.dtype = arguments.dtype or ("bf16" if arguments.device == "cuda" else "fp32")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    return torch.device(arguments.device)


def environment(device: torch.device) -> dict[str, Any]:
    """All that figures depend on: machine, versions, commit, command line. `load` is that of the last minute."""
    known = facts.environment()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "git": known["git"],
        "cpu": facts.cpu_name(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": known["python"],
        **{name: known["packages"][name] for name in ("torch", "triton")},
    }
    if device.type == "cuda":
        record |= {"gpu": torch.cuda.get_device_name(device), "driver": None, "cuda": known["cuda"]}
        record["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            record["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return record


def title(environment: dict[str, Any]) -> str:
    """The machine in a few words."""
    machine = environment.get("gpu") or f"{environment['cpu']}, {environment['threads']} threads"
    return f"{machine}, PyTorch {environment['torch']}"


def number(value: float | None, decimals: int = 4) -> str:
    """Three significant digits, but at most so many decimals, and no exponent; "-" for None."""
    if value is None:
        return "-"
    wanted = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(wanted, 0), decimals)}f}"


def reason(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


class Table:
    """A Markdown table that is printed line by line: two columns flush left, the others right, of fixed widths."""

    def __init__(self, columns: dict[str, int]) -> None:
        widths = self.widths = list(columns.values())
        rules = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        self.head = f"{self.row([name.strip() for name in columns])}\n{self.row(rules)}"

    def row(self, cells: Sequence[str], failed: str = "") -> str:
        """A line. `failed`: the reason, in place of all cells but the first two."""
        pairs = zip(cells, self.widths, strict=not failed)
        padded = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(pairs)]
        if failed:
            rest = sum(self.widths[2:]) + 3 * len(self.widths[3:])
            text = f"FAILED: {failed.replace('|', '/')}"
            padded.append(text.ljust(rest) if len(text) <= rest else f"{text[: rest - 3]}...")
        return f"| {' | '.join(padded)} |"


def save(
    folder: Path | None, name: str, heading: str, report: dict[str, Any], lines: Sequence[str], **chart: Any
) -> None:
    """NAME.json of a report, NAME.md of heading, machine and lines, and a `bar_chart`; nothing without a folder."""
    if folder is None:
        return
    write_json(folder / f"{name}.json", report)
    record = report["environment"]
    machine = ", ".join(f"{key} {value}" for key, value in record.items() if key != "command" and value is not None)
    page = ["# " + heading, "", f"`{record['command']}`", "", machine, "", *lines, ""]
    write_text(folder / f"{name}.md", "\n".join(page))
    if chart:
        bar_chart(folder / f"{name}.png", report["rows"], **chart)
    print(folder)


def bar_chart(
    path: Path, rows: list[dict[str, Any]], by: tuple[str, str], panels: dict[str, Callable[[Any], Any]], log: bool
) -> None:
    """Bars of the rows that did not fail, as a PNG. Without rows or without matplotlib nothing is written.

    `by`: keys of a row: the group of bars that it belongs to, and the bar in each group. `panels`: title of each panel,
    and the height of a row's bar (None: no bar). `log`: logarithmic heights.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    measured = {tuple(row[key] for key in by): row for row in rows if "failed" not in row}
    if not measured:
        return
    groups, bars = (list(dict.fromkeys(keys)) for keys in zip(*measured, strict=True))
    width = 0.84 / len(bars)
    figure = Figure(figsize=(max(9, 1.6 * len(groups) + 3), 3.2 * len(panels)), dpi=120, layout="constrained")
    for axes, (name, height) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        for i, bar in enumerate(bars):
            heights = {j: height(measured[group, bar]) for j, group in enumerate(groups) if (group, bar) in measured}
            positions = [j + (i - (len(bars) - 1) / 2) * width for j in heights]
            axes.bar(positions, [value or math.nan for value in heights.values()], width, label=bar)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_yscale("log" if log and any(map(height, measured.values())) else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    figure.savefig(path)
