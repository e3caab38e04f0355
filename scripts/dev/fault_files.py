"""Damage to the files of a run folder: the mutations of fault_injection.py."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddfnet.checkpoint import read_checkpoint, save_checkpoint

Mutation = Callable[[Path, random.Random], None]
FILES = ("last.pt", "all checkpoints", "run.json", "metrics.jsonl", "config.yaml", "best.pt")


def _bytes_of(change: Callable[[bytearray, random.Random], bytes]) -> Mutation:
    def mutate(path: Path, rng: random.Random) -> None:
        data = change(bytearray(path.read_bytes()), rng)
        path.unlink()  # it may be one file with another name, which is not meant
        path.write_bytes(data)

    return mutate


def _flip(data: bytearray, rng: random.Random) -> bytes:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def _key(change: Callable[[dict[str, Any], random.Random], object]) -> Mutation:
    """A checkpoint that is whole as a file, and holds something else than it should."""

    def mutate(path: Path, rng: random.Random) -> None:
        payload = dict(read_checkpoint(path))
        change(payload, rng)
        path.unlink()
        save_checkpoint(path, payload)

    return mutate


def _without_one(payload: dict[str, Any], rng: random.Random) -> None:
    del payload[rng.choice(["model", "optimizer", "step", "best", "local", "meta", "images", "loss_count"])]


def _other_shapes(payload: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(payload["model"]))
    payload["model"] = {**payload["model"], key: torch.zeros(3, 5)}


ANY: dict[str, Mutation] = {
    "cut": _bytes_of(lambda data, rng: bytes(data[: rng.randrange(max(1, len(data)))])),
    "empty": _bytes_of(lambda data, rng: b""),
    "a bit flipped": _bytes_of(_flip),
    "noise": _bytes_of(lambda data, rng: rng.randbytes(len(data))),
    "a folder": _folder,
    "missing": _missing,
}
INSIDE: dict[str, Mutation] = {
    "a key missing": _key(_without_one),
    "step a string": _key(lambda payload, rng: payload.update(step="12")),
    "step negative": _key(lambda payload, rng: payload.update(step=-3)),
    "step beyond the end": _key(lambda payload, rng: payload.update(step=10**6)),
    "statistics of another size": _key(
        lambda payload, rng: payload.update(local={**payload["local"], "model": torch.zeros(1, 7)})
    ),
    "weights of another shape": _key(_other_shapes),
    "optimizer of another model": _key(
        lambda payload, rng: payload.update(optimizer={"state": {}, "param_groups": [{"params": [0]}]})
    ),
}
# Each of the common ones on each file; those that need a checkpoint on last.pt, and some on all of them.
CASES: list[tuple[str, str, Mutation]] = [(file, name, mutate) for name, mutate in ANY.items() for file in FILES]
CASES += [("last.pt", name, mutate) for name, mutate in INSIDE.items()]
CASES += [("all checkpoints", name, INSIDE[name]) for name in ("a key missing", "step beyond the end")]


def damage(folder: Path, file: str, mutate: Mutation, rng: random.Random) -> None:
    """Damages one file of a run, or all from which it could resume."""
    if file != "all checkpoints":
        mutate(folder / file, rng)
        return
    for path in [folder / "last.pt", *sorted((folder / "checkpoints").glob("step_*.pt"))]:
        mutate(path, rng)


def own_copy(source: Path, target: Path) -> None:
    """Copies a run folder, in which no file has two names then."""
    shutil.copytree(source, target)
