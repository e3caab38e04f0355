"""The command lines of the package: `python -m ddfnet zoo ...`, also `python -m ddfnet.zoo ...`, and `checkpoint`.

Imports nothing that takes long, and neither does the package for --help: that need not wait for torch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddfnet.utils.cli import HelpFormatter, run

ZOO = """The model zoo on the command line.

  python -m ddfnet.zoo list
  python -m ddfnet.zoo info ddf_mul_resnet50
  python -m ddfnet.zoo download ddf_mul_resnet50
  python -m ddfnet.zoo verify
  python -m ddfnet.zoo convert official.pth.tar ddf_mul_resnet50.safetensors --model ddf_mul_resnet50

Downloads lie in $DDFNET_CACHE, or else in the folder `ddfnet` beside those of torch.hub.
Exit codes: 0 done, 1 a file failed its verification, 2 a mistake in the input.
"""
CHECKPOINT = """The checkpoints of a run.

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


def zoo_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `zoo`."""
    parser = argparse.ArgumentParser(prog="python -m ddfnet.zoo", description=ZOO, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cached = argparse.ArgumentParser(add_help=False)
    cached.add_argument("--cache", metavar="DIR", help="folder of the files")
    commands.add_parser("list", parents=[cached], help="the weights of the zoo")
    command = commands.add_parser("info", parents=[cached], help="all that is known of one")
    command.add_argument("name", metavar="NAME")
    command = commands.add_parser("download", parents=[cached], help="get a file, or verify the one already there")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    command = commands.add_parser("verify", parents=[cached], help="check hash and weights of the files that are here")
    command.add_argument("names", metavar="NAME", nargs="*", help="these alone (default: all that are there)")
    command = commands.add_parser("convert", help="an official checkpoint to safetensors")
    command.add_argument("source", metavar="SOURCE", type=Path, help="official .pth.tar or .pth")
    command.add_argument("target", metavar="TARGET", type=Path, help="new .safetensors file")
    command.add_argument("--model", required=True, metavar="NAME", help="its model, e.g. ddf_mul_resnet50")
    return parser.parse_args(arguments)


def checkpoint_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `checkpoint`."""
    program = "python -m ddfnet checkpoint"
    parser = argparse.ArgumentParser(prog=program, description=CHECKPOINT, formatter_class=HelpFormatter)
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
    command.add_argument("file", metavar="FILE", nargs="?", default="best.pt", help="default %(default)s")
    command = commands.add_parser("rewind", parents=[run], help="resume from an older one")
    command.add_argument("file", metavar="FILE", help="one of RUN, see list")
    return parser.parse_args(arguments)


def command_line(arguments: Sequence[str]) -> None:
    """`zoo ...` or `checkpoint ...`; exits with its code."""
    parser = argparse.ArgumentParser(prog="python -m ddfnet", description="Each has its own --help.")
    parser.add_argument("command", choices=["zoo", "checkpoint"])
    if parser.parse_args(arguments[:1]).command == "zoo":
        sys.argv[0] = "ddfnet.zoo"  # `run` puts it before its errors
        parsed = zoo_arguments(arguments[1:])
        from ddfnet.inference.zoo_command import main
    else:
        sys.argv[0] = "ddfnet checkpoint"
        parsed = checkpoint_arguments(arguments[1:])
        from ddfnet.engine.checkpoint_command import main
    run(lambda: main(parsed))


if __name__ == "__main__":
    command_line(sys.argv[1:])
