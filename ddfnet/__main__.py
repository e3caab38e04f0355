"""The command lines of the package: `python -m ddfnet zoo ...`, also `python -m ddfnet.zoo ...`, and `checkpoint`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddfnet.engine import checkpoint_command
from ddfnet.inference.cards import way_to_get
from ddfnet.inference.convert import check_weights, convert
from ddfnet.utils.cli import HelpFormatter, run
from ddfnet.utils.errors import UserError
from ddfnet.utils.text import plural, wrap
from ddfnet.zoo import Entry, ZooError, cache_folder, check, entries, fetch, file_path, find
from ddfnet.zoo.download import sha256_of

PROGRAM = "ddfnet.zoo"
HELP = """The model zoo on the command line.

  python -m ddfnet.zoo list
  python -m ddfnet.zoo info ddf_mul_resnet50
  python -m ddfnet.zoo download ddf_mul_resnet50
  python -m ddfnet.zoo verify
  python -m ddfnet.zoo convert official.pth.tar ddf_mul_resnet50.safetensors --model ddf_mul_resnet50

Downloads lie in $DDFNET_CACHE, or else in the folder `ddfnet` beside those of torch.hub.
Exit codes: 0 done, 1 a file failed its verification, 2 a mistake in the input.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    raw = HelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=HELP, formatter_class=raw)
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


def main(arguments: argparse.Namespace) -> int:
    """Runs a command; returns the exit code."""
    if arguments.command == "list":
        _list(arguments.cache)
    elif arguments.command == "info":
        _info(find(arguments.name), arguments.cache)
    elif arguments.command == "download":
        entry = find(arguments.name)
        path = fetch(entry, cache=arguments.cache, progress=not arguments.quiet)
        print(f"{path}\nsha256 {check(entry, path)} ({_trust(entry)})")
    elif arguments.command == "verify":
        return _verify([find(name) for name in arguments.names], arguments.cache)
    else:
        target, loaded = arguments.target, convert(arguments.source, arguments.target, model=arguments.model)
        tensors = len(loaded.network.state_dict())
        print(f"{target}: {loaded.parameters:,} parameters, {tensors} tensors, {loaded.weights} weights")
        print(f"size {target.stat().st_size:,}\nsha256 {sha256_of(target)}")  # as an entry of the zoo wants them
    return 0


def _list(cache: str | None) -> None:
    print(f"{'name':<34}{'top-1':>6}  {'status':<9} {'download':<9} here")
    for entry in entries():
        here = "yes" if file_path(entry, cache).exists() else "no"
        top1 = entry.metrics.get("top1", "-")
        print(f"{entry.name:<34}{top1:>6}  {entry.status:<9} {way_to_get(entry):<9} {here}")
    print("\nverified: measured by us; claimed: the authors' figure, not measured here")
    print(f"shipped: part of this package; the others: in {cache_folder(cache)}")


def _trust(entry: Entry) -> str:
    return "as published" if entry.file.sha256 else "none was published: recorded when first seen"


def _info(entry: Entry, cache: str | None) -> None:
    how, path, file = entry.preprocessing, file_path(entry, cache), entry.file
    figures = ", ".join(f"{name} {value:g} %" for name, value in entry.metrics.items())
    whose = "measured by us" if entry.status == "verified" else "claimed by the authors, not measured here"
    rows = {
        "name": entry.name,
        "model": entry.model,
        "data": entry.data,
        "results": f"{figures} ({whose})",
        "measured": " on ".join(filter(None, (f"{entry.images} images" if entry.images else "", entry.measured))),
        "images": how.summary(),
        "recipe": f"{entry.config} at {entry.commit}" if entry.commit else f"of its authors; here: {entry.config}",
        "command": entry.command,
        "format": entry.format,
        "size": f"{file.size:,} bytes" if file.size is not None else "not published",
        "sha256": file.sha256 or "not published",
        "download": "\n".join(file.urls) or ("none needed" if file.shipped else "by hand"),
        "here": f"{path}" if path.exists() else f"no (would be {path})",
        "origin": entry.origin,
        "license": entry.license,
        "note": entry.note,
    }
    for key, value in rows.items():
        for i, line in enumerate(value.splitlines()):
            print(wrap(line, first=f"{'' if i else key:<10}", indent=" " * 10))


def _verify(named: list[Entry], cache: str | None) -> int:
    here = [entry for entry in entries() if entry.file.shipped or file_path(entry, cache).exists()]
    absent = [entry.name for entry in named if entry not in here]
    if absent:
        raise ZooError(f"{', '.join(absent)} not in {cache_folder(cache)}: python -m {PROGRAM} download {absent[0]}")
    failed = 0
    for entry in named or here:
        path = file_path(entry, cache)
        try:
            digest = check(entry, path)
            print(f"ok      {entry.name}: {check_weights(path, model=entry.model):,} parameters")
            lines = [f"sha256 {digest}", _trust(entry)]
        except UserError as error:
            failed += 1
            print(f"FAILED  {entry.name}")
            lines = str(error).splitlines()
        print("\n".join(wrap(line, first=" " * 8, indent=" " * 8) for line in lines))
    print(f"{plural(len(named or here), 'file')}, {failed} failed")
    return 1 if failed else 0


def command_line(arguments: Sequence[str]) -> None:
    """`zoo ...` or `checkpoint ...`; exits with its code."""
    parser = argparse.ArgumentParser(prog="python -m ddfnet", description="Each has its own --help.")
    parser.add_argument("command", choices=["zoo", "checkpoint"])
    command = parser.parse_args(arguments[:1]).command
    of_zoo = command == "zoo"
    sys.argv[0] = PROGRAM if of_zoo else checkpoint_command.PROGRAM  # `run` puts it before its errors
    parsed = (parse_arguments if of_zoo else checkpoint_command.parse_arguments)(arguments[1:])
    run(lambda: (main if of_zoo else checkpoint_command.main)(parsed))


if __name__ == "__main__":
    command_line(sys.argv[1:])
