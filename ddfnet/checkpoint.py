"""Checkpoints: written atomically, read without running any code that a file may carry."""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddfnet.utils.errors import CheckpointError
from ddfnet.utils.files import similar_file, write_atomically

FORMAT = "ddfnet.checkpoint.v1"
DEFAULT_TASK = "classification"  # of files that do not say theirs


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Saves a payload of tensors and plain Python values under the format's name."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **payload}, file), size=tensor_bytes(payload))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, items))


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
        hint = (
            f"it holds {', '.join(inside)}: name one of them"
            if inside
            else f"expected a file; a folder of the hub is local-dir:{path}"
        )
        raise CheckpointError(f"checkpoint {path} is a folder: {hint}")
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}{similar_file(path)}")
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
    except Exception:  # damaged bytes raise almost anything: IndexError, AssertionError, struct.error, ...
        raise CheckpointError(_damaged(path)) from None
    if isinstance(payload, dict) and payload.get("format") == FORMAT:
        _check_sums(path)
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, expected a checkpoint or a state_dict")
    return payload


def _check_sums(path: Path) -> None:
    """Compares the checksums of a file of this package, which PyTorch writes and does not look at: a flipped bit would
    become a weight. CheckpointError where one differs."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception:  # NotImplementedError and the like, for a flipped bit of the archive's own
        raise CheckpointError(_damaged(path)) from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} has another checksum than when it was written")


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
    # Of another trainer: `arch` and `args`, see `_origin`; of a hub folder and of timm: `record`, a `pretrained_cfg`.
    origin: dict[str, Any] | None = None
    changes: tuple[str, ...] = ()  # what reading changed: "stripped module.", "left out n_averaged"


def kind_note(kind: str, after: str = "") -> str:
    """The kind of `Weights` as ` (EMA)` or ` (raw)`, the words of --weights; "" of a file that has no choice."""
    return {"ema": f" (EMA{after})", "model": f" (raw{after})"}.get(kind, "")


def read_weights(path: str | Path, *, prefer: str = "auto") -> Weights:
    """Reads weights from a file of this package or of another trainer, or from a folder in the layout of the hub.

    Files: .safetensors, or what torch.save wrote: a state_dict by itself or under one of the keys that timm,
    torchvision, Lightning, mmpretrain, DeiT, DINO and the like give it. The keys lose what DDP, FSDP, torch.compile
    and averaging put before them. Prefixes that only a model can tell from its own names are left to
    `ddfnet.models.weights.load_weights`.

    Args:
        path: the file, or a folder with config.json and the weights, as publish_weights.py and timm write it.
        prefer: `auto` takes the EMA weights where there are any, `ema` demands them, `raw` never takes them.

    Raises:
        CheckpointError: see `read_checkpoint`; no weights inside, or no EMA weights although `prefer` is `ema`.
    """
    path = Path(path)
    if path.is_dir() and (path / HUB_CONFIG).is_file():
        return _read_folder(path, prefer)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefer)
    if path.suffix == ".npz":
        raise CheckpointError(
            f"{path} is a NumPy archive of JAX weights: load it with timm (model.load_pretrained) and save its "
            "state_dict, or take the PyTorch file"
        )
    payload = read_checkpoint(path)
    own = payload.get("format") == FORMAT
    ema_keys, raw_keys = (("ema",), ("model",)) if own else (_EMA_KEYS, _RAW_KEYS)
    ema = None if prefer == "raw" else _first_state_dict(payload, ema_keys)
    if prefer == "ema" and ema is None:
        raise CheckpointError(f"{path} has no EMA weights: use --weights raw")
    raw = _first_state_dict(payload, raw_keys) if ema is None else None
    state_dict = ema or raw or _tensors_of(payload)  # without such a key, the file itself is a state_dict
    if state_dict is None:
        raise CheckpointError(
            f"{path} holds no weights: expected `model` (ddfnet), `state_dict` (official) or a state_dict of tensors, "
            f"got the keys {sorted(map(str, payload))[:8]}"
        )
    kind = "ema" if ema else "model" if raw else "state_dict"
    if own:
        return Weights(state_dict, payload.get("meta"), kind, payload.get("config"))
    return _unwrapped(Weights(state_dict, None, kind, origin=_origin(payload)))


# What trainers call a state_dict, in the order of preference. `teacher`, `student`: self-distillation, whose teacher
# is an EMA of the student.
_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "teacher")
_RAW_KEYS = ("state_dict", "model", "model_state_dict", "student", "state", "net", "network", "weights", "module")
# What torch.compile, FSDP and activation checkpointing put into keys, wherever the wrapped module stands.
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counters of torch's AveragedModel and of FLOP counters, which are no part of a network.
_COUNTERS = ("n_averaged", "total_ops", "total_params")


def _first_state_dict(payload: dict[str, Any], keys: Sequence[str], *, deeper: int = 2) -> dict[str, Any] | None:
    """The state_dict under the first of the keys that has one, by itself or up to `deeper` keys below."""
    for value in (payload.get(key) for key in keys):
        if isinstance(value, dict):
            state_dict = _tensors_of(value)
            if state_dict is None and deeper:
                state_dict = _first_state_dict(value, (*_RAW_KEYS, "shadow"), deeper=deeper - 1)
            if state_dict is not None:
                return state_dict
    return None


def _tensors_of(values: dict[Any, Any]) -> dict[str, Any] | None:
    """The dictionary itself if it is a state_dict: mostly tensors by name, and not numbers alone, as the counters of an
    average are."""
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    named = all(isinstance(key, str) for key in values)
    mostly = named and 2 * len(tensors) >= len(values)
    return values if mostly and any(tensor.ndim for tensor in tensors) else None


def _unwrapped(weights: Weights) -> Weights:
    """Weights of another trainer under the keys of the module that was wrapped, tensors of a network alone."""
    stripped, left_out, clean = set(), [], {}
    for key, tensor in weights.state_dict.items():
        if key.rpartition(".")[2] in _COUNTERS or not isinstance(tensor, Tensor):
            left_out.append(key)
            continue
        stripped |= set(_WRAPPER.findall(key))
        clean[_WRAPPER.sub("", key)] = tensor
    while clean and all(key.startswith("module.") for key in clean):
        stripped.add("module.")
        clean = {key.removeprefix("module."): tensor for key, tensor in clean.items()}
    changes = [f"stripped {' and '.join(sorted(stripped))}"] if stripped else []
    changes += [f"left out {some(left_out)}"] if left_out else []
    return replace(weights, state_dict=clean, changes=tuple(changes))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and that there are more."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _origin(payload: dict[str, Any]) -> dict[str, Any] | None:
    """What a training file says of its model: `arch` and `args` of timm's train.py; only `model` in the `args` of
    others. Names and numbers, to be checked by who uses them."""
    args = payload.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    arch = payload.get("arch")
    if isinstance(arch, str):
        return {"arch": arch, "args": args}
    model = args.get("model")
    return {"arch": model, "args": {}} if isinstance(model, str) else None


# Files of a folder with a config.json, as timm looks for them; the first one there is read.
HUB_CONFIG = "config.json"
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def _read_folder(folder: Path, prefer: str) -> Weights:
    """The weights of a folder in the layout of the Hugging Face hub, and of its config.json what describes them."""
    file = next((folder / name for name in HUB_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} has a {HUB_CONFIG} but none of {', '.join(HUB_FILES)}: download it again")
    weights = read_weights(file, prefer=prefer)
    if weights.meta is not None:
        return weights  # written by this package
    config = hub_config(folder)
    about = config["pretrained_cfg"]
    args, classes = {"model_kwargs": config["model_args"]}, config.get("label_names")
    origin = {"arch": config["architecture"], "args": args, "record": about, "classes": classes}
    return replace(weights, origin=origin)


def hub_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder of the hub, with `architecture`, `pretrained_cfg` and `model_args`; CheckpointError
    where it does not describe a model of timm's."""
    path = folder / HUB_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise CheckpointError(f"{path} names no architecture of timm: give a folder that timm or this package wrote")
    # Early files have one level: what is now in pretrained_cfg beside the architecture.
    config = {"pretrained_cfg": config, "label_names": config.get("labels"), **config}
    arguments = config.get("model_args") or {}
    if not isinstance(config["pretrained_cfg"], dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: pretrained_cfg and model_args must be objects: write the folder again")
    # The number of classes is that of the weights, and three channels are no choice.
    usual = {"num_classes": arguments.get("num_classes"), "in_chans": 3}
    config["model_args"] = {key: arguments[key] for key in arguments if arguments[key] != usual.get(key, ...)}
    return config


def _read_safetensors(path: Path, prefer: str) -> Weights:
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}{similar_file(path)}")
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
    weights = Weights(state_dict, meta, kind)
    return weights if meta is not None else _unwrapped(weights)


def save_safetensors(path: Path, state_dict: dict[str, Tensor], meta: dict[str, Any], *, kind: str) -> None:
    """Writes weights, of the kind `ema` or `model`, and their meta as a .safetensors file for `read_weights`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    data = safetensors.torch.save(tensors, {"ddfnet": json.dumps(meta), "kind": kind, "format": "pt"})
    write_atomically(path, lambda file: file.write(data), size=len(data))
