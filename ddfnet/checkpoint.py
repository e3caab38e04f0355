"""Checkpoints: written atomically, read without running any code that a file may carry."""

import argparse
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ddfnet.utils.errors import CheckpointError
from ddfnet.utils.files import write_atomically

FORMAT = "ddfnet.checkpoint.v1"
DEFAULT_TASK = "classification"  # of files that do not say theirs


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Saves a payload of tensors and plain Python values under the format's name."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **payload}, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads any PyTorch checkpoint with `weights_only=True`.

    Training checkpoints of old timm versions hold an `argparse.Namespace`, which only stores values: it is allowed.

    Raises:
        CheckpointError: missing, truncated or not a checkpoint, or it holds objects other than tensors and plain
            values (loading those could run code).
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.pt"))
        hint = f"it holds {', '.join(inside)}: name one of them" if inside else "expected a file"
        raise CheckpointError(f"checkpoint {path} is a folder: {hint}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    try:
        with path.open("rb") as file:
            start = file.read(1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if start == b"<":
        raise CheckpointError(f"{path} is no checkpoint but a web page (of a login or a quota?): download it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise CheckpointError(_unsafe(path, start, str(error))) from None
        raise CheckpointError(_damaged(path)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile):
        raise CheckpointError(_damaged(path)) from None
    # PyTorch does not look at the checksums that it writes: a flipped bit would become a weight.
    if isinstance(payload, dict) and payload.get("format") == FORMAT and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} has another checksum than when it was written")
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, expected a checkpoint or a state_dict")
    return payload


def _damaged(path: Path) -> str:
    fault = f"{path} ({path.stat().st_size:,} bytes) is truncated or not a PyTorch checkpoint"
    return f"{fault}: copy or download it again, or use another one"


def _unsafe(path: Path, start: bytes, reason: str) -> str:
    # torch names the offending object as `GLOBAL os.system` or `Unsupported class ...`.
    culprit = next((line.strip() for line in reason.splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
    # A text file has unsupported operands, too; zip files and pickles of protocol 2 or later begin otherwise.
    if (not culprit or ("operand" in culprit and start != b"\x80")) and not zipfile.is_zipfile(path):
        return _damaged(path)
    return (
        f"{path} holds Python objects besides tensors and plain values, and loading them could run code: refused. "
        f"Get a file of tensors only (a state_dict or safetensors) from its author. {culprit[:160]}"
    )


@dataclass(frozen=True)
class Weights:
    """The weights of a model as read from a file, with what the file says of them."""

    state_dict: dict[str, Tensor]  # parameters and buffers under the keys of the raw model
    meta: dict[str, Any] | None  # of the task (`Task.meta`); None where the file has none
    kind: str  # `ema`, `model` or `state_dict`
    config: dict[str, Any] | None = None  # of the run, in its `best.pt` and `last.pt`


def read_weights(path: str | Path, *, prefer: str = "auto") -> Weights:
    """Reads weights from a checkpoint of this package, an official one, a bare state_dict, or a .safetensors file.

    Args:
        path: the file.
        prefer: `auto` takes the EMA weights where there are any, `ema` demands them, `raw` never takes them.

    Raises:
        CheckpointError: see `read_checkpoint`; no weights inside, or no EMA weights although `prefer` is `ema`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefer)
    payload = read_checkpoint(path)
    raw_key, ema_key = ("model", "ema") if payload.get("format") == FORMAT else ("state_dict", "state_dict_ema")
    if prefer == "ema" and payload.get(ema_key) is None:
        raise CheckpointError(f"{path} has no EMA weights: use --weights raw")
    key = ema_key if prefer != "raw" and payload.get(ema_key) is not None else raw_key
    state_dict = payload.get(key, payload)  # without such a key, the file itself is a state_dict
    tensors = isinstance(state_dict, dict) and all(isinstance(value, Tensor) for value in state_dict.values())
    if not tensors or not state_dict:
        raise CheckpointError(
            f"{path} holds no weights: expected `model` (ddfnet), `state_dict` (official) or a state_dict of tensors, "
            f"got the keys {sorted(map(str, payload))[:8]}"
        )
    state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    kind = "ema" if key == ema_key else "model" if key in payload else "state_dict"
    about = payload if payload.get("format") == FORMAT else {}
    return Weights(state_dict, about.get("meta"), kind, about.get("config"))


def _read_safetensors(path: Path, prefer: str) -> Weights:
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            meta = json.loads(about.get("ddfnet", "null"))
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError):
        raise CheckpointError(_damaged(path)) from None
    kind = about.get("kind", "state_dict")  # one file holds one set of weights
    if (prefer == "ema" and kind != "ema") or (prefer == "raw" and kind == "ema"):
        raise CheckpointError(f"{path} holds the {kind} weights alone: leave --weights out, or take best.pt")
    return Weights(state_dict, meta, kind)


def save_safetensors(path: Path, state_dict: dict[str, Tensor], meta: dict[str, Any], *, kind: str) -> None:
    """Writes weights, of the kind `ema` or `model`, and their meta as a .safetensors file for `read_weights`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    data = safetensors.torch.save(tensors, {"ddfnet": json.dumps(meta), "kind": kind, "format": "pt"})
    write_atomically(path, lambda file: file.write(data))


def load_weights(model: nn.Module, weights: Weights, *, source: str | Path, name: str) -> None:
    """Loads weights strictly: every key and every shape must match. CheckpointError says how those of another model
    differ."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.state_dict.keys())
    extra = sorted(weights.state_dict.keys() - expected.keys())
    reshaped = [
        f"{key} is {tuple(weights.state_dict[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in weights.state_dict and weights.state_dict[key].shape != tensor.shape
    ]
    if missing or extra or reshaped:
        parts = [_some(missing, "missing"), _some(extra, "unknown"), _some(reshaped, "of another shape")]
        raise CheckpointError(
            f"{source} does not hold weights of {name}: {'; '.join(filter(None, parts))}. "
            "Name the model (and number of classes) it was trained as"
        )
    model.load_state_dict(weights.state_dict)


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
