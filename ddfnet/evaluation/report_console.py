"""A report as text for the console, within 80 columns but for paths, which stay whole; and the page of several sets."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfnet.evaluation.statistics import BINS

_WIDTH = 79
_NO_BREAK = "\0"  # for a space in the name of a set, where no line may end; no file name holds it


def settings_lines(report: dict[str, Any]) -> list[str]:
    """Network and how it was run."""
    how = report["preprocessing"]
    gpus = report["environment"]["gpus"]
    device = gpus[0] if report["device"] == "cuda" else "CPU"
    lines = [
        f"{report['model']} ({report['weights']} weights), {report['parameters']:,} parameters",
        f"{how['input_size']} px, crop {how['crop_pct']:g}, {how['interpolation']}; {report['precision']} on {device}, "
        f"{report['processes']} process(es)",
    ]
    if report["tta"]:
        lines.append("test-time augmentation: mean softmax of image and mirror image")
    return [part for line in lines for part in _wrap(line)]


def result_table(report: dict[str, Any]) -> str:
    """The figures of one set, between the settings and the speed."""
    return "\n".join(
        [
            *settings_lines(report),
            report["data"],
            "",
            f"  top-1  {report['top1']:6.2f} %  ({report['top1_count']} of {report['n']})",
            f"  top-5  {report['top5']:6.2f} %  ({report['top5_count']} of {report['n']})",
            f"  ece    {report['ece']:6.2f} %  (expected calibration error, {BINS} bins)",
            f"  loss   {report['loss']:7.4f}",
            f"  n      {report['n']:6d}",
            f"  speed  {report['images_per_second']:6.1f} images/s",
        ]
    )


def files_lines(folder: Path, files: Sequence[str]) -> str:
    """Where the report is, and what it consists of; sub-folders with the same files share a line."""
    inside: dict[str, list[str]] = {}
    for file in files:
        parent, _, name = file.rpartition("/")
        inside.setdefault(parent.replace(" ", _NO_BREAK), []).append(name)
    parents: dict[str, list[str]] = {}
    for parent, names in inside.items():
        parents.setdefault(", ".join(names), []).append(f"{parent}/" if parent else "")
    lines = [f"{', '.join(shared)}: {names}" if shared[0] else names for names, shared in parents.items()]
    return "\n".join([f"report: {folder}", *(part for line in lines for part in _wrap(line, indent="  "))])


def sets_header() -> str:
    """Header of the lines of `sets_row`."""
    return f"{'set':<12}{'images':>9}{'classes':>9}{'top-1':>9}{'top-5':>9}{'ece':>9}{'loss':>9}{'images/s':>10}"


def sets_row(name: str, report: dict[str, Any]) -> str:
    """One set in one line."""
    loss = "-" if report["loss"] is None else f"{report['loss']:.4f}"
    return (
        f"{name:<12}{report['n']:>9}{report['classes']:>9}{report['top1']:>7.2f} %{report['top5']:>7.2f} %"
        f"{report['ece']:>7.2f} %{loss:>9}{report['images_per_second']:>10.1f}"
    )


def sets_page(summary: dict[str, Any]) -> str:
    """sets.md: one row per set, with links to the reports.

    Args:
        summary: content of sets.json.
    """
    lines = [
        f"# {summary['model']} on {len(summary['sets'])} sets",
        "",
        f"| set | images | classes | top-1 | top-5 | ECE ({BINS} bins) | loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in summary["sets"].items():
        loss = "-" if result["loss"] is None else f"{result['loss']:.4f}"
        lines.append(
            f"| [{name}]({name}/report.md) | {result['n']:,} | {result['classes']:,} "
            f"| {result['top1']:.2f} % ({result['top1_count']:,}) | {result['top5']:.2f} % ({result['top5_count']:,}) "
            f"| {result['ece']:.2f} % | {loss} |"
        )
    lines += [f"\n{name}: {result['note']}" for name, result in summary["sets"].items() if result["note"]]
    lines.append(f"\n{'; '.join(settings_lines(summary))}. Checkpoint `{summary['checkpoint']}`.")
    lines.append(f"\n`{summary['command']}`, {summary['date'][:10]}. Machine and versions: [sets.json](sets.json).")
    return "\n".join(lines) + "\n"


def _wrap(text: str, indent: str = "") -> list[str]:
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]
