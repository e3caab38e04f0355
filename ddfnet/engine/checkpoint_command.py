"""`python -m ddfnet checkpoint ...`: the checkpoints of a run on the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ddfnet.engine.checkpoint_tools import average_checkpoints, export_checkpoint, list_checkpoints, rewind
from ddfnet.engine.run_checkpoints import BEST, HISTORY, best_files
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.errors import CheckpointError
from ddfnet.utils.text import wrap

PROGRAM = "ddfnet checkpoint"
HELP = """The checkpoints of a run.

  python -m ddfnet checkpoint list runs/demo
  python -m ddfnet checkpoint average runs/demo -o average.pt
  python -m ddfnet checkpoint average runs/demo step_00000400.pt step_00000800.pt -o average.pt
  python -m ddfnet checkpoint export runs/demo -o weights.safetensors
  python -m ddfnet checkpoint rewind runs/demo step_00000400.pt

RUN is the folder of a run (run.dir), FILE one of its files by name, or any path. average takes the best checkpoints
unless files are named (train with checkpoints.best=5, say). rewind makes an older checkpoint the one from which the
next start resumes; the former last.pt stays as last.pt.former.
Exit codes: 0 done, 2 a mistake in the input.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=HELP, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("run", metavar="RUN", type=Path, help="folder of the run")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the new file")
    weights.add_argument(
        "--weights", choices=("auto", "raw", "ema"), default="auto", help="auto: the EMA weights, if any"
    )
    commands.add_parser("list", parents=[run], help="all of them, whether they are whole, and what they reached")
    command = commands.add_parser("average", parents=[run, weights], help="the mean of the weights of several")
    command.add_argument("files", metavar="FILE", nargs="*", help="two or more (default: the best ones)")
    command = commands.add_parser("export", parents=[run, weights], help="the weights of one as .safetensors")
    command.add_argument("file", metavar="FILE", nargs="?", default=BEST, help="default %(default)s")
    command = commands.add_parser("rewind", parents=[run], help="resume from an older one")
    command.add_argument("file", metavar="FILE", help="one of RUN, see list")
    return parser.parse_args(arguments)


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
