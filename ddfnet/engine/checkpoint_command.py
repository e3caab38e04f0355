"""`python -m ddfnet checkpoint ...`: the checkpoints of a run on the command line; its options are in
`ddfnet.__main__`."""

import argparse
from pathlib import Path

from ddfnet.engine.checkpoint_tools import average_checkpoints, export_checkpoint, list_checkpoints, rewind
from ddfnet.engine.run_checkpoints import HISTORY, best_files
from ddfnet.utils.errors import CheckpointError
from ddfnet.utils.text import wrap


def main(arguments: argparse.Namespace) -> int:
    """Runs a command; returns the exit code."""
    folder: Path = arguments.run
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder of a run")
    if arguments.command == "list":
        _list(folder)
    elif arguments.command == "average":
        files = [_file(folder, name) for name in arguments.files] or best_files(folder)
        done = average_checkpoints(files, arguments.output, weights=arguments.weights)
        print(f"{arguments.output}: mean of the {done['weights']} weights of {', '.join(file.name for file in files)}")
        if done["statistics"]:
            print(
                f"note: {done['statistics']} running statistics of batch norms were averaged as well, which is not the "
                "same as those of the averaged weights: evaluate the file before you use it"
            )
    elif arguments.command == "export":
        file = _file(folder, arguments.file)
        kind = export_checkpoint(file, arguments.output, weights=arguments.weights)
        print(f"{arguments.output}: the {kind} weights of {file}")
    else:
        step, former = rewind(folder, _file(folder, arguments.file))
        print(f"{folder} resumes from step {step}" + ("; kept beside, to be deleted by you:" if former else ""))
        print("".join(f"  {path}\n" for path in former), end="")
    return 0


def _list(folder: Path) -> None:
    rows = list_checkpoints(folder)
    width = max((len(str(facts.path.relative_to(folder))) for facts in rows), default=4)
    print(f"{'file':<{width}}{'step':>8}{'epoch':>7}{'MB':>7}  resumes")
    for facts in rows:
        step = "" if facts.step is None else facts.step
        epoch = "" if facts.epoch is None or facts.step is None else f"{facts.epoch:.2f}"
        resumes = "yes" if facts.resumes and facts.step is not None else "no"
        name = str(facts.path.relative_to(folder))
        print(f"{name:<{width}}{step:>8}{epoch:>7}{facts.bytes / 1e6:>7.1f}  {resumes}")
        figures = "  ".join(f"{key} {value:.4g}" for key, value in (facts.metrics or {}).items())
        if text := facts.fault or figures:
            print(wrap(text, first="    ", indent="    "))


def _file(folder: Path, name: str) -> Path:
    """A file of the run by its name, or any path."""
    inside = [path for path in (folder / name, folder / HISTORY / name) if path.is_file()]
    return inside[0] if inside else Path(name)
