"""`python -m ddfnet zoo ...`: the weights of the zoo on the command line; its options are in `ddfnet.__main__`."""

import argparse

from ddfnet.inference.cards import way_to_get
from ddfnet.inference.convert import check_weights, convert
from ddfnet.utils.errors import UserError
from ddfnet.utils.text import plural, wrap
from ddfnet.zoo import Entry, ZooError, cache_folder, check, entries, fetch, file_path, find
from ddfnet.zoo.download import sha256_of


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
        print(f"{target}: {loaded.parameters:,} parameters, {plural(tensors, 'tensor')}, {loaded.weights} weights")
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
        "measured": " on ".join(filter(None, (plural(entry.images, "image") if entry.images else "", entry.measured))),
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
        raise ZooError(f"{', '.join(absent)} not in {cache_folder(cache)}: python -m ddfnet.zoo download {absent[0]}")
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
