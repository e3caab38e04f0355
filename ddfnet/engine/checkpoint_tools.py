"""What can be done with the checkpoints of a run besides training: list, average, export, go back."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddfnet.checkpoint import Weights, read_checkpoint, read_weights, save_checkpoint, save_safetensors
from ddfnet.engine.resumable import faults_of_resumable
from ddfnet.engine.run_checkpoints import BEST, LAST, best_files, best_goes_back, later_files, link_or_copy, resumable
from ddfnet.engine.run_folder import run_folder_lock
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.files import set_aside

_IDENTITY = ("task", "model", "classes", "preprocessing")  # of the meta: what averaged weights must have in common


@dataclass(frozen=True)
class CheckpointFacts:
    """One file of a run, as it was found."""

    path: Path
    bytes: int
    fault: str | None  # why it cannot be used; None where it is whole
    resumes: bool = False  # training can resume from it
    step: int | None = None
    epoch: float | None = None
    metrics: dict[str, float] | None = None  # of the evaluation it was written after, if there was one
    ema: bool = False  # it has EMA weights


def list_checkpoints(folder: Path) -> list[CheckpointFacts]:
    """Reads all checkpoints of a run folder: those to resume from, newest first, then the best."""
    best = [path for path in (folder / BEST,) if path.is_file()]
    paths = [*resumable(folder), *best, *(path for path in best_files(folder) if path not in best)]
    if not paths:
        raise CheckpointError(f"{folder} holds no checkpoints: name the folder of a run (its run.dir)")
    return [_facts(path) for path in paths]


def _facts(path: Path) -> CheckpointFacts:
    size = path.stat().st_size
    try:
        payload = read_checkpoint(path)
    except CheckpointError as error:
        return CheckpointFacts(path, size, str(error))
    meta = payload.get("meta") or {}
    faults = faults_of_resumable(payload) if "optimizer" in payload else ["weights alone"]
    about = {key: meta.get(key) for key in ("step", "epoch", "metrics")}
    finite = all(_finite(payload[key]) for key in ("model", "ema") if isinstance(payload.get(key), dict))
    fault = None if finite else "some weights are NaN or infinite"
    return CheckpointFacts(path, size, fault, not faults and finite, **about, ema=payload.get("ema") is not None)


def _finite(state_dict: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in state_dict.values())


def _check_finite(weights: Weights, path: Path) -> None:
    if not _finite(weights.state_dict):
        raise CheckpointError(f"{path} is of no use: some of its {weights.kind} weights are NaN or infinite")


def average_checkpoints(paths: Sequence[Path], output: Path, *, weights: str = "auto") -> dict[str, Any]:
    """Writes the mean of the weights of several checkpoints of one model, a file that `eval.py` reads.

    Sums are float64. Running statistics of batch norms are averaged like weights: they are near those of the averaged
    network where the checkpoints are near each other, and not the same. Counters are those of the last file.

    Args:
        paths: two files or more, of runs of this package.
        output: a new file, `.pt`, or `.safetensors` for the weights alone.
        weights: `auto` (the EMA weights where all files have them), `raw` or `ema`.

    Returns:
        `files`, `weights` (`ema` or `model`) and `statistics`, how many running statistics were averaged.

    Raises:
        CheckpointError: a file cannot be read, has weights that are not finite, or they are of different models,
            classes or preprocessing.
    """
    if len(paths) < 2:
        raise CheckpointError(f"an average needs two checkpoints or more, got {len(paths)}: name them, or train with "
                              "checkpoints.best=5")  # fmt: skip
    if len({path.resolve() for path in paths}) < len(paths):
        raise CheckpointError("an average needs each file once: name different ones")
    if output.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{output} must end in .pt or .safetensors")
    _check_new(output)
    prefer = weights
    if weights == "auto":
        prefer = "ema" if all(read_weights(path).kind == "ema" for path in paths) else "raw"
    total: dict[str, Tensor] = {}
    first: Weights | None = None
    for path in paths:
        read = read_weights(path, prefer=prefer)
        if read.meta is None:
            raise CheckpointError(f"{path} does not say of which model it is: average checkpoints of ddfnet's runs")
        if first is None:
            first = read
        _check_alike(first, read, paths[0], path)
        _check_finite(read, path)
        for key, tensor in read.state_dict.items():
            if tensor.is_floating_point():
                total[key] = total[key] + tensor.double() if key in total else tensor.double()
            else:
                total[key] = tensor
    assert first is not None
    mean = {
        key: (total[key] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else total[key]
        for key, tensor in first.state_dict.items()
    }
    meta = {key: value for key, value in (first.meta or {}).items() if key not in ("step", "epoch", "metrics")}
    meta["averaged"] = [str(path) for path in paths]
    if output.suffix == ".safetensors":
        save_safetensors(output, mean, meta, kind="model")
    else:
        save_checkpoint(output, {"meta": meta, "config": first.config, "model": mean, "ema": None})
    statistics = sum(key.endswith(("running_mean", "running_var")) for key in mean)
    return {"files": len(paths), "weights": "ema" if prefer == "ema" else "model", "statistics": statistics}


def _check_alike(first: Weights, other: Weights, one: Path, two: Path) -> None:
    differs = [key for key in _IDENTITY if (first.meta or {}).get(key) != (other.meta or {}).get(key)]
    shapes = [{key: tuple(tensor.shape) for key, tensor in weights.state_dict.items()} for weights in (first, other)]
    if differs or shapes[0] != shapes[1]:
        what = ", ".join(differs) or "names or shapes of the weights"
        raise CheckpointError(f"{one} and {two} cannot be averaged: {what} differ")


def export_checkpoint(path: Path, output: Path, *, weights: str = "auto") -> str:
    """Writes the weights of a checkpoint alone, as a .safetensors file that knows its model; returns their kind.

    Raises:
        CheckpointError: the file cannot be read, does not say of which model it is, or has weights that are not finite.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"{output} must end in .safetensors")
    _check_new(output)
    read = read_weights(path, prefer=weights)
    if read.meta is None:
        raise CheckpointError(f"{path} does not say of which model it is: export checkpoints of ddfnet's runs")
    _check_finite(read, path)
    save_safetensors(output, read.state_dict, read.meta, kind="ema" if read.kind == "ema" else "model")
    return read.kind


def rewind(folder: Path, path: Path) -> tuple[int, list[Path]]:
    """Makes an older checkpoint of a run the one from which it resumes, and the best ones those that were so then.
    What was `last.pt`, the later checkpoints and the later best ones are kept beside their names.

    Returns:
        Its step, and the new paths of those files.

    Raises:
        UserError: the run is in progress, or the file is not one to resume from.
    """
    if path.is_file() and folder.resolve() not in path.resolve().parents:
        raise CheckpointError(f"{path} is not of this run: to start one from its weights, set model.init_checkpoint")
    facts = _facts(path) if path.is_file() else None
    if facts is None or not facts.resumes or facts.step is None:
        reason = "there is no such file" if facts is None else facts.fault or "it holds weights alone"
        raise CheckpointError(f"{path} is no checkpoint to resume from ({reason}): python -m ddfnet checkpoint list")
    with run_folder_lock(folder):
        last, former = folder / LAST, []
        if last.exists():
            if os.path.samefile(last, path):
                return facts.step, []
            former.append(set_aside(last, "former"))
        link_or_copy(path, last)
        former += [set_aside(later, "former") for later in later_files(folder, facts.step)]
        payload = read_checkpoint(last)
        best = payload["best"]
        former_best = [(best["value"], best["step"])] if best["step"] is not None else []
        former += best_goes_back(folder, payload.get("ranking") or former_best)
    return facts.step, former


def _check_new(output: Path) -> None:
    if output.exists():
        raise UserError(f"{output} exists: name a new file")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist: make it first")
